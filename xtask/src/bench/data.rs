//! Tokens a second from a warm shard, and how long trainings wait for their data.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::plan::Plan;
use super::results;
use super::statistics::{median, rounded};
use super::verdicts::Verdicts;
use crate::process;
use crate::reproduce::{foretoken, release_binary};
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The least that two threads are to read.
const LEAST_TOKENS_PER_SECOND: f64 = 50e6;
/// Processes that read, of which the median counts.
const ROUNDS: usize = 5;
/// Trainings wait for less than this share of their time.
const WAITING_BELOW: f64 = 0.01;
/// Steps of such a training.
const STEPS: usize = 200;
/// `data.documents` of the trainings.
const DOCUMENTS: [&str; 2] = ["joined", "packed"];

/// Prints the rate and the shares of waiting; whether all reach their bars.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    let (rates, row) = read(workspace, libtorch, plan)?;
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
    let trainings = train(workspace, libtorch)?;
    for training in &trainings {
        verdicts.add(training.bar(), training.found(), training.share() < WAITING_BELOW);
    }
    let passed = verdicts.print();
    let millions = |rate: f64| rounded(rate / 1e6, 1);
    let results = json!({
        "benchmark": "batches from a warm shard",
        "threads": plan.threads, "batch": row["batch"], "columns": row["columns"],
        "million_tokens_per_second": millions(rate),
        "all": rates.iter().copied().map(millions).collect::<Vec<_>>(),
        "trainings": trainings.iter().map(Training::to_json).collect::<Vec<_>>(),
        "bars": {
            "least_tokens_per_second": LEAST_TOKENS_PER_SECOND,
            "share_of_waiting_below": WAITING_BELOW,
        },
        "verdicts": verdicts.to_json(),
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

/// The rates of some processes, and what the last one printed.
fn read(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<(Vec<f64>, Value)> {
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
    Ok((rates, row))
}

/// Trains the tutorial's model once for each way to lay out documents, as a user would, on the
/// threads that libtorch takes by itself.
fn train(workspace: &Workspace, libtorch: &Libtorch) -> Result<Vec<Training>> {
    let target = workspace.target();
    let folder = tempfile::tempdir_in(&target)
        .with_context(|| format!("cannot make a folder in {}", target.display()))?;
    let mut trainings = Vec::new();
    for documents in DOCUMENTS {
        let mut command = foretoken(workspace, libtorch);
        command.args(["train", "--json", "--config"]);
        command.arg(workspace.root().join("crates/experiments/configs/tiny.toml"));
        command.arg("--corpus").arg(workspace.python_code());
        command.arg("--shards").arg(target.join("peers/shards"));
        command.arg("--out").arg(folder.path().join(documents));
        // While a checkpoint is written the reader could catch up.
        for (key, value) in [
            ("train.steps", STEPS.to_string()),
            ("train.checkpoint_every", "0".to_owned()),
            ("data.documents", documents.to_owned()),
        ] {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let training = Training::parse(documents, &process::stdout(&mut command)?)?;
        println!("{} steps on {documents} documents: {}", training.steps, training.found());
        trainings.push(training);
    }
    Ok(trainings)
}

/// What a training says of its time.
#[derive(Debug)]
struct Training {
    documents: &'static str,
    steps: u64,
    seconds: f64,
    /// Those of them in which a step stood and waited for its batch.
    data_wait_seconds: f64,
}

impl Training {
    /// From what `foretoken train --json` printed.
    fn parse(documents: &'static str, printed: &str) -> Result<Self> {
        let answer: Value = serde_json::from_str(printed.trim())
            .context("foretoken train printed something else than JSON")?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        let (seconds, data_wait_seconds) = (figure("seconds")?, figure("data_wait_seconds")?);
        ensure!(seconds > 0.0, "foretoken train says that its steps took no time: {answer}");
        let steps = answer["steps"].as_u64().with_context(|| format!("no steps in {answer}"))?;
        Ok(Self { documents, steps, seconds, data_wait_seconds })
    }

    /// Waiting over all time.
    fn share(&self) -> f64 {
        self.data_wait_seconds / self.seconds
    }

    fn bar(&self) -> String {
        let percent = WAITING_BELOW * 100.0;
        format!("training on {} documents, waiting for data, under {percent}%", self.documents)
    }

    fn found(&self) -> String {
        format!(
            "{:.3}% ({:.4} of {:.2} seconds)",
            self.share() * 100.0,
            self.data_wait_seconds,
            self.seconds
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "documents": self.documents, "steps": self.steps,
            "seconds": rounded(self.seconds, 3),
            "data_wait_seconds": rounded(self.data_wait_seconds, 6),
            "share": rounded(self.share(), 6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_waiting_is_read_from_what_a_training_prints() -> Result<()> {
        let printed = r#"{"model": "m", "steps": 200, "seconds": 4.0, "data_wait_seconds": 0.01}"#;
        let training = Training::parse("packed", &format!("{printed}\n"))?;
        assert_eq!(training.found(), "0.250% (0.0100 of 4.00 seconds)");
        assert_eq!(training.bar(), "training on packed documents, waiting for data, under 1%");
        let expected = json!({
            "documents": "packed", "steps": 200, "seconds": 4.0, "data_wait_seconds": 0.01,
            "share": 0.0025,
        });
        assert_eq!(training.to_json(), expected);
        Ok(())
    }

    #[test]
    fn a_figure_that_is_missing_is_named() {
        for (printed, named) in [
            ("3 steps", "something else than JSON"),
            (r#"{"steps": 2, "seconds": 1.0}"#, "no data_wait_seconds in"),
            (r#"{"seconds": 1.0, "data_wait_seconds": 0.0}"#, "no steps in"),
            (r#"{"steps": 0, "seconds": 0.0, "data_wait_seconds": 0.0}"#, "took no time"),
        ] {
            let error = Training::parse("joined", printed).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
