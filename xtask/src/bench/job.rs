//! Trainings for a comparison: a folder that all sides start from, and our side of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::plan::Row;
use super::results::has_bfloat16_products;
use crate::process;
use crate::reproduce::release_binary;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// The fewest steps that a recipe's schedule is laid out for: its warm-up takes ten.
const LEAST_STEPS: usize = 20;

/// A job folder below the build folder.
pub(crate) struct Job<'a> {
    workspace: &'a Workspace,
    libtorch: &'a Libtorch,
    folder: PathBuf,
}

impl<'a> Job<'a> {
    /// The job folder of this name.
    pub(crate) fn new(workspace: &'a Workspace, libtorch: &'a Libtorch, name: &str) -> Self {
        Self { workspace, libtorch, folder: workspace.target().join("peers").join(name) }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes recipe, first weights and batches for so many steps.
    pub(crate) fn prepare(&self, row: &Row, steps: usize) -> Result<()> {
        if let Some(refusal) = self.try_prepare(row, steps)? {
            bail!("the training {} cannot be prepared: {refusal}", row.id());
        }
        Ok(())
    }

    /// As [`prepare`](Self::prepare), where our side may not know a key yet: why it refuses.
    pub(crate) fn try_prepare(&self, row: &Row, steps: usize) -> Result<Option<String>> {
        let mut command = self.binary();
        command.arg("prepare").arg("--job").arg(&self.folder);
        command.arg("--recipe").arg(self.workspace.root().join("benches/peers/training.toml"));
        command.arg("--corpus").arg(self.workspace.python_code());
        command.arg("--shards").arg(self.workspace.target().join("peers/shards"));
        command.args(["--held-out", &row.load.held_out.to_string()]);
        if let Some(vocab) = row.load.vocabulary.size() {
            command.args(["--vocab", &vocab.to_string()]);
        }
        for set in sets(row, steps) {
            command.args(["--set", &set]);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", process::line(&command)))?;
        if output.status.success() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        match said.is_empty() {
            true => Ok(Some(format!("`train_steps prepare` failed ({})", output.status))),
            false => Ok(Some(said.join(" "))),
        }
    }

    /// Our side, which greets and then obeys.
    pub(crate) fn ours(&self, threads: usize) -> Command {
        let mut command = self.binary();
        command.arg("serve").arg("--job").arg(&self.folder);
        command.args(["--threads", &threads.to_string()]);
        command
    }

    fn binary(&self) -> Command {
        let mut command = Command::new(release_binary(self.workspace, "train_steps"));
        self.libtorch.apply(&mut command);
        command
    }
}

/// What the recipe of a row changes.
fn sets(row: &Row, steps: usize) -> Vec<String> {
    let size = row.load.size;
    let muon = if has_bfloat16_products() { "bfloat16" } else { "float32" };
    let own = [
        format!("model.layers={}", size.layers),
        format!("model.dim={}", size.dim),
        format!("model.attention_heads={}", size.attention_heads),
        format!("model.ffn={}", size.ffn),
        format!("heads.count={}", row.heads),
        format!("optimizer.type={}", row.optimizer),
        format!("optimizer.muon_precision={muon}"),
        format!("train.batch={}", row.load.batch),
        format!("train.steps={}", steps.max(LEAST_STEPS)),
    ];
    own.into_iter().chain(row.sets.iter().map(|&set| set.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::plan::LOADS;
    use super::*;

    #[test]
    fn a_rows_own_keys_come_last_and_short_runs_keep_their_warm_up() {
        let row = Row::new(&LOADS[0], 4, "adamw").with("train.precision=bfloat16");
        let sets = sets(&row, 3);
        assert_eq!(sets.last().map(String::as_str), Some("train.precision=bfloat16"));
        assert!(sets.contains(&"train.steps=20".to_owned()));
        assert!(sets.contains(&"heads.count=4".to_owned()));
    }
}
