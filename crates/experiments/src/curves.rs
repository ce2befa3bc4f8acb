//! Loss curves out of a training's `metrics.jsonl`.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// Points of a curve in a report.
const POINTS: usize = 160;

/// A point is the mean of the last steps before it: one in so many of all steps.
const MEAN_OVER: usize = 40;

/// Tokens seen and mean loss of the first head, smoothed, at about [`POINTS`] places.
pub(crate) fn loss_curve(metrics: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let text = std::fs::read_to_string(metrics)
        .with_context(|| format!("cannot read {}", metrics.display()))?;
    Ok(smoothed(&steps(&text)))
}

/// Steps, tokens seen and seconds of training, out of the last line.
pub(crate) fn last_step(metrics: &Path) -> anyhow::Result<(u64, u64, f64)> {
    let text = std::fs::read_to_string(metrics)
        .with_context(|| format!("cannot read {}", metrics.display()))?;
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((line["step"].as_u64()?, line["tokens"].as_u64()?, line["seconds"].as_f64()?))
    };
    let last = text.lines().rev().find_map(read);
    last.with_context(|| format!("{} has no line of a step", metrics.display()))
}

/// Tokens seen and first head's loss of each step. Of a step that was taken again after an
/// interruption, the last time counts; lines of another kind are passed over.
fn steps(text: &str) -> Vec<(f64, f64)> {
    let mut steps = std::collections::BTreeMap::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let point = (line["step"].as_u64(), line["tokens"].as_f64(), line["losses"][0].as_f64());
        if let (Some(step), Some(tokens), Some(loss)) = point {
            steps.insert(step, (tokens, loss));
        }
    }
    steps.into_values().collect()
}

fn smoothed(steps: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = steps.len().div_ceil(POINTS).max(1);
    let window = stretch.max(steps.len() / MEAN_OVER);
    let ends = (1..=steps.len()).filter(|end| end % stretch == 0 || *end == steps.len());
    ends.map(|end| {
        let last = &steps[end.saturating_sub(window)..end];
        let mean = last.iter().map(|(_, loss)| loss).sum::<f64>() / last.len() as f64;
        (steps[end - 1].0, mean)
    })
    .collect()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_step_taken_again_counts_once() {
        let text = "{\"step\":1,\"tokens\":10,\"losses\":[5.0,6.0]}\n\
                    {\"step\":2,\"tokens\":20,\"losses\":[4.0,6.0]}\n\
                    {\"step\":2,\"tokens\":20,\"losses\":[3.0,6.0]}\n\
                    {\"event\":\"resumed\"}\nnot json\n";
        assert_eq!(steps(text), [(10.0, 5.0), (20.0, 3.0)]);
    }

    #[test]
    fn long_trainings_are_smoothed_and_end_at_their_last_step() {
        let steps: Vec<(f64, f64)> = (1..=1605).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let points = smoothed(&steps);
        assert!((140..=161).contains(&points.len()));
        assert!(points[8..].iter().all(|point| (point.1 - 0.5).abs() < 0.02));
        assert_eq!(points.last().unwrap().0, 1605.0);
    }

    #[test]
    fn short_trainings_keep_every_step() {
        let steps = [(10.0, 5.0), (20.0, 4.0), (30.0, 2.0)];
        assert_eq!(smoothed(&steps), steps);
        assert!(smoothed(&[]).is_empty());
    }
}
