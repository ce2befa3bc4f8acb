//! A model with its objective, its optimiser and its batches: one step at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use foretoken_data::{BatchSampler, TokenShard, Tokenizer};
use foretoken_heads::{ModelConfig, MultiTokenModel};
use foretoken_loss::MultiTokenLoss;
use tch::{Kind, Tensor};

use crate::checkpoint::{Loaded, TrainingState};
use crate::config::{Precision, TrainConfig};
use crate::corpus::{Corpus, sampler};
use crate::{Error, Optimizer, StepMetrics, TrainOptions, schedule_factor};

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
    loss: MultiTokenLoss,
    batches: BatchSampler,
}

impl Trainer {
    /// With seeded first weights.
    pub(crate) fn new(
        config: &TrainConfig,
        corpus: &Corpus,
        state: TrainingState,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let seed = config.train.seed as i64;
        let model_config = model_config(config, &corpus.tokenizer);
        let model = MultiTokenModel::with_registry(
            &model_config,
            &options.registry,
            kind(config),
            options.device,
            seed,
        )?;
        Self::with_model(config, corpus, model, state)
    }

    /// From what a checkpoint at `path` holds.
    pub(crate) fn resume(
        config: &TrainConfig,
        corpus: &Corpus,
        loaded: Loaded,
        path: &Path,
    ) -> Result<Self, Error> {
        let Loaded { mut state, model, optimizer } = loaded;
        if model.config() != &model_config(config, &corpus.tokenizer) {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                message: "its config.json is not that of its recipe".to_owned(),
            });
        }
        state.config = config.clone();
        let updates = state.updates;
        let mut trainer = Self::with_model(config, corpus, model, state)?;
        trainer.optimizer.restore(&optimizer, updates)?;
        Ok(trainer)
    }

    fn with_model(
        config: &TrainConfig,
        corpus: &Corpus,
        model: MultiTokenModel,
        state: TrainingState,
    ) -> Result<Self, Error> {
        Ok(Self {
            optimizer: Optimizer::new(model.parameters(), &config.optimizer)?,
            loss: MultiTokenLoss::new(config.heads.count),
            batches: corpus.batches(config)?,
            config: config.clone(),
            model,
            state,
        })
    }

    /// Whether all steps are done.
    pub(crate) fn finished(&self) -> bool {
        self.state.step >= self.config.train.steps
    }

    /// One step: a batch, its gradients, an update.
    pub(crate) fn step(&mut self) -> Result<StepMetrics, Error> {
        let began = Instant::now();
        let step = self.state.step;
        let (tokens, epoch) = batch(&self.batches, step)?;
        let losses = self.loss.backward(&self.model, &tokens)?;
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
            epoch,
            losses: losses.to_vec()?,
            learning_rate: self.config.optimizer.learning_rate * factor,
            grad_norm: report.gradient_norm,
            updated: report.updated,
            seconds: state.seconds,
            tokens_per_second: seen as f64 / seconds,
        })
    }

    /// Mean loss of each head on batches of `shard`, without a step.
    pub(crate) fn validation_loss(&self, shard: &Arc<TokenShard>) -> Result<Vec<f64>, Error> {
        let batches = sampler(shard, &self.config)?;
        let count = batches.batches_per_epoch().min(VALIDATION_BATCHES);
        let mut sums = vec![0.0; self.config.heads.count];
        for step in 0..count {
            let (tokens, _) = batch(&batches, step)?;
            let losses = self.loss.evaluate(&self.model, &tokens)?.to_vec()?;
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum += loss / count as f64;
            }
        }
        Ok(sums)
    }
}

/// Of the recipe and the tokenizer.
fn model_config(config: &TrainConfig, tokenizer: &Tokenizer) -> ModelConfig {
    let end_of_text = tokenizer.end_of_text();
    ModelConfig { end_of_text, ..config.model_config(tokenizer.vocab_size()) }
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
