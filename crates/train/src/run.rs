//! A whole training run in a folder: corpus, steps, checkpoints, metrics, the finished model.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use foretoken_heads::Registry;
use tch::Device;

use crate::checkpoint::{Checkpoints, TrainingState, save_model};
use crate::config::TrainConfig;
use crate::corpus::Corpus;
use crate::folder::{recover, replace_folder};
use crate::metrics::MetricsFile;
use crate::progress::Progress;
use crate::trainer::{Trainer, kind};
use crate::{Error, peak_memory_bytes, recipe};

/// How a run goes about it; the recipe says what it does.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Goes on from the newest checkpoint, or starts at step 0 where there is none. Without it a
    /// folder that already holds a run is refused.
    pub resume: bool,
    /// Set from outside (Ctrl-C) to save and stop after the step at hand.
    pub stop: Arc<AtomicBool>,
    /// Shows progress on stderr.
    pub progress: bool,
    /// Where a corpus that is named lies, when not where set-up puts it.
    pub corpus_root: Option<PathBuf>,
    /// The folder of the token shards, `OUT/shards` when not given: runs can share one.
    pub shards_dir: Option<PathBuf>,
    /// Saves and stops, as if interrupted, once so many seconds have passed.
    pub max_seconds: Option<f64>,
    /// Where the model is trained.
    pub device: Device,
    /// The head types that `heads.type` can name: those of this workspace, and yours.
    pub registry: Registry,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            resume: false,
            stop: Arc::default(),
            progress: false,
            corpus_root: None,
            shards_dir: None,
            max_seconds: None,
            device: Device::Cpu,
            registry: Registry::stock(),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// `OUT/model`: the finished model, unless the run was interrupted.
    pub model_dir: PathBuf,
    /// The newest checkpoint; none where the run stopped before its first step.
    pub checkpoint: Option<PathBuf>,
    /// Whether it stopped before the last step; `resume` goes on.
    pub interrupted: bool,
    /// Steps done, those before a resume included.
    pub steps: u64,
    /// Tokens seen in them.
    pub tokens_seen: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Mean loss of each head on text of the validation split in nats a token; empty where the
    /// run was interrupted or the split is shorter than a window.
    pub validation_loss: Vec<f64>,
    /// The most memory that this process held; `None` where the system doesn't say.
    pub peak_memory_bytes: Option<u64>,
}

impl TrainOutcome {
    /// Tokens a second over the whole training.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens_seen as f64 / self.seconds } else { 0.0 }
    }
}

/// Trains a model as `config` says into the folder `out`: `model/` is the finished model,
/// `checkpoints/step-N/` the last few states, `metrics.jsonl` a line a step.
///
/// A run that goes on from a checkpoint comes to the same bits on a CPU as one that was never
/// interrupted.
///
/// # Errors
/// When the recipe can't be run, the text can't be read, a file can't be written, the checkpoints
/// are damaged or of another recipe, or the gradient stays not finite.
pub fn train(
    config: &TrainConfig,
    out: &Path,
    options: &TrainOptions,
) -> Result<TrainOutcome, Error> {
    recipe::check(config)?;
    let checkpoints = Checkpoints::new(out.join("checkpoints"));
    let model_dir = out.join("model");
    recover(&model_dir)?;
    if !options.resume && (model_dir.exists() || !checkpoints.steps()?.is_empty()) {
        return Err(Error::Occupied { path: out.to_owned() });
    }
    fs::create_dir_all(out).map_err(|source| Error::Write { path: out.to_owned(), source })?;
    let shards = options.shards_dir.clone().unwrap_or_else(|| out.join("shards"));
    let corpus = Corpus::prepare(config, &shards, options.corpus_root.as_deref())?;

    let fresh = TrainingState::new(config, &corpus.manifest.sha256);
    let loaded = match options.resume {
        true => checkpoints.load(&fresh, &options.registry, kind(config), options.device)?,
        false => None,
    };
    let trainer = match loaded {
        Some(loaded) => {
            let path = checkpoints.path(loaded.state.step);
            Trainer::resume(config, &corpus, loaded, &path)?
        }
        None => Trainer::new(config, &corpus, fresh, options)?,
    };
    let run = Run { config, options, corpus, checkpoints, trainer, model_dir };
    run.finish(&out.join("metrics.jsonl"))
}

struct Run<'a> {
    config: &'a TrainConfig,
    options: &'a TrainOptions,
    corpus: Corpus,
    checkpoints: Checkpoints,
    trainer: Trainer,
    model_dir: PathBuf,
}

impl Run<'_> {
    fn finish(mut self, metrics: &Path) -> Result<TrainOutcome, Error> {
        let saved = self.steps(metrics)?;
        let interrupted = !self.trainer.finished();
        let mut validation_loss = Vec::new();
        if !interrupted {
            let (trainer, tokenizer) = (&self.trainer, &self.corpus.tokenizer);
            replace_folder(&self.model_dir, |dir| save_model(&trainer.model, tokenizer, dir))?;
            if let Some(shard) = &self.corpus.validation {
                validation_loss = trainer.validation_loss(shard)?;
            }
        }
        let state = &self.trainer.state;
        Ok(TrainOutcome {
            model_dir: self.model_dir,
            checkpoint: saved.map(|step| self.checkpoints.path(step)),
            interrupted,
            steps: state.step,
            tokens_seen: state.tokens,
            seconds: state.seconds,
            parameters: self.trainer.model.parameter_count(),
            validation_loss,
            peak_memory_bytes: peak_memory_bytes(),
        })
    }

    /// Takes the steps that are left and returns that of the newest checkpoint.
    fn steps(&mut self, metrics: &Path) -> Result<Option<u64>, Error> {
        let first = self.trainer.state.step;
        let mut metrics = MetricsFile::open(metrics, first)?;
        let mut progress = Progress::new(self.options.progress, first, self.config.train.steps);
        let mut saved = (first > 0).then_some(first);
        let began = Instant::now();
        while !self.trainer.finished() && !self.should_stop(began) {
            let line = self.trainer.step().inspect_err(|_| progress.finish())?;
            metrics.push(&line)?;
            progress.step(&line);
            let every = self.config.train.checkpoint_every;
            if every > 0 && line.step % every == 0 {
                metrics.flush()?;
                saved = Some(self.save()?);
            }
        }
        progress.finish();
        metrics.flush()?;
        let step = self.trainer.state.step;
        if step > 0 && saved != Some(step) {
            saved = Some(self.save()?);
        }
        Ok(saved)
    }

    fn should_stop(&self, began: Instant) -> bool {
        let over = |most: f64| began.elapsed().as_secs_f64() >= most;
        self.options.stop.load(Ordering::Relaxed) || self.options.max_seconds.is_some_and(over)
    }

    fn save(&self) -> Result<u64, Error> {
        let Trainer { model, optimizer, state, .. } = &self.trainer;
        self.checkpoints.save(state, model, optimizer, &self.corpus.tokenizer)?;
        Ok(state.step)
    }
}
