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
/// A step that computes the trunk's blocks again takes less than so much of one that keeps them.
const RECOMPUTED_BELOW: f64 = 1.0;
/// A step of the naive implementation keeps all logits: fewer sequences, so that it has room.
const NAIVE_BATCH: usize = 4;
/// Tokens in a sequence where the trunk's blocks are kept or computed again.
const LONG_SEQUENCE: usize = 1024;

/// One process.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    vocab: usize,
    batch: usize,
    sequence: usize,
    all_at_once: bool,
    /// A further key of the recipe, `section.key=value`.
    set: Option<&'static str>,
}

impl Case {
    const fn new(heads: usize, vocab: usize) -> Self {
        Self { heads, vocab, batch: 8, sequence: 512, all_at_once: false, set: None }
    }

    const fn with(self, set: &'static str) -> Self {
        Self { set: Some(set), ..self }
    }
}

/// What a process took.
#[derive(Clone, Copy)]
struct Taken {
    /// The most resident memory.
    bytes: f64,
    /// The shortest step.
    seconds: f64,
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
    let sequential = bench.by_heads(&mut verdicts)?;
    bench.beside_naive(&mut verdicts)?;
    let grouped = bench.grouped(sequential)?;
    let recomputed = bench.recomputed(&mut verdicts)?;
    println!();
    for pair in grouped.iter().chain([&recomputed]) {
        println!("{}", pair.line());
    }
    println!();
    let passed = verdicts.print();
    let results = json!({
        "benchmark": "peak memory of training steps",
        "threads": plan.threads,
        "bars": {
            "most_of_four_heads": MOST_OF_FOUR, "most_of_eight_heads": MOST_OF_EIGHT,
            "most_of_naive": MOST_OF_NAIVE, "recomputed_below": RECOMPUTED_BELOW,
        },
        "verdicts": verdicts.to_json(),
        "grouped_over_sequential": grouped.iter().map(Pair::to_json).collect::<Vec<_>>(),
        "recomputed_over_kept": [recomputed.to_json()],
        "rows": bench.rows,
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

impl Bench<'_> {
    /// More heads against one. What four heads take at each of [`VOCABULARIES`].
    fn by_heads(&mut self, verdicts: &mut Verdicts) -> Result<[Taken; 2]> {
        let mut at = |vocab: usize| -> Result<Taken> {
            let one = self.take(Case::new(1, vocab))?;
            let four = self.take(Case::new(4, vocab))?;
            let eight = self.take(Case::new(8, vocab))?;
            for (heads, taken, bar) in [(4, four, MOST_OF_FOUR), (8, eight, MOST_OF_EIGHT)] {
                let ratio = taken.bytes / one.bytes;
                verdicts.add(
                    format!(
                        "peak memory of n = {heads} over n = 1, {} tokens at most {bar}",
                        with_commas(vocab as u64)
                    ),
                    format!("{ratio:.3}"),
                    ratio <= bar,
                );
            }
            Ok(four)
        };
        let [few, many] = VOCABULARIES;
        Ok([at(few)?, at(many)?])
    }

    /// Head by head against all heads in one graph.
    fn beside_naive(&mut self, verdicts: &mut Verdicts) -> Result<()> {
        let ours = Case { batch: NAIVE_BATCH, ..Case::new(8, 32_768) };
        let own = self.take(ours)?;
        let naive = self.take(Case { all_at_once: true, ..ours })?;
        let ratio = own.bytes / naive.bytes;
        verdicts.add(
            format!(
                "peak memory of n = 8 over the naive one's, 32,768 tokens, at most {MOST_OF_NAIVE}"
            ),
            format!("{ratio:.3}"),
            ratio <= MOST_OF_NAIVE,
        );
        Ok(())
    }

    /// Four heads in one pass against the same one after the other, which are measured already.
    fn grouped(&mut self, sequential: [Taken; 2]) -> Result<Vec<Pair>> {
        let pair = |(vocab, sequential): (usize, Taken)| -> Result<Pair> {
            let case = Case::new(4, vocab);
            let grouped = self.take(case.with("heads.execution=grouped"))?;
            let names = ["grouped heads", "sequential heads"];
            Ok(Pair { names, case, sides: [grouped, sequential] })
        };
        VOCABULARIES.into_iter().zip(sequential).map(pair).collect()
    }

    /// The trunk's blocks computed again in the backward pass against kept ones.
    fn recomputed(&mut self, verdicts: &mut Verdicts) -> Result<Pair> {
        let case = Case { sequence: LONG_SEQUENCE, ..Case::new(4, 264) };
        let kept = self.take(case)?;
        let again = self.take(case.with("train.recompute=true"))?;
        let names = ["recomputed blocks", "kept blocks"];
        let pair = Pair { names, case, sides: [again, kept] };
        verdicts.add(
            format!("peak memory of {}, under {RECOMPUTED_BELOW}", pair.what()),
            format!("{:.3}", pair.peak_ratio()),
            pair.peak_ratio() < RECOMPUTED_BELOW,
        );
        Ok(pair)
    }

    /// What the case's process takes.
    fn take(&mut self, case: Case) -> Result<Taken> {
        let mut command = Command::new(release_binary(self.workspace, "step_memory"));
        self.libtorch.apply(&mut command);
        command.args(["--threads", &self.plan.threads.to_string()]);
        command.args(["--heads", &case.heads.to_string(), "--vocab", &case.vocab.to_string()]);
        command.args(["--batch", &case.batch.to_string()]);
        command.args(["--sequence", &case.sequence.to_string()]);
        if case.all_at_once {
            command.arg("--all-at-once");
        }
        if let Some(set) = case.set {
            command.args(["--set", set]);
        }
        let mut answer: Value = serde_json::from_str(process::stdout(&mut command)?.trim())
            .context("step_memory printed something else than JSON")?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        let (peak, before) = (figure("peak_bytes")?, figure("before_bytes")?);
        let seconds = figure("step_seconds")?;
        println!(
            "n = {}{}{}, {} tokens: {:6.0} MB at most, {:5.0} MB of them before the first step, {} \
             parameters, {} tokens a step in {seconds:.2} s",
            case.heads,
            if case.all_at_once { ", all at once" } else { "" },
            case.set.map_or_else(String::new, |set| format!(", {set}")),
            with_commas(case.vocab as u64),
            peak / 1e6,
            before / 1e6,
            with_commas(figure("parameters")? as u64),
            with_commas(figure("tokens_per_step")? as u64),
        );
        answer["peak_megabytes"] = json!(rounded(peak / 1e6, 1));
        self.rows.push(answer);
        Ok(Taken { bytes: peak, seconds })
    }
}

/// Two ways to take the same step.
struct Pair {
    names: [&'static str; 2],
    /// As the second one takes it.
    case: Case,
    sides: [Taken; 2],
}

impl Pair {
    fn peak_ratio(&self) -> f64 {
        self.sides[0].bytes / self.sides[1].bytes
    }

    fn time_ratio(&self) -> f64 {
        self.sides[0].seconds / self.sides[1].seconds
    }

    /// Which of which, of what size.
    fn what(&self) -> String {
        let ([name, base], Case { heads, vocab, batch, sequence, .. }) = (self.names, self.case);
        let [vocab, sequence] = [vocab, sequence].map(|number| with_commas(number as u64));
        format!("{name} over {base}, n = {heads}, {vocab} tokens, {batch} sequences of {sequence}")
    }

    fn line(&self) -> String {
        let (peak, time) = (self.peak_ratio(), self.time_ratio());
        format!("{}: {peak:.3} of the memory, {time:.3} of the time", self.what())
    }

    fn to_json(&self) -> Value {
        let Case { heads, vocab, batch, sequence, .. } = self.case;
        json!({
            "of": self.names[0], "over": self.names[1],
            "heads": heads, "vocab": vocab, "batch": batch, "sequence": sequence,
            "peak_megabytes": self.sides.map(|taken| rounded(taken.bytes / 1e6, 1)),
            "peak_ratio": rounded(self.peak_ratio(), 3),
            "step_seconds": self.sides.map(|taken| rounded(taken.seconds, 4)),
            "step_time_ratio": rounded(self.time_ratio(), 3),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_says_what_the_first_takes_of_the_second() {
        let sides = [Taken { bytes: 6e8, seconds: 3.0 }, Taken { bytes: 8e8, seconds: 2.0 }];
        let case = Case { sequence: LONG_SEQUENCE, ..Case::new(4, 32_768) };
        let pair = Pair { names: ["a", "b"], case, sides };
        assert_eq!(
            pair.line(),
            "a over b, n = 4, 32,768 tokens, 8 sequences of 1,024: 0.750 of the memory, 1.500 of \
             the time"
        );
        let json = pair.to_json();
        assert_eq!(json["peak_megabytes"], json!([600.0, 800.0]));
        assert_eq!(json["peak_ratio"].as_f64(), Some(0.75));
        assert_eq!(json["step_time_ratio"].as_f64(), Some(1.5));
    }
}
