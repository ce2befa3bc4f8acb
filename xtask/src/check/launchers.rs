//! The launchers: a short training in one process alone, and in several that `cargo xtask launch`
//! and torchrun start. The losses are the same.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::steps;
use crate::launch;
use crate::process;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// What is trained.
const CONFIG: &str = "crates/experiments/configs/tiny.toml";

/// What is set otherwise than there: few steps, in a precision that hides no difference.
const SETS: [&str; 4] =
    ["train.steps=8", "train.batch=4", "train.precision=float64", "optimizer.schedule=constant"];
const STEPS: usize = 8;
const HEADS: usize = 2;

/// How far another order of its sums may move a loss.
const TOLERANCE: f64 = 1e-9;

/// Trains with each launcher and compares. torchrun is that of the benchmarks' peers, and is passed
/// over where they are not installed.
pub(crate) fn check(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let training = Training::prepare(workspace, libtorch)?;
    let alone = training.losses("alone", || process::run(&mut training.command("alone")?))?;
    for size in [2, 4] {
        let name = format!("launch-{size}");
        let found =
            training.losses(&name, || launch::together(size, || training.command(&name)))?;
        compare(&name, &alone, &found)?;
    }
    let torchrun = workspace.target().join("peers/venv/bin/torchrun");
    if torchrun.is_file() {
        let name = "torchrun-2";
        let found =
            training.losses(name, || process::run(&mut training.torchrun(&torchrun, name)?))?;
        compare(name, &alone, &found)?;
    } else {
        eprintln!(
            "torchrun is passed over: there is none in target/peers/venv (`cargo xtask bench --peer \
             pytorch` makes it)"
        );
    }
    Ok(())
}

/// A line of `metrics.jsonl`, as far as it is compared.
#[derive(Deserialize)]
struct Line {
    step: u64,
    losses: Vec<f64>,
}

/// The training, in a folder of its own below the build folder.
struct Training<'l> {
    libtorch: &'l Libtorch,
    binary: PathBuf,
    config: PathBuf,
    folder: PathBuf,
    text: PathBuf,
}

impl<'l> Training<'l> {
    /// Builds `foretoken` as for the smoke reproduction and writes the text.
    fn prepare(workspace: &Workspace, libtorch: &'l Libtorch) -> Result<Self> {
        let folder = workspace.target().join("xtask-launchers");
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let text = folder.join("text.txt");
        let functions: Vec<String> =
            (0..1200).map(|i| format!("def square_{i}():\n    return {}\n\n", i * i)).collect();
        fs::write(&text, functions.concat())
            .with_context(|| format!("cannot write {}", text.display()))?;
        let mut build = steps::cargo_in(workspace, libtorch);
        build.args(["build", "--quiet", "--package", "foretoken-cli", "--bin", "foretoken"]);
        process::run(&mut build)?;
        let binary = workspace.target().join("debug/foretoken");
        let config = workspace.root().join(CONFIG);
        Ok(Self { libtorch, binary, config, folder, text })
    }

    /// The losses of the training into the folder `name`, which `run` runs.
    fn losses(&self, name: &str, run: impl FnOnce() -> Result<()>) -> Result<Vec<Line>> {
        run().with_context(|| format!("{name}: {} has what it said", self.log(name).display()))?;
        let path = self.folder.join(name).join("metrics.jsonl");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text
            .lines()
            .map(serde_json::from_str::<Line>)
            .collect::<Result<Vec<Line>, _>>()
            .with_context(|| format!("{} has a line without losses", path.display()))?;
        let all = lines.len() == STEPS && lines.iter().all(|line| line.losses.len() == HEADS);
        ensure!(all, "{} is not of {STEPS} steps with {HEADS} losses each", path.display());
        Ok(lines)
    }

    /// `foretoken train` into the folder `name`.
    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        self.libtorch.apply(&mut command);
        command.arg("train").arg("--config").arg(&self.config).args(["--patience", "120"]);
        for set in SETS {
            command.args(["--set", set]);
        }
        command.arg("--set").arg(format!("data.path='{}'", self.text.display()));
        command.arg("--out").arg(self.folder.join(name));
        self.silence(&mut command, name)?;
        Ok(command)
    }

    /// The same as two processes of a torchrun.
    fn torchrun(&self, torchrun: &Path, name: &str) -> Result<Command> {
        let port = launch::free_port()?.to_string();
        let mut command = Command::new(torchrun);
        command.args(["--no-python", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]);
        command.args(["--master-port", &port]).env("OMP_NUM_THREADS", "1");
        // It has a libtorch of its own: `env` tells the ranks alone where ours is.
        command.env_remove("LD_LIBRARY_PATH").env_remove("LIBTORCH").arg("env");
        let training = self.command(name)?;
        for (variable, value) in training.get_envs() {
            let mut word = variable.to_owned();
            word.push("=");
            word.push(value.unwrap_or_default());
            command.arg(word);
        }
        command.arg(training.get_program()).args(training.get_args());
        self.silence(&mut command, name)?;
        Ok(command)
    }

    /// Sends what a command says to the log of `name`, which its processes share.
    fn silence(&self, command: &mut Command, name: &str) -> Result<()> {
        let path = self.log(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

/// Refuses losses that are not those of the training in one process alone.
fn compare(launcher: &str, alone: &[Line], found: &[Line]) -> Result<()> {
    for (one, other) in alone.iter().zip(found) {
        for (expected, loss) in one.losses.iter().zip(&other.losses) {
            let off = (loss - expected).abs();
            if off.is_nan() || off > TOLERANCE {
                bail!(
                    "{launcher}, step {}: the loss is {loss}, and {expected} in one process alone",
                    one.step
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(losses: &[f64]) -> Vec<Line> {
        (1..).zip(losses).map(|(step, &loss)| Line { step, losses: vec![3.0, loss] }).collect()
    }

    #[test]
    fn a_loss_that_is_off_is_named_with_its_launcher_and_step() {
        let alone = lines(&[2.5, 2.0]);
        compare("torchrun", &alone, &lines(&[2.5, 2.0 + 1e-10])).unwrap();
        for loss in [2.0 + 1e-8, f64::NAN] {
            let error = compare("torchrun", &alone, &lines(&[2.5, loss])).unwrap_err().to_string();
            assert!(error.starts_with("torchrun, step 2: the loss is "), "{error}");
            assert!(error.contains(&loss.to_string()) && error.contains("and 2 in"), "{error}");
        }
    }
}
