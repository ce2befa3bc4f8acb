//! What every experiment puts into its report: rows, settings, and the start of a run.

use anyhow::Context;
use foretoken_data::Manifest;
use foretoken_decode::{DecoderOptions, DraftPrecision};
use foretoken_eval::HeldOut;
use foretoken_train::TrainConfig;
use tch::Device;

use crate::clock::Clock;
use crate::measure::Measured;
use crate::render::text::duration;
use crate::report::{DecodingRow, ModelRow};
use crate::results::{CompactRow, HeldOutRow, OutOfDomain, Settings, Timing};
use crate::say::progress;
use crate::training::Trained;
use crate::{DecodingPlan, Recipe, ReproduceOptions};

/// Makes the folder of a run, says `what` is to come, and opens its clock.
pub(crate) fn begin(options: &ReproduceOptions, what: &str) -> anyhow::Result<Clock> {
    let folder = options.folder();
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let clock = Clock::open(&folder)?;
    progress!("{} at preset {}: {what}", options.experiment, options.preset);
    Ok(clock)
}

/// How long a recipe takes.
pub(crate) fn about(recipe: &Recipe) -> String {
    format!("about {} in all", duration(recipe.minutes * 60.0))
}

/// A model's name: `n4`.
pub(crate) fn name(heads: usize) -> String {
    format!("n{heads}")
}

/// What a model is and what its training came to.
pub(crate) fn model_row(config: &TrainConfig, trained: &Trained, measured: &Measured) -> ModelRow {
    ModelRow {
        name: name(config.heads.count),
        heads: config.heads.count,
        head_type: config.heads.kind.clone(),
        layers: measured.layers,
        dim: measured.dim,
        parameters: measured.parameters,
        vocab: measured.vocab,
        steps: trained.steps,
        tokens_seen: trained.tokens_seen,
        train_seconds: trained.seconds,
        tokens_per_second: trained.tokens_seen as f64 / trained.seconds.max(1e-9),
        peak_memory_bytes: trained.peak_memory_bytes,
        validation_loss: measured.validation_loss.clone(),
    }
}

/// One row for each number of heads used.
pub(crate) fn decoding_rows(
    name: &str,
    plan: &DecodingPlan,
    measured: &Measured,
) -> Vec<DecodingRow> {
    let walks = measured.held_out.walks();
    let rows = measured.ways.iter().zip(walks).map(|(way, walk)| DecodingRow {
        model: name.to_owned(),
        heads_used: way.heads_used,
        batch: 1,
        prompts: plan.prompts,
        new_tokens: plan.new_tokens,
        tokens_per_forward: way.tokens_per_forward,
        held_out_tokens_per_forward: walk.tokens_per_forward(),
        distinct_8grams: way.distinct_8grams,
        acceptance: way.acceptance.clone(),
        tokens_per_second: way.tokens_per_second,
        speedup: way.speedup,
        speedup_over_baseline: way.speedup_over_baseline,
        identical_outputs: way.mismatches == 0,
        mismatches: way.mismatches,
        near_ties: way.near_ties,
    });
    rows.collect()
}

/// How a recipe measures.
pub(crate) fn settings(recipe: &Recipe, sequence: usize, device: Device) -> Settings {
    let precision = recipe.decoding.precision.as_str();
    Settings {
        prompt_tokens: recipe.decoding.prompt_tokens,
        repeats: recipe.decoding.repeats,
        held_out_window: recipe.held_out.window,
        held_out_prompt: recipe.held_out.prompt,
        held_out_tokens: held_out_tokens(recipe),
        validation_windows: recipe.validation.windows,
        validation_sequence: sequence,
        precision: precision.to_owned(),
        draft_precision: match (precision, DecoderOptions::default().drafts) {
            ("float32", DraftPrecision::BFloat16) if device == Device::Cpu => "bfloat16".to_owned(),
            _ => precision.to_owned(),
        },
    }
}

/// Held-out tokens walked, in whole windows.
fn held_out_tokens(recipe: &Recipe) -> usize {
    let plan = &recipe.held_out;
    plan.windows() * plan.window.saturating_sub(plan.prompt)
}

/// The held-out figures of models on another package's code, if they were taken.
pub(crate) fn out_of_domain<'m>(
    recipe: &Recipe,
    other: &Manifest,
    named: impl Iterator<Item = (String, &'m Measured)>,
) -> Option<OutOfDomain> {
    let (mut loss, mut rows) = (Vec::new(), Vec::new());
    for (name, measured) in named {
        let on_other = measured.other.as_ref()?;
        rows.extend(held_out_rows(&name, &on_other.held_out));
        loss.push((name, on_other.loss.clone()));
    }
    Some(OutOfDomain {
        corpus: other.name.clone(),
        sha256: other.sha256.clone(),
        tokens: held_out_tokens(recipe),
        loss,
        rows,
    })
}

/// Wall-clock figures of each number of heads used.
pub(crate) fn timing(name: &str, measured: &Measured) -> Vec<Timing> {
    let rows = measured.ways.iter().map(|way| Timing {
        model: name.to_owned(),
        heads_used: way.heads_used,
        step_cost: way.tokens_per_forward / way.speedup.max(1e-9),
        speedup_with_prompt: way.speedup_with_prompt,
        speedup_range: way.speedup_range,
    });
    rows.collect()
}

/// Decoding with compact weights, a row for each way.
pub(crate) fn compact_rows(name: &str, measured: &Measured) -> Vec<CompactRow> {
    let rows = measured.compact.iter().map(|way| CompactRow {
        model: name.to_owned(),
        heads_used: way.heads_used,
        adaptive: way.adaptive,
        tokens_per_forward: way.tokens_per_forward,
        tokens_per_second: way.tokens_per_second,
        speedup: way.speedup,
        speedup_over_full: way.speedup_over_baseline,
        mismatches: way.mismatches,
        near_ties: way.near_ties,
    });
    rows.collect()
}

/// Acceptance for each number of heads used.
pub(crate) fn held_out_rows(name: &str, held_out: &HeldOut) -> Vec<HeldOutRow> {
    let rows = held_out.walks().iter().zip(1..).map(|(walk, heads_used)| HeldOutRow {
        model: name.to_owned(),
        heads_used,
        tokens_per_forward: walk.tokens_per_forward(),
        acceptance: walk.acceptance(),
    });
    rows.collect()
}
