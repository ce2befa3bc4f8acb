//! Whether two generations are the same, and if not, where they part.

use serde::{Deserialize, Serialize};

/// The largest gap between the two best logits that counts as a near tie. Float32 products of one
/// row and of several rows may round differently by about this much.
pub const NEAR_TIE: f32 = 1e-4;

/// How a speculative generation compares with the autoregressive one of the same prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Comparison {
    /// Every token is the same.
    Identical,
    /// They part where the two best logits lie within [`NEAR_TIE`] of each other.
    NearTie {
        /// The first position (of the new tokens) that differs.
        position: usize,
        /// Best minus second-best logit there.
        gap: f32,
    },
    /// They part where one token was clearly better.
    Mismatch {
        /// The first position (of the new tokens) that differs.
        position: usize,
        /// Best minus second-best logit there, where it was recorded.
        gap: Option<f32>,
    },
}

/// Compares a generation with the reference, whose logit `gaps` decide what is a near tie.
///
/// `gaps[p]` is the best minus the second-best logit with which the reference chose its token p.
/// A generation that stops before the other does differs at its end.
pub fn compare(reference: &[u32], gaps: &[f32], other: &[u32]) -> Comparison {
    let shared = reference.iter().zip(other).take_while(|(a, b)| a == b).count();
    if shared == reference.len() && shared == other.len() {
        return Comparison::Identical;
    }
    match gaps.get(shared).copied() {
        Some(gap) if gap <= NEAR_TIE => Comparison::NearTie { position: shared, gap },
        gap => Comparison::Mismatch { position: shared, gap },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outputs_are_identical_even_with_ties_inside() {
        assert_eq!(compare(&[1, 2], &[0.0, 0.0], &[1, 2]), Comparison::Identical);
    }

    #[test]
    fn only_the_gap_at_the_first_difference_decides() {
        let gaps = [1e-6, 0.5, 1e-6];
        let parted = compare(&[1, 2, 3], &gaps, &[1, 7, 8]);
        assert_eq!(parted, Comparison::Mismatch { position: 1, gap: Some(0.5) });
        let tied = compare(&[1, 2, 3], &gaps, &[4, 2, 3]);
        assert_eq!(tied, Comparison::NearTie { position: 0, gap: 1e-6 });
    }

    #[test]
    fn an_output_that_stops_early_is_a_mismatch() {
        let parted = compare(&[1, 2], &[1.0, 1.0], &[1, 2, 3]);
        assert_eq!(parted, Comparison::Mismatch { position: 2, gap: None });
    }

    #[test]
    fn a_difference_without_a_recorded_gap_is_a_mismatch() {
        assert!(matches!(compare(&[1], &[], &[2]), Comparison::Mismatch { gap: None, .. }));
    }

    #[test]
    fn a_gap_that_is_not_a_number_is_no_near_tie() {
        assert!(matches!(compare(&[1], &[f32::NAN], &[2]), Comparison::Mismatch { .. }));
    }
}
