//! Peak memory of a training step, measured in child processes.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;
use crate::reproduce::release_binary;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The most that the step with 8 heads may take of the step with 1.
const MOST_RATIO: f64 = 1.15;

/// Prints the ratio; whether it is within the bar.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, threads: usize) -> Result<bool> {
    let mut peaks = Vec::new();
    println!(
        "training steps at a vocabulary of 32,768, 10 layers in all, each in a process of its own"
    );
    for heads in [1, 2, 4, 8] {
        let mut command = Command::new(release_binary(workspace, "step_memory"));
        libtorch.apply(&mut command);
        command.args(["--heads", &heads.to_string(), "--threads", &threads.to_string()]);
        let answer: Value = serde_json::from_str(process::stdout(&mut command)?.trim())
            .context("step_memory printed something else than JSON")?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        let peak = figure("peak_bytes")?;
        println!(
            "n = {heads}: {:6.0} MB at most, {:5.0} MB of them before the first step, {} parameters, {} tokens a step",
            peak / 1e6,
            figure("before_bytes")? / 1e6,
            answer["parameters"],
            answer["tokens_per_step"]
        );
        peaks.push(peak);
    }
    let ratio = peaks[peaks.len() - 1] / peaks[0];
    println!("n = 8 takes {ratio:.3} times the memory of n = 1 (bar: {MOST_RATIO})");
    Ok(ratio <= MOST_RATIO)
}
