//! A whole training run in a folder: corpus, steps, checkpoints, metrics, the finished model.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use foretoken_dist::ProcessGroup;
use foretoken_heads::{MultiTokenModel, Registry};
use foretoken_trunk::io::SafetensorsFiles;
use tch::{Device, Tensor};

use crate::checkpoint::{Checkpoints, HEADS, Loaded, TrainingState, save_model};
use crate::config::{HeadTraining, TrainConfig};
use crate::corpus::Corpus;
use crate::folder::{lock, recover, replace_folder};
use crate::metrics::MetricsFile;
use crate::progress::Progress;
use crate::recipe::require;
use crate::start::Start;
use crate::tensorboard::EventFile;
use crate::trainer::Trainer;
use crate::usage::Meter;
use crate::watch::Watch;
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
    /// Writes the figures of `metrics.jsonl` as event files in `OUT/tensorboard`, too.
    pub tensorboard: bool,
    /// Where a corpus that is named lies, when not where set-up puts it.
    pub corpus_root: Option<PathBuf>,
    /// The folder of the token shards, `OUT/shards` when not given: runs can share one.
    pub shards_dir: Option<PathBuf>,
    /// Saves and stops, as if interrupted, once so many seconds have passed.
    pub max_seconds: Option<f64>,
    /// Where the model is trained.
    pub device: Device,
    /// The processes that train together, of which this is one; none for one alone. Rank 0 writes the
    /// files; all read the same ones.
    pub group: Option<ProcessGroup>,
    /// The head types that `heads.type` can name: those of this workspace, and yours.
    pub registry: Registry,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            resume: false,
            stop: Arc::default(),
            progress: false,
            tensorboard: false,
            corpus_root: None,
            shards_dir: None,
            max_seconds: None,
            device: Device::Cpu,
            group: None,
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
    /// That of those kept which does best on the validation split; none where none was judged.
    pub best_checkpoint: Option<PathBuf>,
    /// Whether it stopped before the last step; `resume` goes on.
    pub interrupted: bool,
    /// Steps done, those before a resume included.
    pub steps: u64,
    /// Those of them that moved nothing, because the gradient was not finite.
    pub skipped_steps: u64,
    /// Tokens seen in them.
    pub tokens_seen: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Seconds of them in which a step waited for its batch.
    pub data_wait_seconds: f64,
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
    let outcome = run(config, out, options);
    let Some(group) = &options.group else { return outcome };
    match outcome {
        Ok(outcome) => {
            // Rank 0 serves the others until all are done, and the model is there when they are.
            group.barrier()?;
            Ok(outcome)
        }
        Err(error) => {
            group.fail(&error.to_string());
            Err(error)
        }
    }
}

fn run(config: &TrainConfig, out: &Path, options: &TrainOptions) -> Result<TrainOutcome, Error> {
    recipe::check(config)?;
    foretoken_kernels::allow_tf32(config.train.tf32)?;
    let first = options.group.as_ref().is_none_or(|group| group.rank() == 0);
    let several = options.group.as_ref().is_some_and(|group| group.size() > 1);
    require(!several || config.heads.train == HeadTraining::Together, "heads.train", || {
        "heads alone are trained in one process".to_owned()
    })?;
    let start = Start::new(config)?;
    let checkpoints = Checkpoints::new(out.join("checkpoints"));
    let model_dir = out.join("model");
    fs::create_dir_all(out).map_err(|source| Error::Write { path: out.to_owned(), source })?;
    let _lock = if first { Some(lock(out)?) } else { None };
    if first {
        recover(&model_dir)?;
    }
    if let Some(group) = &options.group {
        group.barrier()?;
    }
    if !options.resume && (model_dir.exists() || !checkpoints.steps()?.is_empty()) {
        return Err(Error::Occupied { path: out.to_owned() });
    }
    let shards = options.shards_dir.clone().unwrap_or_else(|| out.join("shards"));
    let root = options.corpus_root.as_deref();
    let corpus = Corpus::prepare(config, start.tokenizer.clone(), &shards, root)?;
    let fresh = TrainingState::new(config, &corpus.sha256(), &corpus.tokenizer);
    let setup = Setup { config, options, out, start: &start, corpus: &corpus };
    let trainer = match config.heads.train {
        HeadTraining::Together => setup.together(&checkpoints, fresh)?,
        HeadTraining::Alone => setup.alone(&checkpoints, fresh)?,
    };
    let run = Run { config, options, corpus, checkpoints, trainer, model_dir, first };
    run.finish(&out.join("metrics.jsonl"))
}

/// What a trainer is made of.
struct Setup<'a> {
    config: &'a TrainConfig,
    options: &'a TrainOptions,
    out: &'a Path,
    start: &'a Start,
    corpus: &'a Corpus,
}

impl Setup<'_> {
    /// The model before the first step.
    fn model(&self) -> Result<MultiTokenModel, Error> {
        let (registry, device) = (&self.options.registry, self.options.device);
        self.start.model(
            self.config,
            self.corpus,
            registry,
            self.config.train.precision.weights(),
            device,
        )
    }

    fn together(&self, checkpoints: &Checkpoints, fresh: TrainingState) -> Result<Trainer, Error> {
        let (config, registry) = (self.config, &self.options.registry);
        let loaded = match self.options.resume {
            true => checkpoints.load(&fresh, |path| {
                let (kind, device) = (config.train.precision.weights(), self.options.device);
                Ok(MultiTokenModel::load_with_registry(path, registry, kind, device)?)
            })?,
            false => None,
        };
        let Some(loaded) = loaded else {
            let model = self.model()?;
            return self.trainer(model, fresh, None);
        };
        let Loaded { mut state, model, optimizer } = loaded;
        let heads = config.heads_config()?;
        let sizes = config.model_config(self.start.tokenizer.vocab_size())?.architecture;
        let grown = config.model.init_from.is_some();
        if model.config().heads != heads || !(grown || model.config().architecture == sizes) {
            return Err(Error::Checkpoint {
                path: checkpoints.path(state.step),
                message: "its config.json is not that of its recipe".to_owned(),
            });
        }
        state.config = config.clone();
        self.trainer(model, state, Some(&optimizer))
    }

    fn alone(&self, checkpoints: &Checkpoints, mut fresh: TrainingState) -> Result<Trainer, Error> {
        let config = self.config;
        let mut model = self.model()?;
        fresh.trunk_sha256 = Some(model.stock_sha256()?);
        let loaded = match self.options.resume {
            true => checkpoints.load(&fresh, |path| Ok(model.load_heads(&path.join(HEADS))?))?,
            false => None,
        };
        let (state, optimizer) = match loaded {
            Some(Loaded { mut state, optimizer, .. }) => {
                state.config = config.clone();
                (state, Some(optimizer))
            }
            None => (fresh, None),
        };
        self.trainer(model, state, optimizer.as_ref())
    }

    fn trainer(
        &self,
        model: MultiTokenModel,
        state: TrainingState,
        saved: Option<&SafetensorsFiles>,
    ) -> Result<Trainer, Error> {
        let Self { config, options, out, corpus, .. } = self;
        if let Some(group) = &options.group {
            begin_alike(group, &state)?;
        }
        Trainer::new(config, corpus, model, state, saved, out, options)
    }
}

/// Refuses to train where this process and rank 0 do not begin with the same.
fn begin_alike(group: &ProcessGroup, state: &TrainingState) -> Result<(), Error> {
    let own = [state.step as i64, state.updates as i64, state.fingerprint()?];
    let sent = Tensor::f_from_slice(&own)?;
    group.broadcast(&sent, 0)?;
    let mut first = [0; 3];
    sent.f_copy_data(&mut first, own.len())?;
    let message = if own[0] != first[0] {
        format!("goes on from step {}, and rank 0 from step {}", own[0], first[0])
    } else if own != first {
        "has another recipe, text or checkpoint than rank 0".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Apart { rank: group.rank(), message })
}

struct Run<'a> {
    config: &'a TrainConfig,
    options: &'a TrainOptions,
    corpus: Corpus,
    checkpoints: Checkpoints,
    trainer: Trainer,
    model_dir: PathBuf,
    /// Whether this process writes the files.
    first: bool,
}

impl Run<'_> {
    fn finish(mut self, metrics: &Path) -> Result<TrainOutcome, Error> {
        let saved = self.steps(metrics)?;
        let interrupted = !self.trainer.finished();
        let mut validation_loss = Vec::new();
        if !interrupted && self.first {
            let (trainer, tokenizer) = (&self.trainer, &self.corpus.tokenizer);
            replace_folder(&self.model_dir, |dir| save_model(&trainer.model, tokenizer, dir))?;
            validation_loss = trainer.validation_loss()?;
            trainer.clear()?;
            let good = validation_loss.iter().all(|loss| loss.is_finite());
            if good && trainer.state.skipped_in_a_row == 0 {
                self.prune()?;
            }
        }
        let state = &self.trainer.state;
        Ok(TrainOutcome {
            model_dir: self.model_dir,
            checkpoint: saved.map(|step| self.checkpoints.path(step)),
            best_checkpoint: self.checkpoints.best()?.map(|step| self.checkpoints.path(step)),
            interrupted,
            steps: state.step,
            skipped_steps: state.step - state.updates,
            tokens_seen: state.tokens,
            seconds: state.seconds,
            data_wait_seconds: state.data_wait_seconds,
            parameters: self.trainer.parameter_count(),
            validation_loss,
            peak_memory_bytes: peak_memory_bytes(),
        })
    }

    /// Takes the steps that are left and returns that of the newest checkpoint.
    ///
    /// Whether a checkpoint is good shows in the next step, whose gradient is finite, or at the end in
    /// the validation; only then do older ones go. Among steps without one nothing is written, because
    /// nothing moves.
    fn steps(&mut self, metrics: &Path) -> Result<Option<u64>, Error> {
        let (first, steps) = (self.trainer.state.step, self.config.train.steps);
        if self.first && first > steps {
            tracing::warn!(
                "nothing is left to do: step {first} is done, and train.steps is {steps}"
            );
        }
        let mut watch = self.first.then(|| self.watch(metrics)).transpose()?;
        let mut saved = (first > 0).then_some(first);
        let (mut due, mut in_doubt) = (false, saved.is_some());
        let began = Instant::now();
        while !self.trainer.finished() && !self.trainer.agree(self.should_stop(began))? {
            let line = match self.trainer.step() {
                Ok(line) => line,
                Err(Error::Stopped) => break,
                Err(error) => {
                    if let Some(watch) = &mut watch {
                        watch.progress.finish();
                    }
                    return Err(self.with_checkpoint(error));
                }
            };
            if let Some(watch) = &mut watch {
                watch.step(&line)?;
            }
            if in_doubt && line.updated {
                self.prune()?;
                in_doubt = false;
            }
            let every = self.config.train.checkpoint_every;
            due |= every > 0 && line.step % every == 0;
            if due && line.updated {
                if let Some(watch) = &mut watch {
                    watch.flush()?;
                }
                saved = Some(self.save()?);
                (due, in_doubt) = (false, true);
            }
        }
        if let Some(watch) = &mut watch {
            watch.progress.finish();
            watch.flush()?;
        }
        let step = self.trainer.state.step;
        if step > 0 && saved != Some(step) {
            saved = Some(self.save()?);
        }
        Ok(saved)
    }

    /// Removes checkpoints that the recipe does not keep, now that the newest is good.
    fn prune(&self) -> Result<(), Error> {
        match self.first {
            true => self.checkpoints.prune(self.config.train.keep),
            false => Ok(()),
        }
    }

    /// Where training has fallen apart: the newest checkpoint of weights that had a finite gradient,
    /// unless it has heads alone. The last step that moved anything led to those that have none.
    fn with_checkpoint(&self, error: Error) -> Error {
        let Error::Diverged { step, steps, .. } = error else { return error };
        let whole = self.config.heads.train == HeadTraining::Together;
        let good =
            |known: Vec<u64>| known.into_iter().find(|known| known + u64::from(steps) < step);
        let newest = self.checkpoints.usable().ok().filter(|_| whole).and_then(good);
        Error::Diverged { step, steps, before: newest.map(|step| self.checkpoints.path(step)) }
    }

    /// Those who look on from the next step, with the figures in `metrics` and beside it.
    fn watch(&self, metrics: &Path) -> Result<Watch, Error> {
        let (config, options, trainer) = (self.config, self.options, &self.trainer);
        let first = trainer.state.step;
        // Heads that learn alone are those after the first.
        let (first_head, losses) = match config.heads.train {
            HeadTraining::Together => (1, "loss"),
            HeadTraining::Alone => (2, "loss (heads 2 on)"),
        };
        let events = match options.tensorboard {
            true => {
                let folder = metrics.with_file_name("tensorboard");
                Some(EventFile::create(&folder, first, first_head)?)
            }
            false => None,
        };
        let asked = options.progress || options.tensorboard;
        let processes = options.group.as_ref().map_or(1, ProcessGroup::size);
        let meter = || Meter::new(config, &trainer.model, processes);
        let meter = (asked && !trainer.finished()).then(meter);
        let metrics = MetricsFile::open(metrics, first)?;
        let progress = Progress::new(options.progress, first, config.train.steps, losses);
        Ok(Watch { metrics, events, progress, meter })
    }

    fn should_stop(&self, began: Instant) -> bool {
        let over = |most: f64| began.elapsed().as_secs_f64() >= most;
        self.trainer.stopped
            || self.options.stop.load(Ordering::Relaxed)
            || self.options.max_seconds.is_some_and(over)
    }

    /// Writes a checkpoint and returns its step; in other processes than the first only the latter.
    fn save(&mut self) -> Result<u64, Error> {
        if !self.first {
            // The first one writes what this one has of the optimiser's state.
            self.trainer.optimizer.each_moment(&mut |_, _| Ok(()))?;
            return Ok(self.trainer.state.step);
        }
        self.trainer.judge()?;
        let (trainer, tokenizer) = (&self.trainer, &self.corpus.tokenizer);
        self.checkpoints.save(&trainer.state, &trainer.optimizer, |folder| {
            trainer.save_progress(tokenizer, folder)
        })?;
        Ok(trainer.state.step)
    }
}
