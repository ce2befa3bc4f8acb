//! How many heads learn, step by step.

use serde::{Deserialize, Serialize};

/// A curriculum over the number of heads (Aynetdinov & Akbik 2025, *Pre-Training Curriculum for
/// Multi-Token Prediction in Language Models*).
///
/// The training is cut into n stretches of equal length, as far as whole steps go. Small models
/// learned more from several tokens when these were added one by one; taken away one by one they
/// helped next-token prediction most, at the price of the drafts.
///
/// ```
/// use foretoken_loss::Curriculum;
///
/// // Three heads, twelve steps.
/// let heads = |which: Curriculum| [0, 3, 4, 11].map(|step| which.active_heads(3, step, 12));
/// assert_eq!(heads(Curriculum::None), [3, 3, 3, 3]);
/// assert_eq!(heads(Curriculum::Forward), [1, 1, 2, 3]);
/// assert_eq!(heads(Curriculum::Reverse), [3, 3, 2, 1]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curriculum {
    /// All heads from the first step to the last (the default).
    #[default]
    None,
    /// One head at first, one more at equal intervals, all n in the last.
    Forward,
    /// All n heads at first, one fewer at equal intervals, head 0 alone in the last.
    Reverse,
}

impl Curriculum {
    /// The heads that learn at `step`, counted from 0, of a training of `steps` steps: the first so
    /// many of `heads`. From `steps` on it is what the last stretch has; with fewer steps than heads
    /// some numbers are passed over.
    pub fn active_heads(self, heads: usize, step: u64, steps: u64) -> usize {
        let last = heads.saturating_sub(1);
        let stretch = if step >= steps {
            last
        } else {
            let place = u128::from(step) * heads as u128 / u128::from(steps);
            usize::try_from(place).map_or(last, |place| place.min(last))
        };
        match self {
            Self::None => heads,
            Self::Forward => heads.min(stretch + 1),
            Self::Reverse => heads - stretch,
        }
    }
}
