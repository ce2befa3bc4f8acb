//! Line charts as SVG: the one kind of picture that the reports need.
//!
//! A [`Panel`] is one pair of axes. Colours are classes (`line-0`, `dot-0`, …) that the style
//! sheet around it defines, so that one picture serves a light and a dark page.

use std::fmt::Write;

use super::label::{Label, Obstacle};
use super::text::escape;

/// How a number is written.
pub(crate) type Format = fn(f64) -> String;

/// One line of a chart.
pub(crate) struct Series {
    /// What the line shows, for its tooltip.
    pub(crate) name: String,
    /// Which colour of the palette.
    pub(crate) colour: usize,
    /// The line, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Which points of the lines are marked and labelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// None: the line has too many.
    None,
    /// All are marked, the last one has its value.
    Last,
    /// All are marked, the highest one has its value.
    Highest,
}

/// One pair of axes with its lines.
pub(crate) struct Panel {
    /// What the vertical axis shows; stands above it.
    pub(crate) title: String,
    /// What the horizontal axis shows; stands below it.
    pub(crate) x_label: String,
    /// How ticks of the horizontal axis are written.
    pub(crate) x_format: Format,
    /// How ticks of the vertical axis are written.
    pub(crate) y_format: Format,
    /// How values at the end of a line are written.
    pub(crate) value_format: Format,
    /// The lines.
    pub(crate) series: Vec<Series>,
    /// Which points are marked and labelled.
    pub(crate) marks: Marks,
    /// A value of the vertical axis that is included and drawn as a line of reference.
    pub(crate) reference: Option<f64>,
    /// Whether the vertical axis starts at 0 and ends at 1.
    pub(crate) share: bool,
}

/// Width and height of a panel in SVG units.
pub(crate) const SIZE: (f64, f64) = (400.0, 268.0);
const LEFT: f64 = 42.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 46.0;

impl Panel {
    /// The panel as an `<svg>` element for a page that has the style sheet.
    pub(crate) fn svg(&self) -> String {
        let (width, height) = SIZE;
        format!(
            "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{}</svg>",
            escape(&self.title),
            self.group(0.0, 0.0)
        )
    }

    /// The panel as a `<g>` element at a place in a larger picture.
    pub(crate) fn group(&self, x: f64, y: f64) -> String {
        let frame = Frame::around(self);
        let mut svg = format!("<g transform=\"translate({x} {y})\">");
        let _ =
            write!(svg, "<text class=\"title\" x=\"4\" y=\"20\">{}</text>", escape(&self.title));
        self.draw_axes(&frame, &mut svg);
        for series in &self.series {
            self.draw_series(series, &frame, &mut svg);
        }
        if self.marks != Marks::None {
            self.draw_labels(&frame, &mut svg);
        }
        svg.push_str("</g>");
        svg
    }

    fn draw_axes(&self, frame: &Frame, svg: &mut String) {
        let (left, right) = (LEFT, SIZE.0 - RIGHT);
        let bottom = SIZE.1 - BOTTOM;
        for &tick in &frame.y_ticks {
            let y = frame.y(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                y + 4.0,
                escape(&(self.y_format)(tick))
            );
        }
        for &tick in &frame.x_ticks {
            let x = frame.x(tick);
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                escape(&(self.x_format)(tick))
            );
        }
        if let Some(reference) = self.reference {
            let y = frame.y(reference);
            let _ = write!(
                svg,
                "<line class=\"reference\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
        }
        let _ = write!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(left, right),
            bottom + 38.0,
            escape(&self.x_label)
        );
    }

    fn draw_series(&self, series: &Series, frame: &Frame, svg: &mut String) {
        let visible: Vec<(f64, f64)> = series
            .points
            .iter()
            .copied()
            .filter(|&(_, y)| y <= frame.y_range.1 && y >= frame.y_range.0)
            .collect();
        let path: Vec<String> =
            visible.iter().map(|&(x, y)| format!("{:.1},{:.1}", frame.x(x), frame.y(y))).collect();
        let colour = series.colour;
        if path.len() > 1 {
            let _ = write!(
                svg,
                "<polyline class=\"line line-{colour}\" points=\"{}\"><title>{}</title></polyline>",
                path.join(" "),
                escape(&series.name)
            );
        }
        if self.marks != Marks::None {
            for &(x, y) in &visible {
                let _ = write!(
                    svg,
                    "<circle class=\"dot dot-{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}, {}: {}</title></circle>",
                    frame.x(x),
                    frame.y(y),
                    escape(&series.name),
                    escape(&(self.x_format)(x)),
                    escape(&(self.value_format)(y))
                );
            }
        }
    }

    /// One value of each line, where it covers least.
    fn draw_labels(&self, frame: &Frame, svg: &mut String) {
        let obstacles = self.obstacles(frame);
        let mut placed: Vec<Label> = Vec::new();
        for series in &self.series {
            let Some((x, y)) = self.labelled(series) else {
                continue;
            };
            let text = (self.value_format)(y);
            let place = (frame.x(x), frame.y(y));
            let label = Label::around(place, &text, LEFT..SIZE.0, &obstacles, &placed);
            let _ = write!(
                svg,
                "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                label.x,
                label.y + 4.0,
                escape(&text)
            );
            placed.push(label);
        }
    }

    /// The point of a line that is labelled.
    fn labelled(&self, series: &Series) -> Option<(f64, f64)> {
        let mut finite = series.points.iter().copied().filter(|point| point.1.is_finite());
        match self.marks {
            Marks::None => None,
            Marks::Last => finite.next_back(),
            Marks::Highest => finite.max_by(|a, b| a.1.total_cmp(&b.1)),
        }
    }

    /// Places that a label should leave free: dots, and points along lines.
    fn obstacles(&self, frame: &Frame) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        for series in &self.series {
            let points: Vec<(f64, f64)> =
                series.points.iter().map(|&(x, y)| (frame.x(x), frame.y(y))).collect();
            obstacles.extend(points.iter().map(|&(x, y)| Obstacle { x, y, weight: 6.0 }));
            for pair in points.windows(2) {
                let between = |share: f64| {
                    let along = |from: f64, to: f64| from + share * (to - from);
                    let (x, y) = (along(pair[0].0, pair[1].0), along(pair[0].1, pair[1].1));
                    Obstacle { x, y, weight: 1.0 }
                };
                obstacles.extend((1..8).map(|part| between(f64::from(part) / 8.0)));
            }
        }
        obstacles
    }
}

/// Where values lie in a panel.
struct Frame {
    x_range: (f64, f64),
    y_range: (f64, f64),
    x_ticks: Vec<f64>,
    y_ticks: Vec<f64>,
}

impl Frame {
    fn around(panel: &Panel) -> Self {
        let points = || panel.series.iter().flat_map(|s| &s.points);
        let x_range = bounds(points().map(|p| p.0));
        let y_range = if panel.share {
            (0.0, 1.0)
        } else if panel.marks != Marks::None {
            let values = points().map(|p| p.1).chain(panel.reference);
            bounds(values)
        } else {
            settled(panel, x_range)
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

    fn x(&self, value: f64) -> f64 {
        let inset = 6.0;
        let share = (value - self.x_range.0) / (self.x_range.1 - self.x_range.0);
        LEFT + inset + share * (SIZE.0 - LEFT - RIGHT - 2.0 * inset)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.y_range.0) / (self.y_range.1 - self.y_range.0);
        SIZE.1 - BOTTOM - share * (SIZE.1 - TOP - BOTTOM)
    }
}

/// The range of a loss curve without the steep start, which would flatten the rest.
fn settled(panel: &Panel, x_range: (f64, f64)) -> (f64, f64) {
    let start = x_range.0 + 0.08 * (x_range.1 - x_range.0);
    let values = panel.series.iter().flat_map(|s| &s.points);
    let late = values.filter(|p| p.0 >= start).map(|p| p.1);
    bounds(late)
}

/// Smallest and largest of the finite values, never equal.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        (0.0, 1.0)
    } else if high - low < 1e-9 {
        (low, low + 1.0)
    } else {
        (low, high)
    }
}

/// The smallest of 1, 2, 2.5, 5 × 10ⁿ that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&nice| nice >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

fn ticks(low: f64, high: f64, step: f64) -> Vec<f64> {
    let count = ((high - low) / step + 1e-6).floor().max(0.0) as usize;
    (0..=count).map(|i| low + i as f64 * step).collect()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "ticks are round numbers")]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>, marks: Marks) -> Panel {
        Panel {
            title: "a < b".to_owned(),
            x_label: "heads".to_owned(),
            x_format: |x| format!("{x:.0}"),
            y_format: |y| format!("{y:.1}"),
            value_format: |y| format!("{y:.2}"),
            series: vec![Series { name: "n = 4".to_owned(), colour: 2, points }],
            marks,
            reference: None,
            share: false,
        }
    }

    #[test]
    fn larger_values_are_drawn_higher_and_further_right() {
        let panel = panel(vec![(1.0, 1.0), (2.0, 1.5), (4.0, 2.0)], Marks::Last);
        let frame = Frame::around(&panel);
        assert!(frame.x(4.0) > frame.x(2.0));
        assert!(frame.y(2.0) < frame.y(1.0));
        assert!(frame.y(2.0) >= TOP && frame.y(1.0) <= SIZE.1 - BOTTOM);
    }

    #[test]
    fn every_point_is_marked_and_the_last_one_labelled() {
        let svg = panel(vec![(1.0, 1.0), (2.0, 1.5), (4.0, 1.987)], Marks::Last).svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("class=\"value\"") && svg.contains(">1.99</text>"));
        assert!(svg.contains("a &lt; b"));
    }

    #[test]
    fn the_label_stands_at_the_highest_point_where_that_is_asked_for() {
        let points = vec![(1.0, 1.0), (2.0, 1.618), (4.0, 0.5)];
        let svg = panel(points, Marks::Highest).svg();
        let labels: Vec<&str> = svg.split("class=\"value\"").skip(1).collect();
        assert_eq!(labels.len(), 1);
        assert!(labels[0].contains(">1.62</text>"));
    }

    #[test]
    fn the_steep_start_of_a_loss_curve_is_cut() {
        let points = (0..100).map(|i| (f64::from(i), 1.0 + 5.0 * (-f64::from(i)).exp()));
        let frame = Frame::around(&panel(points.collect(), Marks::None));
        assert!(frame.y_range.1 < 2.0);
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

    #[test]
    fn charts_of_one_point_or_none_have_no_infinite_coordinates() {
        for points in [vec![], vec![(1.0, 1.0)], vec![(1.0, f64::NAN)]] {
            let svg = panel(points, Marks::Last).svg();
            assert!(!svg.contains("inf") && !svg.contains("NaN,") && !svg.contains("=\"NaN"));
        }
    }
}
