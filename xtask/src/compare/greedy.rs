//! The same tokens, greedily, unless two of them lie closer than float32 tells apart.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::sides::{Ours, Theirs};
use super::{Check, Plan};
use crate::bench::answers::Answer;

/// How far below the peer's best logit the tokens of both sides may lie where they part. Two sums
/// of the same float32 products in another order come that close.
const NEAR_TIE: f64 = 4e-3;

/// Decodes every prompt on both sides.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let mine = ours.generate(&plan.prompts, plan.tokens)?;
    let others = theirs.generate(&plan.prompts, plan.tokens)?;
    let prompts: Vec<(usize, &str)> = plan.some(plan.prompts.len()).collect();
    let parted = partings(theirs, &prompts, [&mine, &others])?;
    let mismatches = parted.iter().filter(|parting| !parting.is_near_tie()).count();
    let mut summary = vec![format!(
        "greedy tokens: {} of {} prompts the same over {} tokens, {} near ties, {mismatches} \
         mismatches (bar: 0, but for ties within {NEAR_TIE})",
        plan.prompts.len() - parted.len(),
        plan.prompts.len(),
        plan.tokens,
        parted.len() - mismatches,
    )];
    summary.extend(parted.iter().map(|parting| format!("  {}", parting.line())));
    Ok(Check {
        passed: mismatches == 0,
        summary: summary.join("\n"),
        figures: json!({
            "prompts": plan.prompts.len(), "new_tokens_each": plan.tokens,
            "mismatches": mismatches, "near_ties": parted.len() - mismatches,
            "parted": parted.iter().map(Parting::json).collect::<Vec<_>>(),
            "bars": {"near_tie": NEAR_TIE},
        }),
    })
}

/// Where our continuations of some prompts, given with their places, part from the peer's.
pub(super) fn partings(
    theirs: &mut Theirs,
    prompts: &[(usize, &str)],
    [mine, others]: [&[Answer]; 2],
) -> Result<Vec<Parting>> {
    let mut parted = Vec::new();
    for (&(place, prompt), (mine, other)) in prompts.iter().zip(mine.iter().zip(others)) {
        if let Some(step) = first_difference(&mine.tokens, &other.tokens) {
            let tokens = [&mine.tokens[..], &other.tokens];
            parted.push(Parting::find(theirs, place, prompt, step, tokens)?);
        }
    }
    Ok(parted)
}

/// The step at which two texts part; one that ends early parts there.
fn first_difference(left: &[u64], right: &[u64]) -> Option<usize> {
    let common = left.iter().zip(right).take_while(|(left, right)| left == right).count();
    (common < left.len().max(right.len())).then_some(common)
}

/// Where the sides went apart.
pub(super) struct Parting {
    prompt: usize,
    step: usize,
    /// Our token there and the peer's, while there is one.
    next: [Option<u64>; 2],
    /// How far the lower of the two lies below the peer's best logit.
    gap: Option<f64>,
    /// The gap of the peer's two best logits.
    gap_of_two_best: Option<f64>,
}

impl Parting {
    /// The peer computes the logits of the common beginning anew.
    fn find(
        theirs: &mut Theirs,
        prompt: usize,
        text: &str,
        step: usize,
        [mine, other]: [&[u64]; 2],
    ) -> Result<Self> {
        let next = [mine.get(step).copied(), other.get(step).copied()];
        let [Some(ours), Some(peers)] = next else {
            return Ok(Self { prompt, step, next, gap: None, gap_of_two_best: None });
        };
        let common = &mine[..step];
        let answer = theirs
            .ask(&json!({"do": "gap", "prompt": text, "tokens": common, "next": [ours, peers]}))?;
        let figure =
            |name: &str| answer[name].as_f64().with_context(|| format!("no {name} in {answer}"));
        let (gap, gap_of_two_best) = (Some(figure("gap")?), Some(figure("gap_of_two_best")?));
        Ok(Self { prompt, step, next, gap, gap_of_two_best })
    }

    pub(super) fn is_near_tie(&self) -> bool {
        self.gap.is_some_and(|gap| gap <= NEAR_TIE)
    }

    pub(super) fn line(&self) -> String {
        let token = |token: Option<u64>| token.map_or("the end".to_owned(), |id| id.to_string());
        let number = |gap: Option<f64>| gap.map_or("none".to_owned(), |gap| format!("{gap:.2e}"));
        format!(
            "prompt {} at step {}: {} here, {} there; below the best {}, the two best apart {}{}",
            self.prompt,
            self.step,
            token(self.next[0]),
            token(self.next[1]),
            number(self.gap),
            number(self.gap_of_two_best),
            if self.is_near_tie() { ", a near tie" } else { ", A MISMATCH" }
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "prompt": self.prompt, "step": self.step,
            "ours": self.next[0], "transformers": self.next[1],
            "gap": self.gap, "gap_of_two_best": self.gap_of_two_best,
            "near_tie": self.is_near_tie(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_part_at_the_first_other_token_or_where_one_ends() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(first_difference(&[1, 2, 3], &[1, 5, 3]), Some(1));
        assert_eq!(first_difference(&[1, 2], &[1, 2, 3]), Some(2));
        assert_eq!(first_difference(&[], &[]), None);
    }

    #[test]
    fn a_near_tie_needs_a_small_gap_and_two_tokens() {
        let parting = |other: Option<u64>, gap: Option<f64>| Parting {
            prompt: 0,
            step: 2,
            next: [Some(7), other],
            gap,
            gap_of_two_best: gap,
        };
        assert!(parting(Some(8), Some(NEAR_TIE / 2.0)).is_near_tie());
        assert!(!parting(Some(8), Some(NEAR_TIE * 2.0)).is_near_tie());
        assert!(!parting(None, None).is_near_tie());
    }
}
