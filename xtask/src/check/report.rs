//! The bars that a smoke report has to pass.

use serde_json::Value;

const HEADS: u64 = 4;
/// Drafting nothing but spaces reaches 1.21 on this corpus.
const HELD_OUT_TOKENS_PER_FORWARD: f64 = 1.25;
/// Nats a byte; the entropy of single bytes is above 3.
const NEXT_TOKEN_LOSS: f64 = 2.5;

/// What a smoke report lacks: with four heads, all of them used, the outputs are those of plain
/// decoding, held-out text takes fewer passes than tokens, and the first head has learned.
pub(crate) fn smoke_problems(report: &Value) -> Vec<String> {
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let Some(model) = list("models").into_iter().find(|model| model["heads"] == HEADS) else {
        return vec![format!("no model with {HEADS} heads is in the report")];
    };
    let used = |row: &Value| row["model"] == model["name"] && row["heads_used"] == HEADS;
    let Some(row) = list("decoding").into_iter().find(used) else {
        return vec![format!("the model with {HEADS} heads was not decoded with all of them")];
    };
    let mut problems = Vec::new();
    if row["identical_outputs"] != true {
        problems.push(format!("{} prompts differ from plain decoding", row["mismatches"]));
    }
    let held_out = row["held_out_tokens_per_forward"].as_f64().unwrap_or(f64::NAN);
    if held_out.is_nan() || held_out <= HELD_OUT_TOKENS_PER_FORWARD {
        problems.push(format!(
            "held_out_tokens_per_forward is {held_out:.3}, not above {HELD_OUT_TOKENS_PER_FORWARD}"
        ));
    }
    let loss = model["validation_loss"][0].as_f64().unwrap_or(f64::NAN);
    if loss.is_nan() || loss >= NEXT_TOKEN_LOSS {
        problems
            .push(format!("the first head's loss is {loss:.3} nats, not under {NEXT_TOKEN_LOSS}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::schema::tests::{good_report, report_with};
    use super::*;

    #[test]
    fn a_report_over_the_bars_passes() {
        assert_eq!(smoke_problems(&good_report()), Vec::<String>::new());
    }

    #[test]
    fn a_report_under_a_bar_fails() {
        for (pointer, value) in [
            ("/decoding/1/identical_outputs", json!(false)),
            ("/decoding/1/held_out_tokens_per_forward", json!(1.21)),
            ("/models/0/validation_loss/0", json!(2.5)),
            ("/models/0/heads", json!(2)),
            ("/decoding/1/heads_used", json!(3)),
        ] {
            assert_eq!(smoke_problems(&report_with(pointer, value)).len(), 1, "{pointer}");
        }
    }
}
