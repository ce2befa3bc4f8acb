//! Our trainer beside itself: four heads beside one, one setting beside another.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::job::Job;
use super::plan::{LOADS, Load, Plan, Row};
use super::results;
use super::statistics::rounded;
use super::turns::{Ratio, Side, take_turns, warm_up};
use super::verdicts::Verdicts;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The most that four heads' time over one's may be of the ratio of their operations.
const MOST_OVER_OPERATIONS: f64 = 1.05;

/// A training that is measured against another of the same size.
struct Pair {
    what: What,
    row: Row,
    base: Row,
}

/// What a pair differs in.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// n = 4 against n = 1 at equal parameters.
    Heads,
    /// All heads in one pass against one after the other.
    Grouped,
    /// bfloat16 against float32.
    Bfloat16,
}

impl What {
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Heads => ["n = 4", "n = 1"],
            Self::Grouped => ["grouped heads", "sequential heads"],
            Self::Bfloat16 => ["bfloat16", "float32"],
        }
    }

    fn slug(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Grouped => "grouped",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

impl Pair {
    fn new(what: What, load: &'static Load) -> Self {
        let four = || Row::new(load, 4, "adamw");
        let (row, base) = match what {
            What::Heads => (four(), Row::new(load, 1, "adamw")),
            What::Grouped => {
                (four().with("heads.execution=grouped"), four().with("heads.execution=sequential"))
            }
            What::Bfloat16 => (four().with("train.precision=bfloat16"), four()),
        };
        Self { what, row, base }
    }

    /// `WHAT/SIZE/VOCABULARY`.
    fn id(&self) -> String {
        let row = self.base.id();
        let place = row.split("/n").next().unwrap_or_default();
        format!("{}/{place}", self.what.slug())
    }
}

fn pairs() -> Vec<Pair> {
    let all = |what: What| LOADS.iter().map(move |load| Pair::new(what, load));
    all(What::Heads).chain(all(What::Grouped)).chain(all(What::Bfloat16)).collect()
}

/// Runs the comparisons; whether every bar was passed.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    let wanted = |pair: &Pair| plan.wants(&pair.id()) && plan.light_enough(pair.row.load);
    let chosen: Vec<Pair> = pairs().into_iter().filter(wanted).collect();
    if chosen.is_empty() {
        let names: Vec<String> = pairs().iter().map(Pair::id).collect();
        bail!("no row has such a name; there are {}", names.join(", "));
    }
    println!(
        "our steps, {} threads, AdamW; ratios are medians (and quartiles) of paired turns",
        plan.threads
    );
    let jobs = ["job-a", "job-b"].map(|name| Job::new(workspace, libtorch, name));
    let (mut rows, mut over_operations) = (Vec::new(), Vec::new());
    for pair in &chosen {
        let (row, over) = compare(pair, &jobs, plan)?;
        rows.push(row);
        over_operations.extend(over.map(|over| (pair.id(), over)));
    }
    let mut verdicts = Verdicts::default();
    let what = "n = 4 over n = 1, time ratio over operations ratio";
    verdicts.each_at_most(what, MOST_OVER_OPERATIONS, &over_operations);
    println!();
    let passed = verdicts.print();
    let results = json!({
        "benchmark": "training steps of ours beside ours",
        "threads": plan.threads,
        "bars": {"most_time_over_operations": MOST_OVER_OPERATIONS},
        "verdicts": verdicts.to_json(),
        "rows": rows,
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

/// A pair's row, and what is held against the bar if there is one.
fn compare(pair: &Pair, jobs: &[Job<'_>; 2], plan: &Plan) -> Result<(Value, Option<f64>)> {
    let (id, [name, base_name]) = (pair.id(), pair.what.names());
    let (turn, rounds) = (pair.row.load.turn, plan.rounds(pair.row.load));
    let steps = warm_up(turn) + turn * rounds;
    let mut sides = Vec::new();
    for (job, row) in jobs.iter().zip([&pair.row, &pair.base]) {
        if let Some(refusal) = job.try_prepare(row, steps)? {
            // A build without grouped heads does not know the key.
            let unknown = pair.what == What::Grouped && refusal.contains("execution");
            ensure!(unknown, "{id} cannot be prepared: {refusal}");
            println!("\n{id}: left out, {refusal}");
            return Ok((json!({"name": id, "left_out": refusal}), None));
        }
        sides.push(Side::start(job.ours(plan.threads))?);
    }
    ensure!(
        sides[0].greeting["parameters"] == sides[1].greeting["parameters"],
        "{id}: the networks differ in size"
    );
    take_turns(&mut sides, turn, rounds)?;
    let faster = Ratio::of(&sides[0], &sides[1]).context("a side has no turns")?;
    let operations = sides[0].figure("flops_per_step")? / sides[1].figure("flops_per_step")?;
    println!(
        "\n{id}: {name} {:.3} steps/s, {base_name} {:.3}: speed ratio {}",
        sides[0].speed(),
        sides[1].speed(),
        faster.line()
    );
    let (median, spread) = faster.figures();
    let mut row = json!({
        "name": id, "of": name, "over": base_name,
        "parameters": sides[0].greeting["parameters"],
        "non_embedding_parameters": sides[0].greeting["non_embedding_parameters"],
        "vocab": sides[0].greeting["vocab"],
        "tokens_per_step": sides[0].greeting["tokens_per_step"],
        "steps": steps, "steps_per_turn": turn,
        "sides": [sides[0].to_json(), sides[1].to_json()],
        "speed_ratio": median, "speed_ratio_quartiles": spread,
    });
    if pair.what != What::Heads {
        return Ok((row, None));
    }
    let time = 1.0 / faster.median();
    let over = time / operations;
    println!(
        "  time ratio {time:.3} at {operations:.3} times the operations: {over:.3} (bar: \
         {MOST_OVER_OPERATIONS}){}",
        if over <= MOST_OVER_OPERATIONS { "" } else { "  ← misses the bar" }
    );
    row["time_ratio"] = json!(rounded(time, 3));
    row["operations_ratio"] = json!(rounded(operations, 4));
    row["time_over_operations"] = json!(rounded(over, 3));
    Ok((row, Some(over)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_names_of_their_own_and_differ_in_one_thing() {
        let pairs = pairs();
        let names: std::collections::BTreeSet<String> = pairs.iter().map(Pair::id).collect();
        assert_eq!(names.len(), pairs.len());
        assert!(names.contains("heads/50M/32768") && names.contains("grouped/1M/bytes"));
        for pair in &pairs {
            let same_heads = pair.row.heads == pair.base.heads;
            assert!(same_heads != (pair.what == What::Heads));
        }
    }
}
