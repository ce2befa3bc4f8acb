//! A model with its objective, its optimiser and its batches: one step at a time.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foretoken_data::{Batches, Prefetch, TokenBatch, TokenShard, Tokenizer};
use foretoken_dist::ProcessGroup;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::{FrozenTrunkLoss, MultiTokenLoss};
use tch::Tensor;

use crate::checkpoint::{HEADS, TrainingState, save_model};
use crate::config::{HeadTraining, TrainConfig};
use crate::corpus::{Corpus, sampler};
use crate::recipe::require;
use crate::states::StateCache;
use crate::{Error, Optimizer, StepMetrics, TrainOptions, schedule_factor};

/// Steps without a finite gradient, in a row, after which training is given up.
const MAX_SKIPPED: u32 = 20;

/// Batches of the validation split that [`Trainer::validation_loss`] looks at, at most.
const VALIDATION_BATCHES: u64 = 16;

/// A training between two steps.
pub(crate) struct Trainer {
    config: TrainConfig,
    pub(crate) model: MultiTokenModel,
    /// The model in fewer bits, which computes; none where `model` does itself.
    copy: Option<MultiTokenModel>,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainingState,
    objective: Objective,
    batches: Arc<dyn Batches>,
    /// The steps' batches, or this process's rows of them, read ahead.
    ahead: Prefetch,
    /// Those who train together; none for one process alone.
    group: Option<ProcessGroup>,
}

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// What is learned, and by which part of the model.
enum Objective {
    /// All heads and the trunk.
    Together(MultiTokenLoss),
    /// The heads beyond the first.
    Alone(FrozenTrunkLoss, StateCache),
}

impl Trainer {
    /// Takes over a model with its first weights, or those of a checkpoint whose `state` it is and
    /// whose optimiser's is `saved`.
    pub(crate) fn new(
        config: &TrainConfig,
        corpus: &Corpus,
        model: MultiTokenModel,
        state: TrainingState,
        saved: Option<&[(String, Tensor)]>,
        out: &Path,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let (registry, group) = (&options.registry, options.group.as_ref());
        let precision = config.train.precision;
        let copy = match precision.products() {
            same if same == precision.weights() => None,
            fewer => Some(model.in_kind(fewer, registry)?),
        };
        let learned = |model: &MultiTokenModel| match config.heads.train {
            HeadTraining::Together => model.parameters(),
            HeadTraining::Alone => model.head_parameters(),
        };
        let objective = match config.heads.train {
            HeadTraining::Together => {
                let parts = config.train.accumulate as f64;
                let loss = config.loss.objective(config.heads.count).with_factor(1.0 / parts);
                let loss = loss.with_recompute(config.train.recompute);
                Objective::Together(loss.with_execution(config.heads.execution.into()))
            }
            HeadTraining::Alone => {
                let cache = StateCache::new(config, out.join("states"))?;
                Objective::Alone(FrozenTrunkLoss::new(config.heads.targets.into()), cache)
            }
        };
        let mut optimizer = match &copy {
            Some(copy) => {
                Optimizer::with_copies(learned(&model), learned(copy), &config.optimizer)?
            }
            None => Optimizer::new(learned(&model), &config.optimizer)?,
        };
        if let Some(saved) = saved {
            optimizer.restore(saved, state.updates)?;
        }
        let batches: Arc<dyn Batches> = Arc::new(corpus.batches(config)?);
        let (steps, rounds) = (config.train.steps, config.data.batches);
        let places = (state.step..steps).map(move |step| place(step, rounds).0);
        let ahead = Prefetch::new(Arc::clone(&batches), places, rows(config, group)?, AHEAD)?;
        if let Some(group) = group {
            optimizer.share(group)?;
        }
        let (config, group) = (config.clone(), group.cloned());
        Ok(Self { config, model, copy, optimizer, state, objective, batches, ahead, group })
    }

    /// The model that computes.
    fn computing(&self) -> &MultiTokenModel {
        self.copy.as_ref().unwrap_or(&self.model)
    }

    /// Whether all steps are done.
    pub(crate) fn finished(&self) -> bool {
        self.state.step >= self.config.train.steps
    }

    /// One step: a batch, its gradients, an update.
    pub(crate) fn step(&mut self) -> Result<StepMetrics, Error> {
        let began = Instant::now();
        let step = self.state.step;
        let (index, round) = place(step, self.config.data.batches);
        let batch = match self.ahead.next() {
            Some(batch) => batch?,
            None => self.batches.batch(index)?,
        };
        let losses = match &self.objective {
            Objective::Together(loss) => self.backward(loss, &tensor(&batch)?)?,
            Objective::Alone(loss, cache) => {
                let corpus = |index| tensor(&self.batches.batch(index)?);
                let (tokens, states) = cache.batch(self.computing(), index, &corpus)?;
                loss.backward(self.computing(), &tokens, &states)?.to_vec()?
            }
        };
        let factor = schedule_factor(&self.config.optimizer, step, self.config.train.steps);
        let report = self.optimizer.step(factor)?;
        let seconds = began.elapsed().as_secs_f64();

        let seen = self.config.tokens_per_step();
        let state = &mut self.state;
        state.step += 1;
        state.tokens += seen;
        state.seconds += seconds;
        state.updates = self.optimizer.updates();
        state.skipped_in_a_row = if report.updated { 0 } else { state.skipped_in_a_row + 1 };
        if state.skipped_in_a_row >= MAX_SKIPPED {
            return Err(Error::Diverged { step: state.step, steps: MAX_SKIPPED });
        }
        Ok(StepMetrics {
            step: state.step,
            tokens: state.tokens,
            epoch: batch.epoch + round,
            losses,
            learning_rate: self.config.optimizer.learning_rate * factor,
            grad_norm: report.gradient_norm,
            updated: report.updated,
            seconds: state.seconds,
            tokens_per_second: seen as f64 / seconds,
        })
    }

    /// The gradients of a step, part by part, and the heads' losses.
    fn backward(&self, loss: &MultiTokenLoss, tokens: &Tensor) -> Result<Vec<f64>, Error> {
        let (heads, train) = (self.config.heads.count, &self.config.train);
        let processes = self.group.as_ref().map_or(1, ProcessGroup::size) as f64;
        let curriculum = self.config.loss.curriculum;
        let loss = loss.active(curriculum.active_heads(heads, self.state.step, train.steps));
        let parts = tokens.f_chunk(train.accumulate as i64, 0)?;
        let mut sums = vec![0.0; heads];
        for part in &parts {
            let losses = loss.backward(self.computing(), part)?.to_vec()?;
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum += loss / parts.len() as f64 / processes;
            }
        }
        self.sum_up(&mut sums)?;
        Ok(sums)
    }

    /// Whether any of the processes wants to stop.
    pub(crate) fn agree(&self, stop: bool) -> Result<bool, Error> {
        let mut wishes = [f64::from(u8::from(stop))];
        self.sum_up(&mut wishes)?;
        Ok(wishes[0] > 0.0)
    }

    /// Numbers of this process to the sums over all.
    fn sum_up(&self, numbers: &mut [f64]) -> Result<(), Error> {
        if let Some(group) = &self.group {
            let sums = Tensor::f_from_slice(numbers)?;
            group.all_reduce(&sums)?;
            numbers.copy_from_slice(&Vec::<f64>::try_from(&sums)?);
        }
        Ok(())
    }

    /// Judges the weights as they are by batches of `shard`, for the checkpoint that is written next.
    pub(crate) fn judge(&mut self, shard: &Arc<TokenShard>) -> Result<(), Error> {
        let losses = self.loss_on(shard, self.config.train.validate)?;
        let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        self.state.validation_loss = (!losses.is_empty() && mean.is_finite()).then_some(mean);
        Ok(())
    }

    /// Writes what this training changes of the model, for a resume.
    pub(crate) fn save_progress(&self, tokenizer: &Tokenizer, folder: &Path) -> Result<(), Error> {
        match self.objective {
            Objective::Together(_) => save_model(&self.model, tokenizer, folder),
            Objective::Alone(..) => {
                let known = match &self.state.trunk_sha256 {
                    Some(known) => known.clone(),
                    None => self.model.stock_sha256()?,
                };
                Ok(self.model.save_heads_for(&folder.join(HEADS), known)?)
            }
        }
    }

    /// How long steps of this process waited for their batches.
    pub(crate) fn waited(&self) -> Duration {
        self.ahead.waited()
    }

    /// Numbers that are trained.
    pub(crate) fn parameter_count(&self) -> usize {
        match self.objective {
            Objective::Together(_) => self.model.parameter_count(),
            Objective::Alone(..) => {
                self.model.head_parameters().iter().map(|p| p.tensor.numel()).sum()
            }
        }
    }

    /// Puts away what only this training has a use for.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        match &self.objective {
            Objective::Together(_) => Ok(()),
            Objective::Alone(_, cache) => cache.remove(),
        }
    }

    /// Mean loss of each head that is trained on batches of `shard`, without a step.
    pub(crate) fn validation_loss(&self, shard: &Arc<TokenShard>) -> Result<Vec<f64>, Error> {
        self.loss_on(shard, VALIDATION_BATCHES)
    }

    /// As [`Trainer::validation_loss`], on up to `most` batches.
    fn loss_on(&self, shard: &Arc<TokenShard>, most: u64) -> Result<Vec<f64>, Error> {
        let batches = sampler(shard, &self.config)?;
        let count = batches.batches_per_epoch().min(most);
        let mut sums = Vec::new();
        for step in 0..count {
            let tokens = tensor(&batches.batch(step)?)?;
            let losses = match &self.objective {
                Objective::Together(loss) => loss.evaluate(self.computing(), &tokens)?,
                Objective::Alone(loss, _) => {
                    let states = FrozenTrunkLoss::states(self.computing(), &tokens)?;
                    loss.evaluate(self.computing(), &tokens, &states)?
                }
            };
            let losses = losses.to_vec()?;
            sums.resize(losses.len(), 0.0);
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum += loss / count as f64;
            }
        }
        Ok(sums)
    }
}

/// The rows of a batch that this process works on.
fn rows(config: &TrainConfig, group: Option<&ProcessGroup>) -> Result<Range<usize>, Error> {
    let (rank, size) = group.map_or((0, 1), |group| (group.rank(), group.size()));
    let (batch, parts) = (config.train.batch, config.train.accumulate);
    require(batch.is_multiple_of(size * parts), "train.batch", || match parts {
        1 => format!("{batch} sequences cannot be divided equally among {size} processes"),
        _ => format!(
            "{batch} sequences cannot be divided equally among {size} processes of \
             train.accumulate = {parts} parts each"
        ),
    })?;
    let each = batch / size;
    Ok(rank * each..(rank + 1) * each)
}

/// The batch of a step, and how often all had been seen, where a training goes round in `rounds`
/// batches (0: it does not).
fn place(step: u64, rounds: u64) -> (u64, u64) {
    match rounds {
        0 => (step, 0),
        rounds => (step % rounds, step / rounds),
    }
}

/// A batch's tokens, `[batch, columns]`.
fn tensor(batch: &TokenBatch) -> Result<Tensor, Error> {
    let shape = [batch.rows as i64, batch.columns as i64];
    Ok(Tensor::f_from_slice(&batch.tokens)?.f_view(shape)?)
}
