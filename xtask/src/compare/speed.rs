//! Plain decoding, in turns.

use anyhow::Result;
use serde_json::json;

use super::sides::{Ours, Theirs};
use super::{Check, Plan};
use crate::bench::answers::tokens_per_second;
use crate::bench::statistics::{median, rounded};

/// The least that our tokens per second may be of transformers'.
const LEAST_RATIO: f64 = 1.0;
const PROMPTS: usize = 4;

/// Decodes a few prompts on both sides alternately, after a turn each to warm up.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let prompts: Vec<String> = plan.some(PROMPTS).map(|(_, prompt)| prompt.to_owned()).collect();
    let mut speeds = [Vec::new(), Vec::new()];
    for round in 0..=plan.rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let answers = match side {
                0 => ours.generate(&prompts, plan.tokens)?,
                _ => theirs.generate(&prompts, plan.tokens)?,
            };
            // Round 0 warms up.
            if round > 0 {
                speeds[side].push(tokens_per_second(&answers));
            }
        }
    }
    let [mine, other] = [median(&speeds[0]), median(&speeds[1])];
    let ratio = mine / other;
    let side = |speed: f64, all: &[f64]| {
        let all: Vec<f64> = all.iter().map(|&speed| rounded(speed, 2)).collect();
        json!({"tokens_per_second": rounded(speed, 2), "all": all})
    };
    Ok(Check {
        passed: ratio >= LEAST_RATIO,
        summary: format!(
            "plain decoding: {mine:.1} tokens/s, transformers {other:.1}, ratio {ratio:.2} (bar: \
             {LEAST_RATIO:.2})"
        ),
        figures: json!({
            "prompts": prompts.len(), "new_tokens_each": plan.tokens, "alternations": plan.rounds,
            "ours": side(mine, &speeds[0]), "transformers": side(other, &speeds[1]),
            "ratio": rounded(ratio, 3), "bars": {"least_ratio": LEAST_RATIO},
        }),
    })
}
