//! A model with its objective, its optimiser and its batches: one step at a time.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use foretoken_data::{Batches, Prefetch, TokenBatch, Tokenizer};
use foretoken_dist::{Destination, ProcessGroup};
use foretoken_heads::{ModelPart, MultiTokenModel};
use foretoken_loss::{FrozenTrunkLoss, MultiTokenLoss, TextRows};
use foretoken_trunk::io::SafetensorsFiles;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{HEADS, TrainingState, save_model};
use crate::config::{HeadTraining, TargetKind, TrainConfig};
use crate::corpus::{Corpus, Counted};
use crate::draft_tokens::expected;
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
    /// Batches of the validation splits, and how many there are; none where they are short.
    validation: Option<Counted>,
    /// Those who train together; none for one process alone.
    group: Option<ProcessGroup>,
    /// Whether it was stopped before all was there that a step needs.
    pub(crate) stopped: bool,
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
        mut model: MultiTokenModel,
        state: TrainingState,
        saved: Option<&SafetensorsFiles>,
        out: &Path,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let (registry, group) = (&options.registry, options.group.as_ref());
        let precision = config.train.precision;
        let mut copy = match precision.products(options.device) {
            same if same == precision.weights() => None,
            fewer => Some(model.in_kind(fewer, registry)?),
        };
        let learned = |model: &MultiTokenModel| match config.heads.train {
            HeadTraining::Together => model.parameters(),
            HeadTraining::Alone => model.head_parameters(),
        };
        let batches = corpus.batches(config)?;
        let mut stopped = false;
        let objective = match config.heads.train {
            HeadTraining::Together => {
                let parts = config.train.accumulate as f64;
                let loss = config.loss.objective(config.heads.count).with_factor(1.0 / parts);
                let loss = loss.with_recompute(config.train.recompute);
                Objective::Together(loss.with_execution(config.heads.execution.into()))
            }
            HeadTraining::Alone => {
                let (tokenizer, folder) = (&corpus.tokenizer, out.join("states"));
                let stop = Arc::clone(&options.stop);
                let cache = StateCache::new(&state, tokenizer, folder, options.device, stop)?;
                let most = config.heads.draft_vocabulary;
                if saved.is_none() && most > 0 && config.heads.targets == TargetKind::Model {
                    let read = |index| tensor(&batches.batch(index)?);
                    let computing = copy.as_ref().unwrap_or(&model);
                    match expected(computing, &cache, &read, distinct(config), most) {
                        Ok(tokens) => {
                            for model in std::iter::once(&mut model).chain(&mut copy) {
                                model.set_draft_vocabulary(Some(tokens.clone()))?;
                            }
                        }
                        // No step may be taken without it, and nothing is written yet.
                        Err(Error::Stopped) => stopped = true,
                        Err(error) => return Err(error),
                    }
                }
                Objective::Alone(FrozenTrunkLoss::new(config.heads.targets.into()), cache)
            }
        };
        let copies = copy.as_ref().map(learned);
        let section = &config.optimizer;
        let mut optimizer = match (group, copies) {
            (Some(group), copies) => {
                let destination = match config.train.shard_optimizer {
                    true => Destination::Owner,
                    false => Destination::Everyone,
                };
                Optimizer::shared(learned(&model), copies, section, group, destination)?
            }
            (None, Some(copies)) => Optimizer::with_copies(learned(&model), copies, section)?,
            (None, None) => Optimizer::new(learned(&model), section)?,
        };
        if let Some(saved) = saved {
            optimizer.restore_from(saved, state.updates)?;
        }
        let validation = corpus.validation(config)?;
        let (steps, rounds) = (config.train.steps, config.data.batches);
        let places = (state.step..steps).map(move |step| place(step, rounds).0);
        let ahead = Prefetch::new(Arc::clone(&batches), places, rows(config, group)?, AHEAD)?;
        let (config, group) = (config.clone(), group.cloned());
        Ok(Self {
            config,
            model,
            copy,
            optimizer,
            state,
            objective,
            batches,
            ahead,
            validation,
            group,
            stopped,
        })
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
        let waited = self.ahead.waited();
        let batch = match self.ahead.next() {
            Some(batch) => batch?,
            None => self.batches.batch(index)?,
        };
        let waited = self.ahead.waited().saturating_sub(waited);
        let losses = match &self.objective {
            Objective::Together(loss) => {
                let (heads, steps) = (self.config.heads.count, self.config.train.steps);
                let active = self.config.loss.curriculum.active_heads(heads, step, steps);
                let loss = loss.active(active);
                self.rest(active..heads);
                self.backward(&loss, &text_rows(&batch, self.config.columns())?)?
            }
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
        state.data_wait_seconds += waited.as_secs_f64();
        state.updates = self.optimizer.updates();
        state.skipped_in_a_row = if report.updated { 0 } else { state.skipped_in_a_row + 1 };
        if !report.updated && self.group.as_ref().is_none_or(|group| group.rank() == 0) {
            tracing::warn!(
                "step {}: the gradient is not finite, so the weights stay as they are; {} such steps \
                 in a row, {MAX_SKIPPED} end the training",
                state.step,
                state.skipped_in_a_row
            );
        }
        if state.skipped_in_a_row >= MAX_SKIPPED {
            return Err(Error::Diverged { step: state.step, steps: MAX_SKIPPED, before: None });
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

    /// Lets heads that do not learn in this step stay as they are.
    fn rest(&mut self, heads: Range<usize>) {
        let model = self.copy.as_ref().unwrap_or(&self.model);
        for head in heads {
            self.optimizer.rest(&model.part_parameters(ModelPart::Head(head)));
        }
    }

    /// The gradients of a step, part by part, and the heads' losses. In a group gradients are on
    /// their way to the others while the last part's backward pass still goes on.
    fn backward(&mut self, loss: &MultiTokenLoss, rows: &TextRows) -> Result<Vec<f64>, Error> {
        let model = self.copy.as_ref().unwrap_or(&self.model);
        let optimizer = &mut self.optimizer;
        let processes = self.group.as_ref().map_or(1, ProcessGroup::size);
        let parts = rows.chunks(self.config.train.accumulate)?;
        let mut means = Means::new(self.config.heads.count);
        for (place, part) in (1..).zip(&parts) {
            let last = place == parts.len();
            let losses = if processes > 1 && last {
                let mut told = Ok(());
                let losses = loss.backward_telling(model, part, |part| {
                    if told.is_ok() {
                        told = optimizer.ready(&model.part_parameters(part));
                    }
                })?;
                told?;
                losses
            } else {
                loss.backward(model, part)?
            };
            if !last {
                optimizer.part_done()?;
            }
            means.add(&losses.to_vec()?, &loss.targets(part)?);
        }
        self.sum_up(&mut means.0)?;
        Ok(means.means())
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

    /// Judges the weights as they are by validation batches, if the recipe wants it, for the
    /// checkpoint that is written next.
    pub(crate) fn judge(&mut self) -> Result<(), Error> {
        let losses = self.loss_on(self.config.train.validate)?;
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

    /// Mean loss of each head that is trained on batches of the validation split, without a step;
    /// empty where it is too short.
    pub(crate) fn validation_loss(&self) -> Result<Vec<f64>, Error> {
        self.loss_on(VALIDATION_BATCHES)
    }

    /// As [`Trainer::validation_loss`], on up to `most` batches.
    fn loss_on(&self, most: u64) -> Result<Vec<f64>, Error> {
        let Some((batches, count)) = &self.validation else { return Ok(Vec::new()) };
        let mut means = Means::default();
        for step in 0..most.min(*count) {
            let rows = text_rows(&batches.batch(step)?, self.config.columns())?;
            let (losses, targets) = match &self.objective {
                Objective::Together(loss) => {
                    (loss.evaluate(self.computing(), &rows)?, loss.targets(&rows)?)
                }
                Objective::Alone(loss, _) => {
                    let states = FrozenTrunkLoss::states(self.computing(), &rows.tokens)?;
                    let losses = loss.evaluate(self.computing(), &rows.tokens, &states)?;
                    (losses, vec![1.0; self.config.heads.count - 1])
                }
            };
            means.add(&losses.to_vec()?, &targets);
        }
        Ok(means.means())
    }
}

/// Means of the heads' losses over batches that may differ in how many targets each head has: for
/// each head the sum of its losses and the number of their targets.
#[derive(Default)]
struct Means(Vec<f64>);

impl Means {
    fn new(heads: usize) -> Self {
        Self(vec![0.0; 2 * heads])
    }

    /// Adds the heads' mean losses, each over so many targets.
    fn add(&mut self, losses: &[f64], targets: &[f64]) {
        self.0.resize(2 * losses.len(), 0.0);
        for ((sums, loss), targets) in self.0.chunks_exact_mut(2).zip(losses).zip(targets) {
            sums[0] += loss * targets;
            sums[1] += targets;
        }
    }

    /// Where a head had no target at all its loss is 0, as that of a batch without any.
    fn means(&self) -> Vec<f64> {
        self.0.chunks_exact(2).map(|sums| sums[0] / sums[1].max(1.0)).collect()
    }
}

/// The rows of a batch that this process works on.
fn rows(config: &TrainConfig, group: Option<&ProcessGroup>) -> Result<Range<usize>, Error> {
    let (rank, size) = group.map_or((0, 1), |group| (group.rank(), group.size()));
    let each = config.rows_of_each(size)?;
    Ok(rank * each..(rank + 1) * each)
}

/// Batches that a training sees, each counted once.
fn distinct(config: &TrainConfig) -> u64 {
    match config.data.batches {
        0 => config.train.steps,
        rounds => rounds.min(config.train.steps),
    }
}

/// The batch of a step, and how often all had been seen, where a training goes round in `rounds`
/// batches (0: it does not).
fn place(step: u64, rounds: u64) -> (u64, u64) {
    match rounds {
        0 => (step, 0),
        rounds => (step % rounds, step / rounds),
    }
}

/// A batch with what it says of documents, in rows of `columns` tokens: those of packed documents
/// are shorter and filled up.
fn text_rows(batch: &TokenBatch, columns: usize) -> Result<TextRows, Error> {
    let documents = match &batch.documents {
        Some(documents) => {
            let number = |&document: &u32| match document {
                TokenBatch::PADDING => TextRows::PADDING,
                number => i64::from(number),
            };
            let numbers: Vec<i64> = documents.iter().map(number).collect();
            let shape = [batch.rows as i64, batch.columns as i64];
            Some(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
        }
        None => None,
    };
    let missing = [batch.rows as i64, columns.saturating_sub(batch.columns) as i64];
    let filled = |tensor: Tensor, by: i64| -> Result<Tensor, Error> {
        let filling = Tensor::f_full(missing, by, (Kind::Int64, Device::Cpu))?;
        Ok(if missing[1] == 0 { tensor } else { Tensor::f_cat(&[tensor, filling], 1)? })
    };
    let documents = documents.map(|numbers| filled(numbers, TextRows::PADDING)).transpose()?;
    Ok(TextRows { tokens: filled(tensor(batch)?, 0)?, documents })
}

/// A batch's tokens, `[batch, columns]`.
fn tensor(batch: &TokenBatch) -> Result<Tensor, Error> {
    let shape = [batch.rows as i64, batch.columns as i64];
    Ok(Tensor::f_from_slice(&batch.tokens)?.f_view(shape)?)
}
