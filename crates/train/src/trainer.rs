//! A model with its objective, its optimiser and its batches: one step at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use foretoken_data::{BatchSampler, TokenShard, Tokenizer};
use foretoken_heads::MultiTokenModel;
use foretoken_loss::{FrozenTrunkLoss, HeadTargets, MultiTokenLoss};
use tch::{Kind, Tensor};

use crate::checkpoint::{HEADS, TrainingState, save_model};
use crate::config::{HeadTraining, Precision, TargetKind, TrainConfig};
use crate::corpus::{Corpus, sampler};
use crate::states::StateCache;
use crate::{Error, Optimizer, StepMetrics, schedule_factor};

/// Steps without a finite gradient, in a row, after which training is given up.
const MAX_SKIPPED: u32 = 20;

/// Batches of the validation split that [`Trainer::validation_loss`] looks at, at most.
const VALIDATION_BATCHES: u64 = 16;

/// A training between two steps.
pub(crate) struct Trainer {
    config: TrainConfig,
    pub(crate) model: MultiTokenModel,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainingState,
    objective: Objective,
    batches: BatchSampler,
}

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
    ) -> Result<Self, Error> {
        let (parameters, objective) = match config.heads.train {
            HeadTraining::Together => {
                (model.parameters(), Objective::Together(MultiTokenLoss::new(config.heads.count)))
            }
            HeadTraining::Alone => {
                let targets = match config.heads.targets {
                    TargetKind::Model => HeadTargets::Model,
                    TargetKind::Text => HeadTargets::Text,
                };
                let rounds = config.data.batches > 0 && config.train.steps > config.data.batches;
                let cache = StateCache::new(rounds.then(|| out.join("states")))?;
                (model.head_parameters(), Objective::Alone(FrozenTrunkLoss::new(targets), cache))
            }
        };
        let mut optimizer = Optimizer::new(parameters, &config.optimizer)?;
        if let Some(saved) = saved {
            optimizer.restore(saved, state.updates)?;
        }
        let batches = corpus.batches(config)?;
        Ok(Self { config: config.clone(), model, optimizer, state, objective, batches })
    }

    /// Whether all steps are done.
    pub(crate) fn finished(&self) -> bool {
        self.state.step >= self.config.train.steps
    }

    /// One step: a batch, its gradients, an update.
    pub(crate) fn step(&mut self) -> Result<StepMetrics, Error> {
        let began = Instant::now();
        let step = self.state.step;
        let (index, round) = self.place(step);
        let (tokens, epoch) = batch(&self.batches, index)?;
        let losses = match &self.objective {
            Objective::Together(loss) => loss.backward(&self.model, &tokens)?,
            Objective::Alone(loss, cache) => {
                let states = cache.states(&self.model, &tokens, index)?;
                loss.backward(&self.model, &tokens, &states)?
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
            epoch: epoch + round,
            losses: losses.to_vec()?,
            learning_rate: self.config.optimizer.learning_rate * factor,
            grad_norm: report.gradient_norm,
            updated: report.updated,
            seconds: state.seconds,
            tokens_per_second: seen as f64 / seconds,
        })
    }

    /// The batch of a step, and how often all had been seen where the training goes round in some.
    fn place(&self, step: u64) -> (u64, u64) {
        match self.config.data.batches {
            0 => (step, 0),
            batches => (step % batches, step / batches),
        }
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

    /// Mean loss of each head that is trained on batches of `shard`, without a step.
    pub(crate) fn validation_loss(&self, shard: &Arc<TokenShard>) -> Result<Vec<f64>, Error> {
        let batches = sampler(shard, &self.config)?;
        let count = batches.batches_per_epoch().min(VALIDATION_BATCHES);
        let mut sums = Vec::new();
        for step in 0..count {
            let (tokens, _) = batch(&batches, step)?;
            let losses = match &self.objective {
                Objective::Together(loss) => loss.evaluate(&self.model, &tokens)?,
                Objective::Alone(loss, _) => {
                    let states = FrozenTrunkLoss::states(&self.model, &tokens)?;
                    loss.evaluate(&self.model, &tokens, &states)?
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

/// The number format of the weights.
pub(crate) fn kind(config: &TrainConfig) -> Kind {
    match config.train.precision {
        Precision::Float64 => Kind::Double,
        Precision::Float32 | Precision::Bfloat16 => Kind::Float,
    }
}

/// A step's tokens `[batch, sequence + heads]`, and the epoch.
fn batch(batches: &BatchSampler, step: u64) -> Result<(Tensor, u64), Error> {
    let batch = batches.batch(step)?;
    let shape = [batch.rows as i64, batch.columns as i64];
    Ok((Tensor::f_from_slice(&batch.tokens)?.f_view(shape)?, batch.epoch))
}
