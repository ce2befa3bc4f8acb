//! `[loss]`: what the heads' losses add up to.

use foretoken_loss::{CrossEntropyOptions, Curriculum, HeadWeights, MultiTokenLoss};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::recipe::require;

/// The rule for the heads' weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightRule {
    /// All 1, as in the paper (the default).
    #[default]
    Uniform,
    /// `loss.ratio` to the power of i for head i, counted from 0.
    Geometric,
    /// 1 for the first head; the others share `loss.lambda`, as in `DeepSeek-V3`.
    Lambda,
}

/// `[loss]`: weights and options of the objective.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSection {
    /// `uniform`, `geometric` or `lambda`.
    #[serde(default)]
    pub weights: WeightRule,
    /// Of `geometric` weights: each head's weight over that of the head before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Of `lambda` weights: the sum of the weights of all heads but the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// How many heads learn: `none` for all of them, `forward` for more and more, `reverse` for
    /// fewer and fewer.
    #[serde(default)]
    pub curriculum: Curriculum,
    /// Head i learns the token `offsets[i] + 1` after its position; 0, 1, 2, … when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<usize>>,
    /// Share of the target's probability that is spread over the vocabulary.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Weight of (log Σ exp logits)², which keeps logits near a sum of 1.
    #[serde(default)]
    pub z_loss: f64,
}

impl LossSection {
    /// The objective of `heads` heads.
    pub fn objective(&self, heads: usize) -> MultiTokenLoss {
        let options =
            CrossEntropyOptions { label_smoothing: self.label_smoothing, z_loss: self.z_loss };
        let loss = MultiTokenLoss::weighted(self.rule().for_heads(heads));
        let loss = loss.with_cross_entropy(options);
        match &self.offsets {
            Some(offsets) => loss.with_offsets(offsets.clone()),
            None => loss,
        }
    }

    fn rule(&self) -> HeadWeights {
        match self.weights {
            WeightRule::Uniform => HeadWeights::Uniform,
            WeightRule::Geometric => HeadWeights::Geometric(self.ratio.unwrap_or(0.0)),
            WeightRule::Lambda => HeadWeights::Lambda(self.lambda.unwrap_or(0.0)),
        }
    }

    /// Refuses what no model of `heads` heads can be trained with, naming the key.
    pub(crate) fn check(&self, heads: usize) -> Result<(), Error> {
        for (key, value, rule, name) in [
            ("loss.ratio", self.ratio, WeightRule::Geometric, "geometric"),
            ("loss.lambda", self.lambda, WeightRule::Lambda, "lambda"),
        ] {
            require(value.is_some() == (self.weights == rule), key, || match value {
                Some(_) => format!("is for loss.weights = \"{name}\""),
                None => format!("loss.weights = \"{name}\" needs it"),
            })?;
        }
        let refused = |key: &str, error: foretoken_loss::Error| Error::Value {
            key: key.to_owned(),
            message: error.to_string(),
        };
        self.rule().check().map_err(|error| refused("loss.weights", error))?;
        let options =
            [("loss.label_smoothing", self.label_smoothing), ("loss.z_loss", self.z_loss)];
        for (key, value) in options {
            require(value.is_finite() && value >= 0.0, key, || {
                format!("{value} is out of range: it has to be at least 0")
            })?;
        }
        require(self.label_smoothing < 1.0, "loss.label_smoothing", || {
            format!("{} leaves nothing of the target: it has to be below 1", self.label_smoothing)
        })?;
        self.objective(heads).check(heads).map_err(|error| refused("loss.offsets", error))
    }
}
