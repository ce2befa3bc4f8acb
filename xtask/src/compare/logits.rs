//! The same logits at every position of a prompt.

use anyhow::Result;
use serde_json::json;

use super::sides::{Ours, Theirs, text};
use super::{Check, Plan};

/// The most that a logit may differ by.
pub(super) const MOST_DIFFERENCE: f64 = 2e-3;

/// Holds `foretoken logits` against the peer's forward pass.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let file = ours.file("logits.safetensors")?;
    let mut rows = Vec::new();
    let mut largest: f64 = 0.0;
    for (index, prompt) in plan.prompts.iter().enumerate() {
        ours.logits(prompt, &file)?;
        let request = json!({"do": "logits", "prompt": prompt, "file": text(&file)?});
        let answer = theirs.ask(&request)?;
        // It says null of other tokens, another shape and of what is not a number.
        let difference = answer["largest_difference"].as_f64();
        largest = largest.max(difference.unwrap_or(f64::INFINITY));
        rows.push(json!({
            "prompt": index, "tokens": answer["tokens"], "largest_difference": difference,
        }));
    }
    Ok(Check {
        passed: largest <= MOST_DIFFERENCE,
        summary: format!(
            "logits: largest difference {largest:.2e} over {} prompts (bar: {MOST_DIFFERENCE})",
            rows.len()
        ),
        figures: json!({
            "largest_difference": largest, "prompts": rows,
            "bars": {"most_difference": MOST_DIFFERENCE},
        }),
    })
}
