//! What to reproduce, where, and on what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tch::Device;

use crate::report::variant;

/// How much time and hardware an experiment may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Three or four minutes on two cores: shows that everything works.
    Smoke,
    /// Half an hour at most on two cores.
    Quick,
    /// A hundred minutes at most on two cores.
    Long,
    /// Sized for one data-centre GPU.
    Full,
}

impl Preset {
    /// Every preset, from the smallest to the largest.
    pub const ALL: [Self; 4] = [Self::Smoke, Self::Quick, Self::Long, Self::Full];

    /// The name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Long => "long",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            anyhow::anyhow!("no preset is called \"{name}\": use smoke, quick, long or full")
        })
    }
}

/// Where the models of an experiment are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Training {
    /// In a child process per model, which is this program called with `train`: the peak memory
    /// of a model is then its own, and an interrupt ends one training in an orderly way.
    Child {
        /// The `foretoken` binary.
        program: PathBuf,
    },
    /// In this process, for programs that have no `train` command.
    InProcess,
}

/// What [`reproduce`](crate::reproduce) does.
#[derive(Debug, Clone)]
pub struct ReproduceOptions {
    /// The experiment's name, one of [`EXPERIMENTS`](crate::EXPERIMENTS).
    pub experiment: String,
    /// How large a run.
    pub preset: Preset,
    /// The folder for all experiments; this one writes to `OUT/EXPERIMENT/PRESET/`, with
    /// kept heads to `OUT/EXPERIMENT/PRESET-kept-heads/`.
    pub out: PathBuf,
    /// Where the models are trained and decoded.
    pub device: Device,
    /// A folder with the corpus' files; the default is what `cargo xtask setup` unpacked.
    pub corpus: Option<PathBuf>,
    /// A folder with another package's Python, for the out-of-domain check.
    pub other_corpus: Option<PathBuf>,
    /// A folder that gets copies of the finished report: `EXPERIMENT-PRESET.json`, `.md`, `.svg`.
    pub publish: Option<PathBuf>,
    /// A folder with heads for a published model that an earlier run kept: they are measured, and
    /// nothing is trained.
    pub pretrained_heads: Option<PathBuf>,
    /// A folder that gets the heads trained for a published model, in bfloat16, with the record of
    /// their training.
    pub keep_heads: Option<PathBuf>,
    /// Where the models are trained.
    pub training: Training,
    /// Set by Ctrl-C: the run then saves and stops at the next step.
    pub stop: Arc<AtomicBool>,
}

impl ReproduceOptions {
    /// Runs `experiment` at `preset` on the CPU, into `target/reproduce`, with models trained by
    /// child processes of the running program.
    ///
    /// # Errors
    ///
    /// When the path of the running program cannot be read.
    pub fn new(experiment: &str, preset: Preset) -> anyhow::Result<Self> {
        Ok(Self {
            experiment: experiment.to_owned(),
            preset,
            out: PathBuf::from("target/reproduce"),
            device: Device::Cpu,
            corpus: None,
            other_corpus: None,
            publish: None,
            pretrained_heads: None,
            keep_heads: None,
            training: Training::Child { program: std::env::current_exe()? },
            stop: Arc::default(),
        })
    }

    /// The folder of this experiment and preset; a run with kept heads has one of its own.
    pub fn folder(&self) -> PathBuf {
        let kept = self.pretrained_heads.is_some();
        self.out.join(&self.experiment).join(variant(self.preset.name(), kept))
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The report is written.
    Finished {
        /// `report.json`.
        json: PathBuf,
        /// `report.md`.
        markdown: PathBuf,
        /// `report.html`.
        html: PathBuf,
    },
    /// Interrupted; the same call goes on where it was.
    Interrupted,
}

impl Outcome {
    /// Whether the run was interrupted before its report was written.
    pub fn interrupted(&self) -> bool {
        *self == Self::Interrupted
    }
}
