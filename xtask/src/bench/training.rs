//! Training steps of ours and of plain PyTorch, from the same weights on the same batches.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Plan;
use super::conversation::Conversation;
use super::peers::Peers;
use super::results::{self, has_bfloat16_products};
use super::statistics::{median, rounded};
use crate::process;
use crate::reproduce::release_binary;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// What a next-token loss may differ by.
const LOSS_TOLERANCE: f64 = 0.02;
/// The least that our steps per second may be of PyTorch's.
const LEAST_RATIO: f64 = 0.97;
/// How long one turn should take.
const TURN_SECONDS: f64 = 1.0;

/// A network to train; vocabulary 264, sequences of 256.
struct Size {
    name: &'static str,
    layers: usize,
    dim: usize,
    attention_heads: usize,
    ffn: usize,
}

const SIZES: [Size; 3] = [
    Size { name: "0.3M", layers: 6, dim: 64, attention_heads: 2, ffn: 172 },
    Size { name: "1.2M", layers: 6, dim: 128, attention_heads: 4, ffn: 344 },
    Size { name: "9.9M", layers: 8, dim: 320, attention_heads: 5, ffn: 864 },
];

/// Runs the comparison; whether every bar was passed.
pub(crate) fn run(workspace: &Workspace, libtorch: &Libtorch, plan: &Plan) -> Result<bool> {
    ensure!(plan.rounds >= 7, "--rounds {}: this comparison takes at least 7", plan.rounds);
    let peers = Peers::ensure(workspace)?;
    let mut rows = Vec::new();
    let mut passed = true;
    for optimizer in ["adamw", "muon"] {
        for heads in [1, 4] {
            for size in &SIZES {
                let job = Job { workspace, libtorch, size, optimizer, heads };
                let (row, good) = job.compare(&peers, plan)?;
                passed &= good;
                rows.push(row);
            }
        }
    }
    let results = json!({
        "benchmark": "training steps beside plain PyTorch (eager)",
        "threads": plan.threads,
        "alternations": plan.rounds,
        "bars": {"least_ratio": LEAST_RATIO, "loss_tolerance": LOSS_TOLERANCE},
        "rows": rows,
    });
    results::write(workspace, &plan.out, results)?;
    Ok(passed)
}

struct Job<'a> {
    workspace: &'a Workspace,
    libtorch: &'a Libtorch,
    size: &'a Size,
    optimizer: &'a str,
    heads: usize,
}

impl Job<'_> {
    fn compare(&self, peers: &Peers, plan: &Plan) -> Result<(Value, bool)> {
        let folder = self.workspace.target().join("peers/job");
        // A first, short job says how many steps make a turn.
        self.prepare(&folder, 200)?;
        let turn = {
            let (mut ours, _) = Conversation::start(&mut self.ours(&folder, plan.threads))?;
            seconds(&ours.ask("steps 5")?)?;
            (TURN_SECONDS / (seconds(&ours.ask("steps 10")?)? / 10.0)).clamp(3.0, 400.0) as usize
        };
        self.prepare(&folder, turn * (plan.rounds + 1))?;
        let (mut ours, greeting) = Conversation::start(&mut self.ours(&folder, plan.threads))?;
        let mut theirs = peers.script("pytorch_train.py");
        theirs.arg("--job").arg(&folder).args(["--threads", &plan.threads.to_string()]);
        let (mut theirs, their_greeting) = Conversation::start(&mut theirs)?;
        ensure!(
            greeting["parameters"] == their_greeting["parameters"],
            "the networks differ in size"
        );
        let mut sides = [Side::default(), Side::default()];
        for round in 0..=plan.rounds {
            for turn_of in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let speaker = if turn_of == 0 { &mut ours } else { &mut theirs };
                let answer = speaker.ask(&format!("steps {turn}"))?;
                // Round 0 warms up.
                sides[turn_of].take(&answer, turn, round > 0)?;
            }
        }
        for (side, speaker) in sides.iter_mut().zip([&mut ours, &mut theirs]) {
            let answer = speaker.ask("evaluate")?;
            side.held_out = answer["losses"][0].as_f64().context("no held-out loss")?;
        }
        Ok(self.judge(&sides, &greeting, turn * (plan.rounds + 1)))
    }

    fn judge(&self, [ours, theirs]: &[Side; 2], greeting: &Value, steps: usize) -> (Value, bool) {
        let speeds = [median(&ours.speeds), median(&theirs.speeds)];
        let ratio = speeds[0] / speeds[1];
        let difference = (ours.held_out - theirs.held_out).abs() / theirs.held_out;
        let good = ratio >= LEAST_RATIO && difference <= LOSS_TOLERANCE;
        println!(
            "{:>5} parameters, {:>5}, n = {}: {:8.2} steps/s, PyTorch {:8.2}, ratio {ratio:.2}; loss after \
             {steps} steps {:.4}, PyTorch {:.4}{}",
            self.size.name,
            self.optimizer,
            self.heads,
            speeds[0],
            speeds[1],
            ours.held_out,
            theirs.held_out,
            if good { "" } else { "  ← misses the bar" }
        );
        let side = |side: &Side, speed: f64| {
            json!({
                "steps_per_second": rounded(speed, 3),
                "all": side.speeds.iter().map(|&speed| rounded(speed, 3)).collect::<Vec<_>>(),
                "first_loss": side.first_loss,
                "held_out_loss": side.held_out,
            })
        };
        let row = json!({
            "name": self.size.name, "optimizer": self.optimizer, "heads": self.heads,
            "layers": self.size.layers, "dim": self.size.dim, "ffn": self.size.ffn,
            "parameters": greeting["parameters"], "tokens_per_step": greeting["tokens_per_step"],
            "steps": steps,
            "ours": side(ours, speeds[0]), "pytorch": side(theirs, speeds[1]),
            "ratio": rounded(ratio, 3), "loss_difference": rounded(difference, 5),
        });
        (row, good)
    }

    fn prepare(&self, folder: &std::path::Path, steps: usize) -> Result<()> {
        let size = self.size;
        let precision = if has_bfloat16_products() { "bfloat16" } else { "float32" };
        let sets = [
            format!("model.layers={}", size.layers),
            format!("model.dim={}", size.dim),
            format!("model.attention_heads={}", size.attention_heads),
            format!("model.ffn={}", size.ffn),
            format!("heads.count={}", self.heads),
            format!("optimizer.type={}", self.optimizer),
            format!("optimizer.muon_precision={precision}"),
            format!("train.steps={steps}"),
        ];
        let mut command = self.binary();
        command
            .arg("prepare")
            .arg("--recipe")
            .arg(self.workspace.root().join("benches/peers/training.toml"));
        command.arg("--corpus").arg(self.workspace.python_code());
        command
            .arg("--shards")
            .arg(self.workspace.target().join("peers/shards"))
            .arg("--job")
            .arg(folder);
        for set in &sets {
            command.args(["--set", set]);
        }
        process::run(&mut command)
    }

    fn ours(&self, folder: &std::path::Path, threads: usize) -> Command {
        let mut command = self.binary();
        command.arg("serve").arg("--job").arg(folder).args(["--threads", &threads.to_string()]);
        command
    }

    fn binary(&self) -> Command {
        let mut command = Command::new(release_binary(self.workspace, "train_steps"));
        self.libtorch.apply(&mut command);
        command
    }
}

/// What one side measured.
#[derive(Default)]
struct Side {
    /// Steps per second of each turn.
    speeds: Vec<f64>,
    first_loss: Option<f64>,
    held_out: f64,
}

impl Side {
    fn take(&mut self, answer: &Value, steps: usize, counts: bool) -> Result<()> {
        if self.first_loss.is_none() {
            self.first_loss = answer["losses"][0].as_f64();
        }
        if counts {
            self.speeds.push(steps as f64 / seconds(answer)?);
        }
        Ok(())
    }
}

fn seconds(answer: &Value) -> Result<f64> {
    answer["seconds"].as_f64().with_context(|| format!("no time in the answer {answer}"))
}
