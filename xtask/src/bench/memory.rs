//! Peak memory of training steps, measured in child processes.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plan::Plan;
use super::results;
use super::statistics::{rounded, with_commas};
use super::verdicts::Verdicts;
use crate::process;
use crate::reproduce::release_binary;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The most that a step with 8 heads may take of one with 1.
const MOST_OF_EIGHT: f64 = 1.15;
/// The most that a step with 4 heads may take of one with 1.
const MOST_OF_FOUR: f64 = 1.05;
/// The most that a step with 8 heads may take of the naive one.
const MOST_OF_NAIVE: f64 = 0.5;
/// A step of the naive implementation keeps all logits: fewer sequences, so that it has room.
const NAIVE_BATCH: usize = 4;

/// One process.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    vocab: usize,
    batch: usize,
    all_at_once: bool,
}

impl Case {
    const fn new(heads: usize, vocab: usize) -> Self {
        Self { heads, vocab, batch: 8, all_at_once: false }
    }
}

/// Vocabularies that the numbers of heads are compared at.
const VOCABULARIES: [usize; 2] = [264, 32_768];

struct Bench<'a> {
    workspace: &'a Workspace,
    libtorch: &'a Libtorch,
    plan: &'a Plan,
    rows: Vec<Value>,
}

/// Prints the peaks and their ratios; whether all are within the bars.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    println!("training steps of 10 layers in all, dim 256, with Muon, a process each");
    let mut bench = Bench { workspace, libtorch, plan, rows: Vec::new() };
    let mut verdicts = Verdicts::default();
    for vocab in VOCABULARIES {
        let one = bench.peak(Case::new(1, vocab))?;
        let four = bench.peak(Case::new(4, vocab))?;
        let eight = bench.peak(Case::new(8, vocab))?;
        let what = |heads: usize| {
            format!("peak memory of n = {heads} over n = 1, {} tokens", with_commas(vocab as u64))
        };
        let mut hold = |heads, peak: f64, bar: f64| {
            let bars = format!("{} at most {bar}", what(heads));
            verdicts.add(bars, format!("{:.3}", peak / one), peak / one <= bar);
        };
        hold(4, four, MOST_OF_FOUR);
        hold(8, eight, MOST_OF_EIGHT);
    }
    let ours = Case { batch: NAIVE_BATCH, ..Case::new(8, 32_768) };
    let own = bench.peak(ours)?;
    let naive = bench.peak(Case { all_at_once: true, ..ours })?;
    verdicts.add(
        format!(
            "peak memory of n = 8 over the naive one's, 32,768 tokens, at most {MOST_OF_NAIVE}"
        ),
        format!("{:.3}", own / naive),
        own / naive <= MOST_OF_NAIVE,
    );
    println!();
    let passed = verdicts.print();
    let results = json!({
        "benchmark": "peak memory of training steps",
        "threads": plan.threads,
        "bars": {
            "most_of_four_heads": MOST_OF_FOUR, "most_of_eight_heads": MOST_OF_EIGHT,
            "most_of_naive": MOST_OF_NAIVE,
        },
        "verdicts": verdicts.to_json(),
        "rows": bench.rows,
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

impl Bench<'_> {
    /// The most resident memory of the case's process.
    fn peak(&mut self, case: Case) -> Result<f64> {
        let mut command = Command::new(release_binary(self.workspace, "step_memory"));
        self.libtorch.apply(&mut command);
        command.args(["--threads", &self.plan.threads.to_string()]);
        command.args(["--heads", &case.heads.to_string(), "--vocab", &case.vocab.to_string()]);
        command.args(["--batch", &case.batch.to_string()]);
        if case.all_at_once {
            command.arg("--all-at-once");
        }
        let mut answer: Value = serde_json::from_str(process::stdout(&mut command)?.trim())
            .context("step_memory printed something else than JSON")?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        let (peak, before) = (figure("peak_bytes")?, figure("before_bytes")?);
        println!(
            "n = {}{}, {} tokens: {:6.0} MB at most, {:5.0} MB of them before the first step, {} \
             parameters, {} tokens a step",
            case.heads,
            if case.all_at_once { ", all at once" } else { "" },
            with_commas(case.vocab as u64),
            peak / 1e6,
            before / 1e6,
            with_commas(figure("parameters")? as u64),
            with_commas(figure("tokens_per_step")? as u64),
        );
        answer["peak_megabytes"] = json!(rounded(peak / 1e6, 1));
        self.rows.push(answer);
        Ok(peak)
    }
}
