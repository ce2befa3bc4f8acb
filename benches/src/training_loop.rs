//! A training loop over batches in memory: what the trainer does in a step, without its files.

use anyhow::Result;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::{HeadLosses, MultiTokenLoss};
use foretoken_train::{Optimizer, TrainConfig, schedule_factor};
use tch::Tensor;

/// A model with its objective and its optimiser.
pub struct TrainingLoop {
    model: MultiTokenModel,
    loss: MultiTokenLoss,
    optimizer: Optimizer,
    config: TrainConfig,
    done: u64,
}

impl TrainingLoop {
    /// Before the first step.
    ///
    /// # Errors
    /// When the optimiser cannot take over the parameters.
    pub fn new(model: MultiTokenModel, config: TrainConfig) -> Result<Self> {
        let loss = MultiTokenLoss::new(config.heads.count);
        let optimizer = Optimizer::new(model.parameters(), &config.optimizer)?;
        Ok(Self { model, loss, optimizer, config, done: 0 })
    }

    /// Steps done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// One step on `tokens`, `[batch, seq + heads]`.
    ///
    /// # Errors
    /// When the tokens do not fit the model.
    pub fn step(&mut self, tokens: &Tensor) -> Result<HeadLosses> {
        let losses = self.loss.backward(&self.model, tokens)?;
        let steps = self.config.train.steps;
        self.optimizer.step(schedule_factor(&self.config.optimizer, self.done, steps))?;
        self.done += 1;
        Ok(losses)
    }

    /// The heads' losses on `tokens`, without a step.
    ///
    /// # Errors
    /// When the tokens do not fit the model.
    pub fn evaluate(&self, tokens: &Tensor) -> Result<HeadLosses> {
        Ok(self.loss.evaluate(&self.model, tokens)?)
    }
}
