//! Ranges and ticks of a chart's axes.

use super::chart::{BOTTOM, LEFT, Marks, Panel, RIGHT, Reach, SIZE, TOP};

/// Where values lie in a panel.
pub(super) struct Frame {
    pub(super) x_range: (f64, f64),
    pub(super) y_range: (f64, f64),
    pub(super) x_ticks: Vec<f64>,
    pub(super) y_ticks: Vec<f64>,
}

impl Frame {
    /// Ranges and round ticks for the lines of a panel.
    pub(super) fn around(panel: &Panel) -> Self {
        let points = || panel.series.iter().flat_map(|s| &s.points);
        let x_range = bounds(points().map(|p| p.0));
        let y_range = match panel.reach {
            Reach::All => bounds(points().map(|p| p.1).chain(panel.reference)),
            Reach::Settled => settled(panel),
            Reach::Share => (0.0, 1.0),
        };
        let y_step = nice_step((y_range.1 - y_range.0) / 4.0);
        let low = (y_range.0 / y_step + 1e-9).floor() * y_step;
        let high = (y_range.1 / y_step - 1e-9).ceil() * y_step;
        let y_ticks = ticks(low, high, y_step);
        let span = x_range.1 - x_range.0;
        let x_step = match panel.marks {
            Marks::None => nice_step(span / 5.0),
            Marks::Last | Marks::Highest => (span / 12.0).ceil().max(1.0),
        };
        Self {
            x_range,
            y_range: (low, high),
            x_ticks: ticks((x_range.0 / x_step).ceil() * x_step, x_range.1, x_step),
            y_ticks,
        }
    }

    /// Where a value lies from the left.
    pub(super) fn x(&self, value: f64) -> f64 {
        let inset = 6.0;
        let share = (value - self.x_range.0) / (self.x_range.1 - self.x_range.0);
        LEFT + inset + share * (SIZE.0 - LEFT - RIGHT - 2.0 * inset)
    }

    /// Where a value lies from above.
    pub(super) fn y(&self, value: f64) -> f64 {
        let share = (value - self.y_range.0) / (self.y_range.1 - self.y_range.0);
        SIZE.1 - BOTTOM - share * (SIZE.1 - TOP - BOTTOM)
    }
}

/// The range of loss curves without the steep start of each, which would flatten the rest.
fn settled(panel: &Panel) -> (f64, f64) {
    let late = panel.series.iter().flat_map(|series| {
        let x_range = bounds(series.points.iter().map(|p| p.0));
        let start = x_range.0 + 0.08 * (x_range.1 - x_range.0);
        series.points.iter().filter(move |p| p.0 >= start || series.points.len() == 1).map(|p| p.1)
    });
    bounds(late)
}

/// Smallest and largest of the finite values, never equal.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let size = low.abs().max(high.abs());
    if low > high {
        (0.0, 1.0)
    } else if high - low <= 1e-9 * size {
        // As far again as the value is from 0, so that it can be read off.
        (low, low + if size > 0.0 { size } else { 1.0 })
    } else {
        (low, high)
    }
}

const MOST_TICKS: f64 = 20.0;

/// The smallest of 1, 2, 2.5, 5 × 10ⁿ that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&nice| nice >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// Never more than [`MOST_TICKS`], whatever the numbers are.
fn ticks(low: f64, high: f64, step: f64) -> Vec<f64> {
    let count = ((high - low) / step + 1e-6).floor().clamp(0.0, MOST_TICKS) as usize;
    (0..=count).map(|i| low + i as f64 * step).collect()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "ticks are round numbers")]
mod tests {
    use super::super::chart::{Series, tests::panel};
    use super::*;

    #[test]
    fn larger_values_are_drawn_higher_and_further_right() {
        let panel = panel(vec![(1.0, 1.0), (2.0, 1.5), (4.0, 2.0)], Marks::Last);
        let frame = Frame::around(&panel);
        assert!(frame.x(4.0) > frame.x(2.0));
        assert!(frame.y(2.0) < frame.y(1.0));
        assert!(frame.y(2.0) >= TOP && frame.y(1.0) <= SIZE.1 - BOTTOM);
    }

    #[test]
    fn the_steep_start_of_a_loss_curve_is_cut() {
        let points = (0..100).map(|i| (f64::from(i), 1.0 + 5.0 * (-f64::from(i)).exp()));
        let frame = Frame::around(&panel(points.collect(), Marks::None));
        assert!(frame.y_range.1 < 2.0);
    }

    #[test]
    fn each_line_has_its_own_start_so_that_a_short_one_is_not_all_start() {
        let mut panel = panel((0..100).map(|i| (f64::from(i), 1.0)).collect(), Marks::None);
        let points = vec![(0.0, 9.0), (1.0, 5.0), (2.0, 4.0), (3.0, 3.0)];
        panel.series.push(Series { name: "short".to_owned(), colour: 1, points });
        let frame = Frame::around(&panel);
        assert_eq!(frame.y_range.1, 5.0);
        assert_eq!(panel.svg().matches("<polyline").count(), 2);
    }

    #[test]
    fn small_values_that_stay_have_an_axis_of_their_size() {
        let frame = Frame::around(&panel(vec![(0.0, 1e-4), (1.0, 1e-4)], Marks::Last));
        assert!(frame.y_range.0 >= 5e-5 && frame.y_range.1 <= 3e-4, "{:?}", frame.y_range);
    }

    #[test]
    fn numbers_at_the_edge_of_what_there_is_make_no_endless_axis() {
        for value in [5e-324, 1e-310, f64::MAX, -f64::MAX] {
            for points in [vec![(0.0, value)], vec![(0.0, -value), (1.0, value)]] {
                let frame = Frame::around(&panel(points, Marks::Last));
                assert!(frame.y_ticks.len() <= 21 && frame.x_ticks.len() <= 21);
            }
        }
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(nice_step(0.13), 0.2);
        assert_eq!(nice_step(0.25), 0.25);
        let frame = Frame::around(&panel(vec![(1.0, 1.02), (8.0, 1.91)], Marks::Last));
        assert_eq!(frame.y_ticks.first(), Some(&1.0));
        assert!(frame.y_ticks.last().unwrap() >= &1.91);
        assert_eq!(frame.x_ticks.len(), 8);
    }
}
