//! A training loop over batches in memory: what the trainer does in a step, without its files.

use anyhow::Result;
use foretoken_heads::{MultiTokenModel, Registry};
use foretoken_loss::{HeadLosses, MultiTokenLoss};
use foretoken_train::{Optimizer, TrainConfig, schedule_factor};
use tch::Tensor;

/// A model with its objective and its optimiser.
pub struct TrainingLoop {
    /// The model that computes: the one that learns, or its copy in bfloat16.
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
        let loss = config.loss.objective(config.heads.count);
        let loss = loss.with_recompute(config.train.recompute);
        let loss = loss.with_execution(config.heads.execution.into());
        let section = &config.optimizer;
        let (precision, device) = (config.train.precision, model.device());
        let (model, optimizer) = match precision.products(device) {
            same if same == precision.weights() => {
                let optimizer = Optimizer::new(model.parameters(), section)?;
                (model, optimizer)
            }
            fewer => {
                let copy = model.in_kind(fewer, &Registry::stock())?;
                let learned = model.parameters();
                (Optimizer::with_copies(learned, copy.parameters(), section))
                    .map(|optimizer| (copy, optimizer))?
            }
        };
        Ok(Self { model, loss, optimizer, config, done: 0 })
    }

    /// The model that computes.
    pub fn model(&self) -> &MultiTokenModel {
        &self.model
    }

    /// The recipe.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// One step on `tokens`, `[batch, columns]` ([`TrainConfig::columns`]).
    ///
    /// # Errors
    /// When the tokens do not fit the model.
    pub fn step(&mut self, tokens: &Tensor) -> Result<HeadLosses> {
        let losses = self.loss.backward(&self.model, tokens)?;
        self.update()?;
        Ok(losses)
    }

    /// The same step, naively: all heads in one graph and all of their logits in memory, whatever
    /// the recipe says of execution and recomputation.
    ///
    /// # Errors
    /// When the tokens do not fit the model, or the memory is not there.
    pub fn step_all_at_once(&mut self, tokens: &Tensor) -> Result<()> {
        self.loss.all_at_once(&self.model, tokens)?.f_backward()?;
        self.update()
    }

    /// The heads' losses on `tokens`, without a step.
    ///
    /// # Errors
    /// When the tokens do not fit the model.
    pub fn evaluate(&self, tokens: &Tensor) -> Result<HeadLosses> {
        Ok(self.loss.evaluate(&self.model, tokens)?)
    }

    fn update(&mut self) -> Result<()> {
        let steps = self.config.train.steps;
        self.optimizer.step(schedule_factor(&self.config.optimizer, self.done, steps))?;
        self.done += 1;
        Ok(())
    }
}
