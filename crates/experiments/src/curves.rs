//! Loss curves out of a training's `metrics.jsonl`.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// Points of a curve in a report.
const POINTS: usize = 160;

/// Tokens seen and mean loss of the first head, averaged over about [`POINTS`] stretches.
pub(crate) fn loss_curve(metrics: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let text = std::fs::read_to_string(metrics)
        .with_context(|| format!("cannot read {}", metrics.display()))?;
    Ok(averaged(&steps(&text)))
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

fn averaged(steps: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = steps.len().div_ceil(POINTS).max(1);
    steps
        .chunks(stretch)
        .filter_map(|chunk| {
            let (tokens, _) = chunk.last()?;
            let mean = chunk.iter().map(|(_, loss)| loss).sum::<f64>() / chunk.len() as f64;
            Some((*tokens, mean))
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
    fn long_trainings_are_averaged_over_stretches() {
        let steps: Vec<(f64, f64)> = (1..=1600).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let points = averaged(&steps);
        assert_eq!(points.len(), 160);
        assert!(points.iter().all(|point| point.1 == 0.5));
        assert_eq!(points.last().unwrap().0, 1600.0);
    }
}
