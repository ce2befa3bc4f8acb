//! The two sides: ours, a fresh process each time, and transformers', which stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::conversation::Conversation;
use crate::bench::peers::Peers;
use crate::process;
use crate::reproduce::{foretoken, release_binary};
use crate::setup::Libtorch;
use crate::workspace::Workspace;

const SCRIPT: &str = "pretrained.py";
/// Prompts of a held-back list.
const HELD_BACK: usize = 40;

/// What one side made of a prompt.
pub(super) struct Answer {
    /// The new tokens.
    pub(super) tokens: Vec<u64>,
    /// Without loading.
    pub(super) seconds: f64,
}

impl Answer {
    fn new(tokens: &Value, seconds: Option<f64>) -> Result<Self> {
        let seconds = seconds.context("an answer without a time")?;
        Ok(Self { tokens: ids(tokens)?, seconds })
    }
}

/// The ids of a JSON array.
fn ids(array: &Value) -> Result<Vec<u64>> {
    let ids = array.as_array().context("an answer without tokens")?;
    ids.iter().map(|id| id.as_u64().with_context(|| format!("{id} is no token's number"))).collect()
}

/// Our binaries.
pub(super) struct Ours<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) libtorch: &'a Libtorch,
    pub(super) model: &'a Path,
    pub(super) threads: usize,
}

impl Ours<'_> {
    /// `foretoken ACTION` on the model.
    pub(super) fn foretoken(&self, action: &str) -> Command {
        let mut command = foretoken(self.workspace, self.libtorch);
        command.arg(action).arg("--model").arg(self.model);
        command
    }

    /// A program of the benchmarks, on the model.
    pub(super) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(release_binary(self.workspace, name));
        self.libtorch.apply(&mut command);
        command.arg("--model").arg(self.model);
        command
    }

    /// A file that a check leaves for one of the sides.
    pub(super) fn file(&self, name: &str) -> Result<PathBuf> {
        let folder = self.workspace.target().join("peers/compare");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder.join(name))
    }

    /// Plain greedy decoding of every prompt.
    pub(super) fn generate(&self, prompts: &[String], tokens: usize) -> Result<Vec<Answer>> {
        let path = self.file("prompts.jsonl")?;
        let lines: Vec<String> =
            prompts.iter().map(|prompt| json!({"prompt": prompt}).to_string()).collect();
        fs::write(&path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.foretoken("generate");
        command.arg("--prompts").arg(&path).args(["--decoding", "autoregressive", "--json"]);
        command.args(["--max-new-tokens", &tokens.to_string()]);
        command.args(["--threads", &self.threads.to_string()]);
        let mut answers = Vec::with_capacity(prompts.len());
        for line in process::stdout(&mut command)?.lines() {
            let answer: Value = serde_json::from_str(line)
                .with_context(|| format!("foretoken generate printed {line:?}"))?;
            let seconds = &answer["seconds"];
            let both = seconds["prefill"].as_f64().zip(seconds["decode"].as_f64());
            answers.push(Answer::new(&answer["tokens"], both.map(|(one, two)| one + two))?);
        }
        ensure!(answers.len() == prompts.len(), "foretoken generate left out a prompt");
        Ok(answers)
    }
}

/// The script that asks transformers.
pub(super) struct Theirs {
    peers: Peers,
    conversation: Conversation,
    /// What it says of itself and of the model.
    pub(super) greeting: Value,
}

impl Theirs {
    /// Starts it; this takes the time of dequantising the model.
    pub(super) fn start(peers: Peers, model: &Path, threads: usize) -> Result<Self> {
        let mut command = peers.script(SCRIPT);
        command.arg("--model").arg(model).args(["--threads", &threads.to_string()]);
        let (conversation, greeting) = Conversation::start(&mut command)?;
        Ok(Self { peers, conversation, greeting })
    }

    /// The model, for the results.
    pub(super) fn describe(&self, name: &str) -> Value {
        let mut model = json!({ "name": name });
        for key in ["parameters", "float32_bytes", "layers", "dim", "ffn", "vocab"] {
            model[key] = self.greeting[key].clone();
        }
        model
    }

    /// The answer to one request.
    pub(super) fn ask(&mut self, request: &Value) -> Result<Value> {
        self.conversation.ask(&request.to_string())
    }

    /// Plain greedy decoding of every prompt.
    pub(super) fn generate(&mut self, prompts: &[String], tokens: usize) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let request = json!({"do": "generate", "prompt": prompt, "max_new_tokens": tokens});
            let answer = self.ask(&request)?;
            answers.push(Answer::new(&answer["tokens"], answer["seconds"].as_f64())?);
        }
        Ok(answers)
    }

    /// Prompts of the programming problems and of the corpus.
    pub(super) fn held_back_prompts(
        &mut self,
        workspace: &Workspace,
        problems: &Path,
        seed: u64,
    ) -> Result<Vec<String>> {
        let answer = self.ask(&json!({
            "do": "held_back",
            "count": HELD_BACK,
            "seed": seed,
            "corpus": text(&workspace.python_code())?,
            "problems": text(problems)?,
        }))?;
        let prompts = answer["prompts"].as_array().context("an answer without prompts")?;
        prompts
            .iter()
            .map(|prompt| prompt.as_str().map(str::to_owned).context("a prompt that is no text"))
            .collect()
    }

    /// Runs a command to its end; its seconds and the most bytes of memory that it had.
    pub(super) fn measure(&self, ours: &Ours<'_>, command: &Command) -> Result<(f64, f64)> {
        let mut measure = self.peers.script(SCRIPT);
        measure.arg("--measure").arg(command.get_program()).args(command.get_args());
        ours.libtorch.apply(&mut measure);
        let printed = process::stdout(&mut measure)?;
        let answer: Value = serde_json::from_str(printed.trim())
            .with_context(|| format!("{SCRIPT} --measure printed {printed:?}"))?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        Ok((figure("seconds")?, figure("peak_bytes")?))
    }
}

/// A path as JSON can carry it.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
