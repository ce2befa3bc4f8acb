//! What a report says in words: its headline, its lead and its four figures.

use crate::SpeedResults;
use crate::report::{DecodingRow, ModelRow, Report};

use super::Source;
use super::figures::drafting;
use super::text::{and, count, duration, short};

/// The row with the best speed-up over the same model.
pub(crate) fn fastest(report: &Report) -> Option<&DecodingRow> {
    best(report, |row| row.speedup)
}

/// The drafting row with the largest `figure`.
pub(crate) fn best(report: &Report, figure: impl Fn(&DecodingRow) -> f64) -> Option<&DecodingRow> {
    report
        .decoding
        .iter()
        .filter(|row| row.heads_used > 1)
        .max_by(|a, b| figure(a).total_cmp(&figure(b)))
}

/// Outputs compared with autoregressive decoding, and those that differ by a mismatch: those of
/// the table, and those over the whole test split.
pub(crate) fn agreement(report: &Report) -> (usize, usize) {
    let rows = report.decoding.iter().filter(|row| row.heads_used > 1);
    let counted = rows.fold((0, 0), |(outputs, mismatches), row| {
        (outputs + row.prompts, mismatches + row.mismatches)
    });
    let whole = SpeedResults::of(report).map_or_else(|_| Vec::new(), |results| results.agreement);
    whole.iter().fold(counted, |(outputs, mismatches), row| {
        (outputs + row.prompts, mismatches + row.mismatches)
    })
}

/// The result in one line.
pub(crate) fn headline(report: &Report) -> String {
    let (outputs, mismatches) = agreement(report);
    let Some(row) = fastest(report) else {
        return "Next-token decoding, no drafts".to_owned();
    };
    let same = if mismatches == 0 {
        "with the same output".to_owned()
    } else {
        format!("but {mismatches} of {outputs} outputs differ")
    };
    // Where there are figures of weights in fewer bytes too, the ratio is of those in full.
    let compact = SpeedResults::of(report).is_ok_and(|results| !results.compact.is_empty());
    let weights = if compact { " with float32 weights" } else { "" };
    if row.speedup >= 1.05 {
        format!("{:.2} times as fast as plain decoding{weights}, {same}", row.speedup)
    } else {
        format!(
            "Drafting does not pay here: {:.2} times the speed of plain decoding{weights}, {same}",
            row.speedup
        )
    }
}

/// The preset, in words.
pub(crate) fn preset(report: &Report) -> String {
    format!("{}{}", report.preset, of_heads(report))
}

/// What is said of the heads behind a preset's name.
pub(crate) fn of_heads(report: &Report) -> &'static str {
    if report.pretrained_heads { " with heads that were kept" } else { "" }
}

/// What was trained and measured, in two sentences.
pub(crate) fn lead(source: &Source) -> String {
    let report = source.report;
    let Some(first) = report.models.first() else {
        return "No model was trained.".to_owned();
    };
    let heads: Vec<String> = drafting(report).iter().map(|model| model.heads.to_string()).collect();
    let subject = match (first.heads, heads.is_empty()) {
        (1, true) => "A next-token model".to_owned(),
        (1, false) => format!(
            "A next-token baseline and models that predict the next {} tokens at once",
            and(&heads)
        ),
        _ => format!("Models that predict the next {} tokens at once", and(&heads)),
    };
    let machine = &source.results.machine;
    let place = match &machine.gpu {
        Some(gpu) => gpu.clone(),
        None => format!("{} ({} threads)", machine.cpu, machine.threads),
    };
    if is_pretrained(report) {
        let before = report.pretrained_heads || source.results.trained_on.is_some();
        let (verb, everything) = match before {
            false => ("are trained", "Everything"),
            true => ("were trained", "All but that training"),
        };
        return format!(
            "A published model of {} layers and dim {} stays as it is; heads for the next {} tokens \
             {verb} beside it on {} tokens of Python code ({} parameters with them). Then the model \
             writes on from programming problems, checking up to k tokens in one forward pass. \
             {everything} ran on {place} in {}.",
            published_layers(first),
            first.dim,
            and(&heads),
            short(first.tokens_seen as f64),
            short(first.parameters as f64),
            duration(report.wall_seconds),
        );
    }
    format!(
        "{subject}, each with {} parameters in {} layers, trained from scratch on the same {} tokens \
         of {}. Then each writes text on its own, checking up to k tokens in one forward pass. \
         Everything ran on {place} in {}.",
        short(first.parameters as f64),
        first.layers,
        short(first.tokens_seen as f64),
        corpus_name(&report.corpus.name),
        duration(report.wall_seconds),
    )
}

/// Layers of the published model: heads that are blocks count as layers of the whole.
fn published_layers(model: &ModelRow) -> usize {
    match model.head_type.as_str() {
        "block" | "informed" => (model.layers + 1).saturating_sub(model.heads),
        _ => model.layers,
    }
}

/// Whether heads were put on a published model, instead of models trained from scratch.
fn is_pretrained(report: &Report) -> bool {
    report.experiment == "pretrained"
}

fn corpus_name(name: &str) -> String {
    match name {
        "python-code" => "Python code, byte by byte".to_owned(),
        other => format!("the corpus “{other}”"),
    }
}

/// The four figures at the top: value and what it is.
pub(crate) fn tiles(report: &Report) -> Vec<(String, String)> {
    let mut tiles = Vec::new();
    if let Some(row) = fastest(report) {
        let what = format!(
            "best speed-up over the same model, n = {}, k = {}",
            heads_of(report, row),
            row.heads_used
        );
        tiles.push((format!("{:.2}×", row.speedup), what));
    }
    if let Some(row) = best(report, |row| row.held_out_tokens_per_forward) {
        let what = format!(
            "tokens per forward pass on held-out text, n = {}, k = {}",
            heads_of(report, row),
            row.heads_used
        );
        tiles.push((format!("{:.2}", row.held_out_tokens_per_forward), what));
    }
    let best_loss = report
        .models
        .iter()
        .filter_map(|m| Some((*m.validation_loss.first()?, m.heads)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((loss, heads)) = best_loss {
        let what = format!("nats per token, the lowest validation loss of head 1 (n = {heads})");
        tiles.push((format!("{loss:.2}"), what));
    }
    let (outputs, mismatches) = agreement(report);
    if outputs > 0 {
        let what = format!("of {} outputs differ from plain decoding", count(outputs as u64));
        tiles.push((mismatches.to_string(), what));
    }
    tiles
}

fn heads_of(report: &Report, row: &DecodingRow) -> usize {
    report.model(&row.model).map_or(0, |model| model.heads)
}

/// How the figures were measured, one paragraph each, as (term, explanation).
pub(crate) fn definitions(source: &Source) -> Vec<(String, String)> {
    let settings = &source.results.settings;
    let Some(row) = source.report.decoding.first() else {
        return Vec::new();
    };
    let (prompts, other) = (prompts(source, row), other_baseline(source.report));
    let (drafts, whole) = (drafts(&settings.precision, &settings.draft_precision), whole(source));
    let mut definitions = vec![
        (
            "Own greedy text",
            format!(
                "{prompts}; {} new tokens each, one sequence at a time, weights in {}{drafts}. Tokens per forward pass counts the prompt's \
                 pass as one, so that plain decoding has exactly 1. A weak model's greedy text falls \
                 into loops that any head predicts: the share of distinct 8-grams says how much.",
                row.new_tokens, settings.precision
            ),
        ),
        (
            "Held-out text",
            format!(
                "{} tokens that spread over the test split, in windows of {} behind a prompt of {}, walked \
                 as if they were the output: heads 2 to k draft, drafts are accepted up to the first that \
                 differs from the real text, the next token always counts. This cannot be raised by loops.",
                count(settings.held_out_tokens as u64),
                settings.held_out_window - settings.held_out_prompt.min(settings.held_out_window),
                settings.held_out_prompt
            ),
        ),
        (
            "Accepted",
            "Share of forward passes in which all drafts up to a head's were accepted. Where a pass \
             verifies alternatives beside the drafts, one that is right counts as its draft."
                .to_owned(),
        ),
        (
            "Speed-up",
            format!(
                "Seconds of decoding after the prompt's pass, against autoregressive decoding by the \
                 same model{other}. Every prompt is decoded in every way in turn, {} times over; figures are medians.",
                settings.repeats
            ),
        ),
        (
            "Outputs",
            format!(
                "Each speculative output is compared with the autoregressive one, token by token. A \
                 mismatch is a prompt whose outputs differ where the two best logits lie more than \
                 1e-4 apart; closer ones are near ties, because float32 products of one row and of \
                 several rows may round differently.{whole}"
            ),
        ),
        (
            "Validation loss",
            format!(
                "{} windows of {} tokens of the validation split, the same ones for every model.",
                count(settings.validation_windows as u64),
                settings.validation_sequence
            ),
        ),
    ];
    if !source.paper.rows.is_empty() {
        let setups: Vec<String> = source
            .paper
            .models
            .iter()
            .map(|m| format!("n = {}: table {}, {}", m.heads, m.table, m.setup))
            .collect();
        definitions.push((
            "The paper's figures",
            format!("{}. {}.", source.paper.source, setups.join(". ")),
        ));
    }
    definitions.extend(source.results.notes.iter().map(|note| ("Note", note.clone())));
    definitions.into_iter().map(|(term, text)| (term.to_owned(), text)).collect()
}

/// What the table of compact weights is about.
pub(crate) fn compact(source: &Source) -> String {
    let adaptive = match source.results.compact.iter().any(|row| row.adaptive) {
        true => {
            " \"Up to\" so many heads is what it does by itself: it measures in its first steps \
                 which drafts pay, and takes these."
        }
        false => "",
    };
    format!(
        "The same with weights in as few bytes as have the same bits (the levels of a quantised model, \
         numbers of 16 bits), which is how `foretoken generate` keeps them.{adaptive} A pass then reads a \
         fraction of what it reads of {} weights, and there is less time left over in which to verify \
         drafts:",
        source.results.settings.precision
    )
}

/// Where the prompts are from.
fn prompts(source: &Source, row: &DecodingRow) -> String {
    if is_pretrained(source.report) {
        return format!("{} of HumanEval's problems", row.prompts);
    }
    format!(
        "{} prompts of {} tokens, cut from the test split at seeded places",
        row.prompts, source.results.settings.prompt_tokens
    )
}

/// What speed-ups are against besides the same model.
fn other_baseline(report: &Report) -> &'static str {
    match is_pretrained(report) {
        true => "",
        false => " and by the baseline with one head and as many parameters",
    }
}

/// What drafting heads compute with, where that is something else than the model.
fn drafts(precision: &str, drafts: &str) -> String {
    if drafts.is_empty() || drafts == precision {
        return String::new();
    }
    format!(" (drafting heads in {drafts} on a CPU: what they draft is verified in {precision})")
}

/// The count over the whole test split.
fn whole(source: &Source) -> String {
    let rows: Vec<String> = source
        .results
        .agreement
        .iter()
        .map(|row| {
            format!(
                "n = {}: {} prompts, {} mismatches, {} near ties",
                row.heads_used,
                count(row.prompts as u64),
                row.mismatches,
                row.near_ties
            )
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        " With all heads the whole test split was decoded so, cut into prompts and the places of as \
         many new tokens as above: {}.",
        rows.join("; ")
    )
}

/// What made the report, as (name, value).
pub(crate) fn provenance(source: &Source) -> Vec<(&'static str, String)> {
    let report = source.report;
    let machine = &source.results.machine;
    let mut facts = vec![
        ("Experiment", format!("{}, preset {}", report.experiment, preset(report))),
        ("Seed", report.seed.to_string()),
        (
            "Corpus",
            format!(
                "{}: {} training, {} validation and {} test tokens",
                report.corpus.name,
                count(report.corpus.train_tokens),
                count(report.corpus.validation_tokens),
                count(report.corpus.test_tokens)
            ),
        ),
        ("Corpus sha256", report.corpus.sha256.clone()),
        (
            "Software",
            format!(
                "foretoken {}, libtorch {}",
                report.versions.foretoken, report.versions.libtorch
            ),
        ),
        ("Processor", format!("{}, {} threads", machine.cpu, machine.threads)),
    ];
    if let Some(gpu) = &machine.gpu {
        facts.push(("GPU", gpu.clone()));
    }
    facts.push(("Time", duration(report.wall_seconds)));
    facts.push(("Again", report.command()));
    facts
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn the_headline_is_the_best_speed_up_and_says_that_outputs_agree() {
        let mut report = example::report();
        let line = headline(&report);
        assert!(line.contains("1.88") && line.ends_with("with the same output"), "{line}");
        report.decoding[2].mismatches = 3;
        assert!(headline(&report).contains("but 3 of"));
    }

    #[test]
    fn notes_stand_among_the_definitions() {
        let report = example::report();
        let mut results = crate::SpeedResults::of(&report).unwrap();
        results.notes = vec!["something was left out".to_owned()];
        let paper = crate::PaperFigures::for_heads(&[4]);
        let definitions = definitions(&Source { report: &report, results, paper });
        assert_eq!(definitions.last().unwrap().1, "something was left out");
    }

    #[test]
    fn a_slower_model_is_not_called_faster() {
        let mut report = example::report();
        for row in &mut report.decoding {
            row.speedup = 0.9;
        }
        assert!(headline(&report).starts_with("Drafting does not pay here: 0.90"));
    }
}
