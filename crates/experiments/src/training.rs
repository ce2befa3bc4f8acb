//! Training one model of a recipe, once.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use foretoken_train::{TrainConfig, TrainOptions, train};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::corpus::Prepared;
use crate::curves::last_step;
use crate::files::{cache, cached, file_sha256, fingerprint, write_atomically};
use crate::machine::device_name;
use crate::measure::Stopped;
use crate::say::progress;
use crate::{ReproduceOptions, Training};

/// What a training came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trained {
    pub(crate) steps: u64,
    pub(crate) tokens_seen: u64,
    pub(crate) seconds: f64,
    pub(crate) peak_memory_bytes: u64,
    /// Where it ended, `cpu` or `cuda`, if that is known: its folder may be measured elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
}

/// What is known of a training that may not be finished.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Begun {
    /// Peak memory of its pieces so far.
    peak_memory_bytes: u64,
    /// The process that trains, or trained last.
    process: u32,
}

/// A model's training folder: the `DIR` of `foretoken train`, and what this crate keeps beside.
#[derive(Debug, Clone)]
pub(crate) struct ModelFolder(pub(crate) PathBuf);

impl ModelFolder {
    /// The finished model.
    pub(crate) fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    /// A hash of the finished model's weights.
    pub(crate) fn weights(&self) -> anyhow::Result<String> {
        let heads = self.model().join("heads.safetensors");
        let first = file_sha256(&self.model().join("model.safetensors"))?;
        // The baseline has no further heads.
        let rest = if heads.exists() { file_sha256(&heads)? } else { String::new() };
        Ok(first + &rest)
    }

    /// A line for each step.
    pub(crate) fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The cached measurements.
    pub(crate) fn measured(&self) -> PathBuf {
        self.0.join("measured.json")
    }

    /// The config that the model is trained by.
    fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// What is known of a training that may not be finished.
    fn begun(&self) -> PathBuf {
        self.0.join("begun.json")
    }

    /// What the finished training came to.
    fn trained(&self) -> PathBuf {
        self.0.join("trained.json")
    }
}

/// One training: what of and where.
pub(crate) struct Job<'j> {
    pub(crate) options: &'j ReproduceOptions,
    pub(crate) config_toml: String,
    pub(crate) config: TrainConfig,
    pub(crate) corpus: &'j Prepared,
    pub(crate) folder: ModelFolder,
}

impl Job<'_> {
    /// Identifies the finished model: same config, same text.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint(&[&self.config_toml, &self.corpus.manifest.sha256])
    }

    /// The finished training, if there is one of this very config and corpus.
    pub(crate) fn finished(&self) -> Option<Trained> {
        let trained = cached(&self.folder.trained(), &self.fingerprint())?;
        self.folder.model().join("config.json").exists().then_some(trained)
    }

    /// Trains the model, going on from its last checkpoint; an older training by another config
    /// is removed.
    pub(crate) fn run(&self, clock: &mut Clock, stage: &str) -> anyhow::Result<Trained> {
        let begun: Option<Begun> = cached(&self.folder.begun(), &self.fingerprint());
        if begun.is_none() && self.folder.0.exists() {
            progress!("  the recipe or the corpus has changed: starting over");
            std::fs::remove_dir_all(&self.folder.0)
                .with_context(|| format!("cannot remove {}", self.folder.0.display()))?;
        }
        std::fs::create_dir_all(&self.folder.0)
            .with_context(|| format!("cannot make the folder {}", self.folder.0.display()))?;
        write_atomically(&self.folder.config(), &self.config_toml)?;
        clock.start(stage, begun.is_none())?;
        let mut begun = begun.unwrap_or_default();
        self.note(begun)?;
        match &self.options.training {
            Training::InProcess => self.run_here(&mut begun)?,
            Training::Child { program } => self.run_child(program, &mut begun, clock)?,
        }
        let trained = self.outcome(begun.peak_memory_bytes)?;
        cache(&self.folder.trained(), &self.fingerprint(), trained.clone())?;
        clock.stop()?;
        Ok(trained)
    }

    fn note(&self, begun: Begun) -> anyhow::Result<()> {
        cache(&self.folder.begun(), &self.fingerprint(), begun)
    }

    /// Steps, tokens and seconds out of the last line of the metrics.
    fn outcome(&self, peak_memory_bytes: u64) -> anyhow::Result<Trained> {
        let (steps, tokens_seen, seconds) = last_step(&self.folder.metrics())?;
        ensure!(
            steps == self.config.train.steps && self.folder.model().exists(),
            "the training of {} ended at step {steps} of {} without a model",
            self.folder.0.display(),
            self.config.train.steps
        );
        let device = Some(device_name(self.options.device).to_owned());
        Ok(Trained { steps, tokens_seen, seconds, peak_memory_bytes, device })
    }

    fn run_here(&self, begun: &mut Begun) -> anyhow::Result<()> {
        let outcome = train(
            &self.config,
            &self.folder.0,
            &TrainOptions {
                resume: true,
                stop: Arc::clone(&self.options.stop),
                progress: true,
                corpus_root: self.options.corpus.clone(),
                shards_dir: Some(self.corpus.folder.clone()),
                max_seconds: None,
                device: self.options.device,
                ..TrainOptions::default()
            },
        )?;
        let peak = outcome.peak_memory_bytes.unwrap_or(0);
        begun.peak_memory_bytes = begun.peak_memory_bytes.max(peak);
        self.note(*begun)?;
        if outcome.interrupted {
            return Err(Stopped.into());
        }
        Ok(())
    }

    /// Runs `program train …` and watches its memory.
    fn run_child(
        &self,
        program: &Path,
        begun: &mut Begun,
        clock: &mut Clock,
    ) -> anyhow::Result<()> {
        ensure!(
            !still_trains(begun.process, &self.folder.0),
            "process {} still trains {}: wait for it, or end it",
            begun.process,
            self.folder.0.display()
        );
        let mut child = self
            .command(program)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        begun.process = child.id();
        self.note(*begun)?;
        let status = watch(&mut child, &self.options.stop, |child| {
            let peak = peak_memory(child.id());
            begun.peak_memory_bytes = begun.peak_memory_bytes.max(peak);
            clock.tick()
        })?;
        self.note(*begun)?;
        if self.options.stop.load(Ordering::Relaxed) && !self.folder.model().exists() {
            return Err(Stopped.into());
        }
        ensure!(
            status.success(),
            "the training in {} failed ({status}); its message is above",
            self.folder.0.display()
        );
        Ok(())
    }

    /// `program train …`, in a process group of its own: Ctrl-C reaches it once, through us.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .arg("train")
            .arg("--config")
            .arg(self.folder.config())
            .arg("--out")
            .arg(&self.folder.0)
            .args(["--resume", "--device", device_name(self.options.device)])
            .arg("--shards")
            .arg(&self.corpus.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        if let Some(corpus) = &self.options.corpus {
            command.arg("--corpus").arg(corpus);
        }
        command
    }
}

/// Waits for a child, calling `tick` now and then; interrupts it once `stop` is set.
fn watch(
    child: &mut Child,
    stop: &AtomicBool,
    mut tick: impl FnMut(&Child) -> anyhow::Result<()>,
) -> anyhow::Result<ExitStatus> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the training")? {
            return Ok(status);
        }
        if let Err(error) = tick(child) {
            // A training that nobody watches must not go on by itself.
            interrupt(child)?;
            child.wait().context("cannot wait for the training")?;
            return Err(error);
        }
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            interrupt(child)?;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Asks a child to save and stop, as Ctrl-C would.
fn interrupt(child: &Child) -> anyhow::Result<()> {
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .context("cannot interrupt the training")?;
    Ok(())
}

/// Whether a process, left behind by a run that was killed, still trains in this folder.
fn still_trains(process: u32, folder: &Path) -> bool {
    let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let folder = folder.as_os_str().as_encoded_bytes();
    arguments.split(|&byte| byte == 0).any(|argument| argument == folder)
}

/// The most memory that a process held at once; 0 where the system does not say.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_child_is_interrupted_when_the_run_is_stopped() {
        // A child that handles the signal, as ours does: one that ignores it from birth, as all
        // children of a background shell do, would sleep on.
        let program = "import signal, time\n\
            signal.signal(signal.SIGINT, signal.default_int_handler)\n\
            print('ready', flush=True)\n\
            time.sleep(60)";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut ready = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        let stop = AtomicBool::new(true);
        let began = Instant::now();
        let status = watch(&mut child, &stop, |_| Ok(())).unwrap();
        assert!(!status.success());
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_process_that_names_the_folder_still_trains_in_it() {
        let folder = Path::new("/some/models/n4");
        let mut child = Command::new("sh")
            .args(["-c", "read line", "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that has just started does not show its arguments yet.
        let began = Instant::now();
        while !still_trains(child.id(), folder) {
            assert!(began.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!still_trains(child.id(), Path::new("/some/models/n8")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!still_trains(child.id(), folder));
    }

    #[test]
    fn the_peak_memory_of_a_running_process_is_known() {
        assert!(peak_memory(std::process::id()) > 1_000_000);
        assert_eq!(peak_memory(0), 0);
    }
}
