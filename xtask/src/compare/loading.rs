//! How long the model takes to load and how much memory.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::sides::{Ours, Theirs};
use super::{Check, Plan};
use crate::bench::statistics::{median, rounded};
use crate::reproduce::foretoken;

/// The most seconds from the start of the process to its end, with one token decoded.
const MOST_SECONDS: f64 = 3.0;
/// The most memory, in weights of float32, beyond that of a process that loads nothing.
const MOST_WEIGHTS: f64 = 1.3;
const TURNS: usize = 3;

/// Measures processes that decode one token, and ones that only print the version.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, _plan: &Plan) -> Result<Check> {
    let weights =
        theirs.greeting["float32_bytes"].as_f64().context("transformers counts no weights")?;
    let mut version = foretoken(ours.workspace, ours.libtorch);
    version.arg("--version");
    let mut seconds = Vec::new();
    let (mut peak, mut empty) = (0.0_f64, f64::INFINITY);
    for _ in 0..TURNS {
        empty = empty.min(theirs.measure(ours, &version)?.1);
        let (time, memory) = theirs.measure(ours, &one_token(ours))?;
        seconds.push(time);
        peak = peak.max(memory);
    }
    let seconds = median(&seconds);
    let share = (peak - empty) / weights;
    Ok(Check {
        passed: seconds < MOST_SECONDS && share <= MOST_WEIGHTS,
        summary: format!(
            "loading and one token: {seconds:.2} s (bar: under {MOST_SECONDS}); {:.0} MB at most, \
             {:.0} MB of them without a model; the increase is {share:.2} times the {:.0} MB of \
             weights in float32 (bar: {MOST_WEIGHTS})",
            peak / 1e6,
            empty / 1e6,
            weights / 1e6
        ),
        figures: json!({
            "turns": TURNS, "seconds": rounded(seconds, 3),
            "peak_bytes": peak as u64, "peak_bytes_without_model": empty as u64,
            "float32_bytes": weights as u64,
            "increase_in_float32_weights": rounded(share, 3),
            "bars": {"most_seconds": MOST_SECONDS, "most_weights": MOST_WEIGHTS},
        }),
    })
}

fn one_token(ours: &Ours<'_>) -> Command {
    let mut command = ours.foretoken("generate");
    command.args(["--prompt", "The", "--max-new-tokens", "1", "--json"]);
    command.args(["--decoding", "autoregressive", "--threads", &ours.threads.to_string()]);
    command
}
