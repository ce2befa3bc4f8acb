//! Loss curves out of a training's `metrics.jsonl`.

use std::path::Path;

use anyhow::Context;

use crate::metrics::{self, Line};

/// Points of a curve in a report.
const POINTS: usize = 160;

/// A point is the mean of the last steps before it: one in so many of all steps.
const MEAN_OVER: usize = 40;

/// Tokens seen and mean loss of the first head, smoothed, at about [`POINTS`] places.
pub(crate) fn loss_curve(metrics: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let lines = metrics::read(metrics)?;
    let steps: Vec<(f64, f64)> = lines.iter().filter_map(loss).collect();
    Ok(smoothed(&steps, POINTS, steps.len() / MEAN_OVER))
}

/// Tokens seen and the first head's loss.
fn loss(line: &Line) -> Option<(f64, f64)> {
    Some((line.tokens? as f64, (*line.losses.first()?)?))
}

/// Steps, tokens seen and seconds of training, out of the last line.
pub(crate) fn last_step(metrics: &Path) -> anyhow::Result<(u64, u64, f64)> {
    let lines = metrics::read(metrics)?;
    let last = lines.last().and_then(|line| Some((line.step, line.tokens?, line.seconds?)));
    last.with_context(|| format!("the last line of {} is not that of a step", metrics.display()))
}

/// About `most` points of a curve, or all if it has fewer, with the last among them. Each is the
/// mean of the `window` before it, or of all since the point before where these are more.
pub(crate) fn smoothed(points: &[(f64, f64)], most: usize, window: usize) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(most.max(1)).max(1);
    let window = stretch.max(window);
    let ends = (1..=points.len()).filter(|end| end % stretch == 0 || *end == points.len());
    ends.map(|end| {
        let last = &points[end.saturating_sub(window)..end];
        let mean = last.iter().map(|(_, y)| y).sum::<f64>() / last.len() as f64;
        (points[end - 1].0, mean)
    })
    .collect()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn long_trainings_are_smoothed_and_end_at_their_last_step() {
        let steps: Vec<(f64, f64)> = (1..=1605).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let points = smoothed(&steps, 160, 40);
        assert!((140..=161).contains(&points.len()));
        assert!(points[8..].iter().all(|point| (point.1 - 0.5).abs() < 0.02));
        assert_eq!(points.last().unwrap().0, 1605.0);
    }

    #[test]
    fn short_trainings_keep_every_step() {
        let steps = [(10.0, 5.0), (20.0, 4.0), (30.0, 2.0)];
        assert_eq!(smoothed(&steps, 160, 0), steps);
        assert!(smoothed(&[], 160, 0).is_empty());
    }

    #[test]
    fn a_window_is_the_mean_of_the_steps_before() {
        let steps = [(1.0, 5.0), (2.0, 4.0), (3.0, 0.0), (4.0, 2.0)];
        assert_eq!(smoothed(&steps, 160, 2), [(1.0, 5.0), (2.0, 4.5), (3.0, 2.0), (4.0, 1.0)]);
    }
}
