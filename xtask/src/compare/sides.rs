//! The two sides: ours, a fresh process each time, and transformers', which stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::scratch::Scratch;
use crate::bench::answers::{self, Answer};
use crate::bench::conversation::Conversation;
use crate::bench::peers::Peers;
use crate::process;
use crate::reproduce::{foretoken, release_binary};
use crate::setup::Libtorch;
use crate::workspace::Workspace;

const SCRIPT: &str = "pretrained.py";
/// Prompts of a held-back list.
const HELD_BACK: usize = 40;

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

    /// A folder for a check's large files, empty and gone with the value.
    pub(super) fn scratch(&self, name: &str) -> Result<Scratch> {
        Scratch::new(self.file(name)?)
    }

    /// Writes every head's logits of a prompt.
    pub(super) fn logits(&self, prompt: &str, file: &Path) -> Result<()> {
        let mut command = self.foretoken("logits");
        command.args(["--prompt", prompt]).arg("--out").arg(file);
        process::stdout(&mut command).map(drop)
    }

    /// Writes the model as a model folder.
    pub(super) fn import(&self, folder: &Path) -> Result<()> {
        process::stdout(self.foretoken("import").arg("--out").arg(folder)).map(drop)
    }

    /// Writes the model in a format of other software.
    pub(super) fn export(&self, format: &str, out: &Path) -> Result<()> {
        let mut command = self.foretoken("export");
        command.args(["--format", format]).arg("--out").arg(out);
        process::stdout(&mut command).map(drop)
    }

    /// Plain greedy decoding of every prompt.
    pub(super) fn generate(&self, prompts: &[String], tokens: usize) -> Result<Vec<Answer>> {
        let path = self.file("prompts.jsonl")?;
        answers::ours(self.foretoken("generate"), &path, prompts, tokens, self.threads)
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
        let (conversation, greeting) = start(&peers, SCRIPT, model, threads)?;
        Ok(Self { peers, conversation, greeting })
    }

    /// Starts another peer on a model; what it says of itself comes with it.
    pub(super) fn peer(
        &self,
        script: &str,
        model: &Path,
        threads: usize,
    ) -> Result<(Conversation, Value)> {
        start(&self.peers, script, model, threads)
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
        answers::theirs(&mut self.conversation, prompts, tokens)
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

/// Starts a script on a model.
fn start(
    peers: &Peers,
    script: &str,
    model: &Path,
    threads: usize,
) -> Result<(Conversation, Value)> {
    let mut command = peers.script(script);
    command.arg("--model").arg(model).args(["--threads", &threads.to_string()]);
    Conversation::start(&mut command)
}

/// A path as JSON can carry it.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
