//! Tokens a second from a warm shard.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plan::Plan;
use super::results;
use super::statistics::{median, rounded};
use super::verdicts::Verdicts;
use crate::process;
use crate::reproduce::release_binary;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The least that two threads are to read.
const LEAST_TOKENS_PER_SECOND: f64 = 50e6;
/// Processes that read, of which the median counts.
const ROUNDS: usize = 5;

/// Prints the rate; whether it reaches the bar.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    let (mut rates, mut row) = (Vec::new(), Value::Null);
    for _ in 0..plan.rounds.unwrap_or(ROUNDS) {
        let mut command = Command::new(release_binary(workspace, "read_batches"));
        libtorch.apply(&mut command);
        command.arg("--corpus").arg(workspace.python_code());
        command.arg("--shards").arg(workspace.target().join("peers/shards"));
        command.args(["--threads", &plan.threads.to_string()]);
        row = serde_json::from_str(process::stdout(&mut command)?.trim())
            .context("read_batches printed something else than JSON")?;
        let rate = row["tokens_per_second"].as_f64();
        rates.push(rate.with_context(|| format!("no tokens_per_second in {row}"))?);
    }
    let rate = median(&rates);
    let mut verdicts = Verdicts::default();
    verdicts.add(
        format!(
            "tokens a second from a warm shard, {} threads, at least {:.0} million",
            plan.threads,
            LEAST_TOKENS_PER_SECOND / 1e6
        ),
        format!("{:.0} million (median of {})", rate / 1e6, rates.len()),
        rate >= LEAST_TOKENS_PER_SECOND,
    );
    let passed = verdicts.print();
    let millions = |rate: f64| rounded(rate / 1e6, 1);
    let results = json!({
        "benchmark": "batches from a warm shard",
        "threads": plan.threads, "batch": row["batch"], "columns": row["columns"],
        "million_tokens_per_second": millions(rate),
        "all": rates.iter().copied().map(millions).collect::<Vec<_>>(),
        "bars": {"least_tokens_per_second": LEAST_TOKENS_PER_SECOND},
        "verdicts": verdicts.to_json(),
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}
