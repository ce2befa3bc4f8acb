//! Plain decoding of ours and of transformers' `generate`, on the same model folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::answers::{self, Answer, same_tokens, tokens_per_second};
use super::conversation::Conversation;
use super::peers::Peers;
use super::plan::Plan;
use super::results;
use super::statistics::{median, rounded};
use crate::process;
use crate::reproduce::foretoken;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The least that our tokens per second may be of transformers'.
const LEAST_RATIO: f64 = 2.0;
/// Turns of each side.
const ROUNDS: usize = 9;
const NEW_TOKENS: usize = 128;
const PROMPTS: [&str; 4] = [
    "def forward(self, x):\n    ",
    "import torch\nfrom torch import nn\n\n\nclass Linear(",
    "    for name, value in sorted(kwargs.items()):\n        if ",
    "    \"\"\"Returns the number of elements of the input tensor.\n\n    Args:\n",
];

/// Runs the comparison; whether the bar was passed.
pub(crate) fn run(
    workspace: &Workspace,
    libtorch: &Libtorch,
    model: Option<&Path>,
    plan: &Plan,
) -> Result<bool> {
    let peers = Peers::ensure(workspace)?;
    let model = match model {
        Some(folder) => folder.to_path_buf(),
        None => default_model(workspace, libtorch)?,
    };
    let bench = Bench { workspace, libtorch, model, threads: plan.threads };
    let mut theirs = peers.script("transformers_generate.py");
    theirs.arg("--model").arg(&bench.model).args(["--threads", &plan.threads.to_string()]);
    let (mut theirs, versions) = Conversation::start(&mut theirs)?;
    bench.ours()?;
    ask_peer(&mut theirs)?;
    let mut speeds = [Vec::new(), Vec::new()];
    let mut equal = true;
    let rounds = plan.rounds.unwrap_or(ROUNDS);
    for round in 0..rounds {
        let (ours, other) = if round % 2 == 0 {
            let ours = bench.ours()?;
            (ours, ask_peer(&mut theirs)?)
        } else {
            let other = ask_peer(&mut theirs)?;
            (bench.ours()?, other)
        };
        equal &= same_tokens(&ours, &other);
        speeds[0].push(tokens_per_second(&ours));
        speeds[1].push(tokens_per_second(&other));
    }
    let medians = [median(&speeds[0]), median(&speeds[1])];
    let ratio = medians[0] / medians[1];
    println!("model {}, {} threads, float32, greedy", bench.model.display(), plan.threads);
    println!("foretoken generate --decoding autoregressive: {:9.1} tokens/s", medians[0]);
    println!("transformers generate:                        {:9.1} tokens/s", medians[1]);
    println!(
        "ratio {ratio:.2} (bar: {LEAST_RATIO:.2}); the same tokens: {}",
        if equal { "yes" } else { "NO" }
    );
    let round = |values: &[f64]| values.iter().map(|&value| rounded(value, 2)).collect::<Vec<_>>();
    let results = json!({
        "benchmark": "plain decoding beside transformers' generate",
        "versions": versions,
        "model": bench.describe()?,
        "threads": plan.threads, "alternations": rounds,
        "prompts": PROMPTS.len(), "new_tokens_each": NEW_TOKENS,
        "ours": {"tokens_per_second": rounded(medians[0], 2), "all": round(&speeds[0])},
        "transformers": {"tokens_per_second": rounded(medians[1], 2), "all": round(&speeds[1])},
        "ratio": rounded(ratio, 3), "same_tokens": equal, "bars": {"least_ratio": LEAST_RATIO},
    });
    results::write(workspace, &plan.out, results)?;
    Ok(equal && ratio >= LEAST_RATIO)
}

/// The model of the quick reproduction, or one of our own that a minute's training makes.
fn default_model(workspace: &Workspace, libtorch: &Libtorch) -> Result<PathBuf> {
    let quick = workspace.target().join("reproduce/speed/quick/models/n4/model");
    if quick.join("config.json").is_file() {
        return Ok(quick);
    }
    let own = workspace.target().join("peers/model");
    if !own.join("model/config.json").is_file() {
        eprintln!("training a small model first");
        let mut train = foretoken(workspace, libtorch);
        train
            .arg("train")
            .arg("--config")
            .arg(workspace.root().join("crates/experiments/configs/tiny.toml"));
        train.arg("--out").arg(&own).args(["--set", "train.steps=300"]);
        process::run(&mut train)?;
    }
    Ok(own.join("model"))
}

struct Bench<'a> {
    workspace: &'a Workspace,
    libtorch: &'a Libtorch,
    model: PathBuf,
    threads: usize,
}

impl Bench<'_> {
    fn ours(&self) -> Result<Vec<Answer>> {
        let mut generate = foretoken(self.workspace, self.libtorch);
        generate.arg("generate").arg("--model").arg(&self.model);
        let path = self.workspace.target().join("peers/prompts.jsonl");
        answers::ours(generate, &path, &PROMPTS, NEW_TOKENS, self.threads)
    }

    /// The sizes of the model, from its `config.json`.
    fn describe(&self) -> Result<Value> {
        let path = self.model.join("config.json");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        Ok(json!({
            "layers": config["num_hidden_layers"], "dim": config["hidden_size"],
            "ffn": config["intermediate_size"], "vocab": config["vocab_size"],
        }))
    }
}

/// The peer answers the same prompts.
fn ask_peer(conversation: &mut Conversation) -> Result<Vec<Answer>> {
    answers::theirs(conversation, &PROMPTS, NEW_TOKENS)
}
