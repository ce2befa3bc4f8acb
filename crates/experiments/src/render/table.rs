//! The cells that the Markdown and the HTML tables share.

use crate::paper::PaperRow;
use crate::report::{DecodingRow, ModelRow};
use crate::results::{CompactRow, Difference, HeldOutRow};

use super::Source;
use super::figures::label;
use super::text::{bytes, count, duration, percent, short};

/// A table: its column heads and its rows, each row starting with the model's label.
pub(crate) struct Table {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// A row of a table.
pub(crate) struct Row {
    /// Rows of one group belong together.
    pub(crate) group: String,
    pub(crate) cells: Vec<String>,
    /// Whether the row is the best of its group.
    pub(crate) best: bool,
}

/// The models and their training.
pub(crate) fn models(source: &Source) -> Table {
    let rows = source.report.models.iter().map(|model| Row {
        group: label(model),
        best: false,
        cells: vec![
            label(model),
            short(model.parameters as f64),
            format!("{} × {}", model.layers, model.dim),
            count(model.steps),
            short(model.tokens_seen as f64),
            duration(model.train_seconds),
            count(model.tokens_per_second.round() as u64),
            bytes(model.peak_memory_bytes),
            model
                .validation_loss
                .first()
                .map_or_else(|| "–".to_owned(), |loss| format!("{loss:.3}")),
        ],
    });
    Table {
        columns: names(&[
            "model",
            "parameters",
            "layers × dim",
            "steps",
            "tokens seen",
            "training",
            "tokens/s",
            "peak memory",
            "validation loss, head 1",
        ]),
        rows: rows.collect(),
    }
}

/// Validation loss of every head.
pub(crate) fn losses(source: &Source) -> Table {
    by_head(source, |model| {
        let losses = model.validation_loss.iter();
        losses.map(|loss| format!("{loss:.3}")).collect()
    })
}

/// Acceptance on held-out text with all heads used.
pub(crate) fn acceptance(source: &Source) -> Table {
    by_head(source, |model| {
        let row = source
            .results
            .held_out
            .iter()
            .find(|row| row.model == model.name && row.heads_used == model.heads);
        let shares = row.map_or(&[][..], |row| &row.acceptance);
        shares.iter().map(|share| format!("{share:.3}")).collect()
    })
}

/// A table with a column for each head.
fn by_head(source: &Source, cells: impl Fn(&ModelRow) -> Vec<String>) -> Table {
    let heads = source.report.models.iter().map(|m| m.heads).max();
    let heads = heads.unwrap_or(0);
    let rows = source.report.models.iter().map(|model| {
        let mut row = vec![label(model)];
        row.extend(cells(model));
        row.resize(heads + 1, String::new());
        Row { group: label(model), best: false, cells: row }
    });
    Table {
        columns: std::iter::once("model".to_owned())
            .chain((1..=heads).map(|head| format!("head {head}")))
            .collect(),
        rows: rows.collect(),
    }
}

/// The speed-up table, the paper's figures in the last two columns.
pub(crate) fn decoding(source: &Source) -> Table {
    let report = source.report;
    let mut rows = Vec::new();
    for model in &report.models {
        let group: Vec<&DecodingRow> = report.decoding_of(&model.name).collect();
        let top = group
            .iter()
            .filter(|row| row.heads_used > 1)
            .map(|row| row.speedup)
            .fold(f64::NEG_INFINITY, f64::max);
        rows.extend(group.into_iter().map(|row| Row {
            group: label(model),
            best: row.heads_used > 1 && row.speedup >= top,
            cells: decoding_cells(model, row, source.paper.row(model.heads, row.heads_used)),
        }));
    }
    Table {
        columns: names(&[
            "model",
            "k",
            "tokens / forward, held-out",
            "tokens / forward, own text",
            "distinct 8-grams",
            "all drafts accepted",
            "tokens/s",
            "speed-up",
            "over baseline",
            "outputs",
            "paper: tokens / forward",
            "paper: speed-up",
        ]),
        rows,
    }
}

fn decoding_cells(model: &ModelRow, row: &DecodingRow, paper: Option<&PaperRow>) -> Vec<String> {
    let missing = || "–".to_owned();
    vec![
        label(model),
        row.heads_used.to_string(),
        format!("{:.2}", row.held_out_tokens_per_forward),
        format!("{:.2}", row.tokens_per_forward),
        percent(row.distinct_8grams),
        match row.acceptance.last() {
            Some(&share) if row.heads_used > 1 => percent(share),
            _ => missing(),
        },
        count(row.tokens_per_second.round() as u64),
        format!("{:.2}×", row.speedup),
        format!("{:.2}×", row.speedup_over_baseline),
        outputs(row),
        paper.map_or_else(missing, |p| format!("{:.2}", p.tokens_per_forward)),
        paper.map_or_else(missing, |p| format!("{:.2}×", p.speedup)),
    ]
}

/// Whether the outputs are those of plain decoding.
fn outputs(row: &DecodingRow) -> String {
    if row.heads_used == 1 {
        return "–".to_owned();
    }
    agreement(row.mismatches, row.near_ties)
}

fn agreement(mismatches: usize, near_ties: usize) -> String {
    match (mismatches, near_ties) {
        (0, 0) => "identical".to_owned(),
        (0, 1) => "identical (1 tie)".to_owned(),
        (0, ties) => format!("identical ({ties} ties)"),
        _ => format!("{mismatches} differ"),
    }
}

/// Decoding with compact weights, where it was measured.
pub(crate) fn compact(source: &Source) -> Option<Table> {
    let rows = &source.results.compact;
    let fastest = |model: &str| {
        let rows = rows.iter().filter(|row| row.model == model);
        rows.map(|row| row.tokens_per_second).fold(0.0, f64::max)
    };
    let cells = |row: &CompactRow| {
        let model = source.report.model(&row.model)?;
        Some(Row {
            group: label(model),
            best: row.tokens_per_second >= fastest(&row.model),
            cells: vec![
                label(model),
                match row.adaptive {
                    true => format!("up to {}", row.heads_used),
                    false => row.heads_used.to_string(),
                },
                format!("{:.2}", row.tokens_per_forward),
                count(row.tokens_per_second.round() as u64),
                format!("{:.2}×", row.speedup),
                format!("{:.2}×", row.speedup_over_full),
                agreement(row.mismatches, row.near_ties),
            ],
        })
    };
    let over = format!("over k = 1 in {}", source.results.settings.precision);
    (!rows.is_empty()).then(|| Table {
        columns: names(&[
            "model",
            "k",
            "tokens / forward, own text",
            "tokens/s",
            "over k = 1",
            &over,
            "outputs",
        ]),
        rows: rows.iter().filter_map(cells).collect(),
    })
}

/// Held-out figures on another package's code beside those on the test split.
pub(crate) fn out_of_domain(source: &Source) -> Option<Table> {
    let other = source.results.out_of_domain.as_ref()?;
    let rows = source.report.models.iter().filter_map(|model| {
        let all_heads = |rows: &[HeldOutRow]| {
            rows.iter()
                .find(|row| row.model == model.name && row.heads_used == model.heads)
                .map(|row| (row.tokens_per_forward, row.acceptance.clone()))
        };
        let (there, acceptance) = all_heads(&other.rows)?;
        let (here, _) = all_heads(&source.results.held_out)?;
        let (_, loss) = other.loss.iter().find(|(name, _)| *name == model.name)?;
        Some(Row {
            group: label(model),
            best: false,
            cells: vec![
                label(model),
                format!("{:.3}", model.validation_loss.first()?),
                format!("{:.3}", loss.first()?),
                format!("{here:.2}"),
                format!("{there:.2}"),
                match acceptance.last() {
                    Some(&share) if model.heads > 1 => percent(share),
                    _ => "–".to_owned(),
                },
            ],
        })
    });
    Some(Table {
        columns: names(&[
            "model",
            "head 1 loss, this corpus",
            "head 1 loss, other package",
            "tokens per forward, test split",
            "tokens per forward, other package",
            "all drafts accepted, other package",
        ]),
        rows: rows.collect(),
    })
}

/// A difference between two outputs, in words.
pub(crate) fn difference(difference: &Difference) -> String {
    use foretoken_eval::Comparison::{Identical, Mismatch, NearTie};
    let place = format!(
        "{} with k = {}, prompt {}",
        difference.model,
        difference.heads_used,
        difference.prompt + 1
    );
    match difference.comparison {
        Identical => format!("{place}: identical"),
        NearTie { position, gap } => {
            format!("{place}: near tie at new token {}, gap {gap:.1e}", position + 1)
        }
        Mismatch { position, gap } => {
            let gap = gap.map_or_else(|| "not recorded".to_owned(), |gap| format!("{gap:.1e}"));
            format!("{place}: mismatch at new token {}, gap {gap}", position + 1)
        }
    }
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|&name| name.to_owned()).collect()
}
