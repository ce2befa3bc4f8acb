//! Speculative decoding along a text that is already written.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a walk over a text counted: how often the drafts up to each head were all right.
///
/// Walks of one number of heads add up with [`Walk::merge`], window by window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// Passes in which all drafts up to head i's were accepted; `[0]` counts every pass.
    accepted: Vec<u64>,
}

impl Walk {
    /// A walk with `heads_used` heads that has not taken a step yet.
    pub fn new(heads_used: usize) -> Self {
        Self { accepted: vec![0; heads_used] }
    }

    /// Forward passes taken.
    pub fn passes(&self) -> u64 {
        self.accepted.first().copied().unwrap_or(0)
    }

    /// Tokens stepped over: one a pass for the next token, and one for each accepted draft.
    pub fn tokens(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// Tokens a forward pass, between 1 and the number of heads used; 1 before the first pass.
    pub fn tokens_per_forward(&self) -> f64 {
        match self.passes() {
            0 => 1.0,
            passes => self.tokens() as f64 / passes as f64,
        }
    }

    /// Share of the passes in which all drafts up to head i's were accepted; `[0]` is 1.
    pub fn acceptance(&self) -> Vec<f64> {
        let passes = self.passes().max(1) as f64;
        self.accepted
            .iter()
            .enumerate()
            .map(|(head, &count)| if head == 0 { 1.0 } else { count as f64 / passes })
            .collect()
    }

    /// Adds the counts of another walk with the same number of heads.
    pub fn merge(&mut self, other: &Self) {
        if self.accepted.len() < other.accepted.len() {
            self.accepted.resize(other.accepted.len(), 0);
        }
        for (sum, count) in self.accepted.iter_mut().zip(&other.accepted) {
            *sum += count;
        }
    }

    /// Records a pass in which `drafts` drafts were accepted.
    fn step(&mut self, drafts: usize) {
        for count in &mut self.accepted[..=drafts] {
            *count += 1;
        }
    }
}

/// Walks `text` as if it were the output of decoding with the first `heads_used` heads.
///
/// `drafts[i][p]` is what head i predicts when it has read `text[..=p]`: the token at
/// `p + 1 + i`. At position p the next token `text[p + 1]` always counts; the drafts of heads
/// 1, 2, … are accepted up to the first that differs from the text; the walk goes on at the last
/// token that was accepted. It ends after the last position that has drafts.
///
/// # Errors
///
/// When `heads_used` is 0 or more than there are drafts, when the heads have drafts for different
/// numbers of positions, or when the text ends before the last draft can be checked.
pub fn walk<D: AsRef<[u32]>>(text: &[u32], drafts: &[D], heads_used: usize) -> Result<Walk> {
    let positions = check(text, drafts, heads_used)?;
    let mut walk = Walk::new(heads_used);
    let mut position = 0;
    while position < positions {
        let accepted = (1..heads_used)
            .take_while(|&head| drafts[head].as_ref()[position] == text[position + 1 + head])
            .count();
        walk.step(accepted);
        position += 1 + accepted;
    }
    Ok(walk)
}

/// The number of positions with drafts, once the shapes are known to fit.
fn check<D: AsRef<[u32]>>(text: &[u32], drafts: &[D], heads_used: usize) -> Result<usize> {
    if heads_used == 0 || heads_used > drafts.len() {
        return Err(Error::HeadsUsed { used: heads_used, available: drafts.len() });
    }
    let positions = drafts[0].as_ref().len();
    if let Some(head) = drafts.iter().position(|d| d.as_ref().len() != positions) {
        return Err(Error::UnevenDrafts {
            head,
            expected: positions,
            found: drafts[head].as_ref().len(),
        });
    }
    if text.len() < positions + heads_used {
        return Err(Error::TextTooShort { needed: positions + heads_used, found: text.len() });
    }
    Ok(positions)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "ratios of small counts are exact")]
mod tests {
    use super::*;

    const WRONG: u32 = 999;

    /// Drafts that agree with the text where `right(head, position)` says so.
    fn drafts(
        text: &[u32],
        heads: usize,
        positions: usize,
        right: impl Fn(usize, usize) -> bool,
    ) -> Vec<Vec<u32>> {
        (0..heads)
            .map(|head| {
                (0..positions)
                    .map(|p| if right(head, p) { text[p + 1 + head] } else { WRONG })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn one_head_takes_one_pass_a_token_whatever_it_predicts() {
        let text: Vec<u32> = (0..10).collect();
        let walk = walk(&text, &drafts(&text, 1, 9, |_, _| false), 1).unwrap();
        assert_eq!((walk.passes(), walk.tokens()), (9, 9));
        assert_eq!(walk.acceptance(), [1.0]);
    }

    #[test]
    fn perfect_drafts_give_as_many_tokens_a_pass_as_heads() {
        let text: Vec<u32> = (0..16).collect();
        let walk = walk(&text, &drafts(&text, 4, 12, |_, _| true), 4).unwrap();
        assert_eq!((walk.passes(), walk.tokens()), (3, 12));
        assert_eq!(walk.acceptance(), [1.0; 4]);
    }

    #[test]
    fn a_draft_after_a_wrong_one_is_not_accepted() {
        let text: Vec<u32> = (0..16).collect();
        // Head 1 always wrong, heads 2 and 3 always right: no draft ever counts.
        let walk = walk(&text, &drafts(&text, 4, 12, |head, _| head != 1), 4).unwrap();
        assert_eq!(walk.tokens_per_forward(), 1.0);
        assert_eq!(walk.acceptance(), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_walk_goes_on_after_what_was_accepted() {
        let text: Vec<u32> = (0..10).collect();
        // Right at 0 (both drafts), at 3 (one draft) and at 4, which is stepped over.
        let right = |head: usize, p: usize| matches!((head, p), (1 | 2, 0 | 4) | (1, 3));
        let walk = walk(&text, &drafts(&text, 3, 7, right), 3).unwrap();
        // Positions 0 (+3), 3 (+2), 5 (+1), 6 (+1).
        assert_eq!((walk.passes(), walk.tokens()), (4, 7));
        assert_eq!(walk.acceptance(), [1.0, 0.5, 0.25]);
    }

    #[test]
    fn walks_of_windows_add_up() {
        let text: Vec<u32> = (0..8).collect();
        let all = drafts(&text, 2, 6, |_, _| true);
        let none = drafts(&text, 2, 6, |_, _| false);
        let mut sum = walk(&text, &all, 2).unwrap();
        sum.merge(&walk(&text, &none, 2).unwrap());
        assert_eq!((sum.passes(), sum.tokens()), (3 + 6, 6 + 6));
    }

    #[test]
    fn drafts_that_reach_past_the_text_are_refused() {
        let text: Vec<u32> = (0..8).collect();
        let drafts = vec![vec![0; 7]; 3];
        assert!(matches!(
            walk(&text, &drafts, 3),
            Err(Error::TextTooShort { needed: 10, found: 8 })
        ));
    }

    #[test]
    fn more_heads_than_there_are_drafts_are_refused() {
        let drafts = vec![vec![0; 2]; 2];
        assert!(walk(&[0; 9], &drafts, 3).is_err());
        assert!(walk(&[0; 9], &drafts, 0).is_err());
        assert!(walk(&[0; 9], &[vec![0; 2], vec![0; 3]], 2).is_err());
    }
}
