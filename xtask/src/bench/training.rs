//! Training steps of ours, of plain PyTorch and of `torch.compile`, from the same weights on the
//! same batches.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::job::Job;
use super::peers::Peers;
use super::plan::{Plan, Row, pytorch_rows};
use super::results;
use super::statistics::{geometric_mean, rounded, with_commas};
use super::turns::{Ratio, Side, take_turns, warm_up};
use super::verdicts::Verdicts;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// What a next-token loss may differ by.
const LOSS_TOLERANCE: f64 = 0.02;
/// The least that our steps per second may be of PyTorch's in any row.
const LEAST_RATIO: f64 = 0.97;
/// What they are to be where the logits are most of a step.
const LEAST_RATIO_OF_LOGITS: f64 = 1.15;

/// What a row showed.
struct Outcome {
    id: String,
    logits_dominate: bool,
    ratio: f64,
    compiled: Option<f64>,
    loss_difference: f64,
    json: Value,
}

/// Runs the comparison; whether every bar was passed.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    let wanted = |row: &Row| plan.wants(&row.id()) && plan.light_enough(row.load);
    let rows: Vec<Row> = pytorch_rows().into_iter().filter(wanted).collect();
    if rows.is_empty() {
        let names: Vec<String> = pytorch_rows().iter().map(Row::id).collect();
        bail!("no row has such a name; there are {}", names.join(", "));
    }
    let peers = Peers::ensure(workspace)?;
    let bench = Bench { job: Job::new(workspace, libtorch, "job"), peers, plan };
    println!(
        "training steps a second, {} threads; ratios are medians (and quartiles) of paired turns",
        plan.threads
    );
    let outcomes: Vec<Outcome> = rows.iter().map(|row| bench.row(row)).collect::<Result<_>>()?;
    let verdicts = judge(&outcomes);
    println!();
    let passed = verdicts.print();
    say_where_compiled_is_faster(&outcomes);
    let rows: Vec<Value> = outcomes.into_iter().map(|outcome| outcome.json).collect();
    let results = json!({
        "benchmark": "training steps beside plain PyTorch (eager) and torch.compile",
        "threads": plan.threads,
        "bars": {
            "least_ratio": LEAST_RATIO, "loss_tolerance": LOSS_TOLERANCE,
            "least_ratio_of_logits": LEAST_RATIO_OF_LOGITS, "least_mean_ratio": 1.0,
        },
        "bound": "seconds = flops / flops_per_second + orthogonalise_seconds + update_bytes / \
                  bytes_per_second; most_ratio = PyTorch's seconds a step / seconds",
        "verdicts": verdicts.to_json(),
        "rows": rows,
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

fn judge(outcomes: &[Outcome]) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let of = |wanted: &dyn Fn(&Outcome) -> bool| -> Vec<(String, f64)> {
        let chosen = outcomes.iter().filter(|outcome| wanted(outcome));
        chosen.map(|outcome| (outcome.id.clone(), outcome.ratio)).collect()
    };
    verdicts.each_at_least("ratio to PyTorch eager", LEAST_RATIO, &of(&|_| true));
    let what = "ratio to PyTorch eager where the logits dominate";
    verdicts.each_at_least(what, LEAST_RATIO_OF_LOGITS, &of(&|outcome| outcome.logits_dominate));
    let ratios: Vec<f64> = outcomes.iter().map(|outcome| outcome.ratio).collect();
    let mean = geometric_mean(&ratios);
    verdicts.add(
        "geometric mean of the ratios to PyTorch eager above 1",
        format!("{mean:.3} over {} rows", ratios.len()),
        mean > 1.0,
    );
    let losses: Vec<(String, f64)> =
        outcomes.iter().map(|outcome| (outcome.id.clone(), outcome.loss_difference)).collect();
    verdicts.each_at_most("difference of the losses", LOSS_TOLERANCE, &losses);
    verdicts
}

/// `torch.compile` is no bar, but where it is ahead of us is said.
fn say_where_compiled_is_faster(outcomes: &[Outcome]) {
    let all: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.compiled).collect();
    if all.is_empty() {
        println!("torch.compile took no part");
        return;
    }
    let behind: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| Some((&outcome.id, outcome.compiled.filter(|&ratio| ratio < 1.0)?)))
        .map(|(id, ratio)| format!("{ratio:.3} at {id}"))
        .collect();
    let (mean, rows) = (geometric_mean(&all), all.len());
    println!("ratio to torch.compile: geometric mean {mean:.3} over {rows} rows");
    match behind.is_empty() {
        true => println!("  at least 1 in each"),
        false => println!(
            "  under 1: {}; docs/benchmarks.md says what would close it",
            behind.join(", ")
        ),
    }
}

struct Bench<'a> {
    job: Job<'a>,
    peers: Peers,
    plan: &'a Plan,
}

impl Bench<'_> {
    fn row(&self, row: &Row) -> Result<Outcome> {
        let (turn, rounds) = (row.load.turn, self.plan.rounds(row.load));
        let steps = warm_up(turn) + turn * rounds;
        self.job.prepare(row, steps)?;
        let mut sides =
            vec![Side::start(self.job.ours(self.plan.threads))?, Side::start(self.theirs(false))?];
        if self.plan.compiled {
            sides.push(Side::start(self.theirs(true))?.optional());
        }
        for side in &sides {
            ensure!(
                side.greeting["parameters"] == sides[0].greeting["parameters"],
                "{}: the networks differ in size",
                row.id()
            );
        }
        take_turns(&mut sides, turn, rounds)?;
        for side in &mut sides {
            side.evaluate()?;
        }
        let bound = sides[0].ask("bound")?.context("our side gave no bound")?;
        Measured { row, steps, sides: &sides, bound }.outcome()
    }

    fn theirs(&self, compiled: bool) -> std::process::Command {
        let mut command = self.peers.script("pytorch_train.py");
        command.arg("--job").arg(self.job.folder());
        command.args(["--threads", &self.plan.threads.to_string()]);
        if compiled {
            command.arg("--compile");
        }
        command
    }
}

/// A row whose sides are through.
struct Measured<'a> {
    row: &'a Row,
    steps: usize,
    /// Ours, PyTorch, and `torch.compile` where it takes part.
    sides: &'a [Side],
    bound: Value,
}

impl Measured<'_> {
    fn outcome(&self) -> Result<Outcome> {
        let [ours, eager] = [&self.sides[0], &self.sides[1]];
        let ratio = Ratio::of(ours, eager).context("PyTorch's side has no turns")?;
        let compiled = self.sides.get(2);
        let compiled_ratio = compiled.and_then(|side| Ratio::of(ours, side));
        let loss_difference = self.loss_difference()?;
        let bound = self.bound()?;
        self.print(&ratio, compiled_ratio.as_ref(), loss_difference, &bound)?;
        let mut json = self.describe()?;
        let (median, spread) = ratio.figures();
        json.extend(entries(json!({
            "ours": ours.to_json(), "pytorch": eager.to_json(),
            "ratio": median, "ratio_quartiles": spread,
        })));
        if let Some(side) = compiled {
            json.extend(entries(json!({ "pytorch_compiled": side.to_json() })));
        }
        if let Some((median, spread)) = compiled_ratio.as_ref().map(Ratio::figures) {
            json.extend(entries(json!({
                "ratio_to_compiled": median, "ratio_to_compiled_quartiles": spread,
            })));
        }
        json.extend(entries(json!({
            "loss_difference": rounded(loss_difference, 5), "bound": bound.json,
        })));
        Ok(Outcome {
            id: self.row.id(),
            logits_dominate: self.row.logits_dominate(),
            ratio: ratio.median(),
            compiled: compiled_ratio.map(|ratio| ratio.median()),
            loss_difference,
            json: Value::Object(json),
        })
    }

    /// The largest share that a peer's held-out loss differs from ours by.
    fn loss_difference(&self) -> Result<f64> {
        let ours = self.sides[0].held_out.context("our side gave no held-out loss")?;
        let theirs = self.sides[1..].iter().filter_map(|side| side.held_out);
        Ok(theirs.map(|loss| (ours - loss).abs() / loss).fold(0.0, f64::max))
    }

    /// What the row is, with its real counts.
    fn describe(&self) -> Result<Map<String, Value>> {
        let (row, size) = (self.row, self.row.load.size);
        let greeting = &self.sides[0].greeting;
        let flops = self.sides[0].figure("flops_per_step")?;
        Ok(entries(json!({
            "name": row.id(), "optimizer": row.optimizer, "heads": row.heads,
            "layers": size.layers, "dim": size.dim, "ffn": size.ffn,
            "vocab": greeting["vocab"],
            "parameters": greeting["parameters"],
            "non_embedding_parameters": greeting["non_embedding_parameters"],
            "tokens_per_step": greeting["tokens_per_step"],
            "flops_per_step": flops,
            "steps": self.steps, "steps_per_turn": row.load.turn,
        })))
    }

    fn bound(&self) -> Result<LeastTime> {
        let figure = |name: &str| {
            let value = self.bound[name].as_f64();
            value.with_context(|| format!("no {name} in the bound {}", self.bound))
        };
        let seconds = figure("seconds")?;
        let most_ratio = 1.0 / self.sides[1].speed() / seconds;
        let reached = seconds * self.sides[0].speed();
        let (products, traffic) = (figure("product_seconds")?, figure("traffic_seconds")?);
        let json = json!({
            "flops": figure("flops")?,
            "flops_per_second": figure("flops_per_second")?.round(),
            "orthogonalise_seconds": rounded(figure("orthogonalise_seconds")?, 6),
            "update_bytes": figure("update_bytes")?,
            "bytes_per_second": figure("bytes_per_second")?.round(),
            "seconds": rounded(seconds, 6),
            "most_ratio": rounded(most_ratio, 3), "ours_reaches": rounded(reached, 3),
        });
        Ok(LeastTime { products, traffic, most_ratio, reached, json })
    }

    fn print(
        &self,
        ratio: &Ratio,
        compiled_ratio: Option<&Ratio>,
        loss_difference: f64,
        bound: &LeastTime,
    ) -> Result<()> {
        let [ours, eager] = [&self.sides[0], &self.sides[1]];
        let count = |name: &str| Ok::<_, anyhow::Error>(with_commas(ours.figure(name)? as u64));
        println!(
            "\n{}: {} parameters and embeddings for {} tokens, {} tokens a step",
            self.row.id(),
            count("non_embedding_parameters")?,
            count("vocab")?,
            count("tokens_per_step")?,
        );
        let below = |ratio: f64, bar: f64| if ratio < bar { "  ← misses the bar" } else { "" };
        println!(
            "  ours {:.3}, PyTorch eager {:.3}: ratio {}{}",
            ours.speed(),
            eager.speed(),
            ratio.line(),
            below(ratio.median(), LEAST_RATIO)
        );
        match (self.sides.get(2), compiled_ratio) {
            (Some(side), Some(ratio)) => {
                println!("  torch.compile {:.3}: ratio {}", side.speed(), ratio.line());
            }
            (Some(Side { failed: Some(why), .. }), _) => {
                println!("  torch.compile failed: {why}");
            }
            _ => {}
        }
        println!(
            "  bound: products {:.1} ms + update's traffic {:.1} ms a step, at most {:.2} times \
             eager's speed, {:.0}% of it reached",
            1e3 * bound.products,
            1e3 * bound.traffic,
            bound.most_ratio,
            100.0 * bound.reached
        );
        if self.row.logits_dominate() {
            println!(
                "  the logits dominate: bar {LEAST_RATIO_OF_LOGITS}{}",
                below(ratio.median(), LEAST_RATIO_OF_LOGITS)
            );
        }
        println!(
            "  loss after {} steps {:.4}, PyTorch {:.4}{}",
            self.steps,
            ours.held_out.unwrap_or(f64::NAN),
            eager.held_out.unwrap_or(f64::NAN),
            if loss_difference > LOSS_TOLERANCE { "  ← differs" } else { "" }
        );
        Ok(())
    }
}

/// The least time that a step takes on this machine, and what follows from it.
struct LeastTime {
    /// Seconds in products of matrices.
    products: f64,
    /// Seconds in which the update moves weights, gradients and optimiser state.
    traffic: f64,
    /// How many times as fast as PyTorch a step could be.
    most_ratio: f64,
    /// Our share of the fastest possible.
    reached: f64,
    json: Value,
}

fn entries(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
