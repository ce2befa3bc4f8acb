//! What a cross-entropy can be given beside its targets, and what comes out.

use crate::{Error, Result};
use tch::Tensor;

/// Label smoothing and z-loss of a cross-entropy; both 0 (the default) is the plain one.
///
/// With s = `label_smoothing`, z = `z_loss`, p = softmax(logits) and L = log Σ exp(logits), a token
/// of target t costs
///
/// (1 − s) · −log p\[t\] + s · mean over the vocabulary of −log p + z · L².
///
/// Label smoothing (Szegedy et al. 2016) keeps a model from growing too sure; z-loss (Chowdhery et
/// al. 2022, `PaLM`) keeps L near 0, so that logits do not drift in half precision.
///
/// ```
/// use foretoken_kernels::CrossEntropyOptions;
///
/// let palm = CrossEntropyOptions { z_loss: 1e-4, ..CrossEntropyOptions::default() };
/// assert!(palm.check().is_ok() && !palm.is_plain());
/// let error = CrossEntropyOptions { label_smoothing: 1.5, z_loss: 0.0 }.check().unwrap_err();
/// assert_eq!(error.to_string(), "label_smoothing is 1.5: give a share from 0 to 1");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// s: the share of the target's weight that is spread over the vocabulary, 0 to 1.
    pub label_smoothing: f64,
    /// z: factor of the squared logarithm of the normaliser, 0 or more.
    pub z_loss: f64,
}

impl CrossEntropyOptions {
    /// Whether this is the plain cross-entropy.
    pub fn is_plain(&self) -> bool {
        self.label_smoothing == 0.0 && self.z_loss == 0.0
    }

    /// Refuses what is outside its range.
    ///
    /// # Errors
    /// When the smoothing is no share from 0 to 1, or the z-loss is negative or not finite.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::Setting {
                name: "label_smoothing",
                expected: "a share from 0 to 1",
                found: self.label_smoothing,
            });
        }
        if !self.z_loss.is_finite() || self.z_loss < 0.0 {
            return Err(Error::Setting {
                name: "z_loss",
                expected: "a finite number, 0 or more",
                found: self.z_loss,
            });
        }
        Ok(())
    }
}

/// What a cross-entropy comes to.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Mean over the counted tokens of all terms: a scalar, with a graph.
    pub loss: Tensor,
    /// Mean over the counted tokens of −log softmax at the target, in nats a token, whatever the
    /// options: a scalar without a graph, to report.
    pub nats: Tensor,
}
