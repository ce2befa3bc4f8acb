//! How much each head counts.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A rule for the heads' weights in the objective.
///
/// ```
/// use foretoken_loss::HeadWeights;
///
/// assert_eq!(HeadWeights::Uniform.for_heads(3), [1.0, 1.0, 1.0]);
/// assert_eq!(HeadWeights::Geometric(0.5).for_heads(3), [1.0, 0.5, 0.25]);
/// assert_eq!(HeadWeights::Lambda(0.5).for_heads(3), [1.0, 0.25, 0.25]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadWeights {
    /// 1 for every head (Gloeckle et al. 2024; the default).
    #[default]
    Uniform,
    /// This ratio to the power of i for head i.
    Geometric(f64),
    /// 1 for head 0; the others share this λ in equal parts, λ / (n − 1) each (`DeepSeek-V3` 2024,
    /// section 2.2: λ times the mean of the losses beyond the next token's).
    Lambda(f64),
}

impl HeadWeights {
    /// The weights of `heads` heads, head 0 first.
    pub fn for_heads(self, heads: usize) -> Vec<f64> {
        let beyond_first = heads.saturating_sub(1) as f64;
        (0..heads)
            .map(|head| match self {
                Self::Uniform => 1.0,
                Self::Geometric(ratio) => ratio.powf(head as f64),
                Self::Lambda(_) if head == 0 => 1.0,
                Self::Lambda(lambda) => lambda / beyond_first,
            })
            .collect()
    }

    /// Refuses a rule by which some head would learn nothing, or what is no number.
    ///
    /// # Errors
    /// When the ratio or λ is not above 0 and finite.
    ///
    /// ```
    /// use foretoken_loss::HeadWeights;
    ///
    /// let error = HeadWeights::Geometric(0.0).check().unwrap_err();
    /// assert_eq!(error.to_string(), "the ratio of the heads' weights is 0: give a number above 0");
    /// ```
    pub fn check(self) -> Result<()> {
        let (name, found) = match self {
            Self::Uniform => return Ok(()),
            Self::Geometric(ratio) => ("the ratio of the heads' weights", ratio),
            Self::Lambda(lambda) => ("the lambda of the heads' weights", lambda),
        };
        if found.is_finite() && found > 0.0 {
            return Ok(());
        }
        Err(Error::Setting { name, expected: "a number above 0", found })
    }
}
