//! Line charts as SVG: the one kind of picture that the reports need.
//!
//! A [`Panel`] is one pair of axes. Colours are classes (`line-0`, `dot-0`, …) that the style
//! sheet around it defines, so that one picture serves a light and a dark page.

use std::fmt::Write;

use super::frame::Frame;
use super::label::{Label, Obstacle};
use super::text::escape;

/// How a number is written.
pub(crate) type Format = fn(f64) -> String;

/// One line of a chart.
#[derive(Debug)]
pub(crate) struct Series {
    /// What the line shows, for its tooltip.
    pub(crate) name: String,
    /// Which colour of the palette; from [`COLOURS`] on they come again, dashed.
    pub(crate) colour: usize,
    /// The line, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Which points of the lines are marked and labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// None: the line has too many.
    None,
    /// All are marked, the last one has its value.
    Last,
    /// All are marked, the highest one has its value.
    Highest,
}

/// What the vertical axis reaches over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All values.
    All,
    /// Those after the steep start of each line, which would flatten the rest.
    Settled,
    /// 0 to 1.
    Share,
}

/// One pair of axes with its lines.
#[derive(Debug)]
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
    /// What the vertical axis reaches over.
    pub(crate) reach: Reach,
}

/// Colours of the palette.
pub(crate) const COLOURS: usize = 5;

/// Lines that can be told apart: each colour whole, with long and with short dashes.
pub(crate) const LINES: usize = 3 * COLOURS;

/// The classes of a line of this colour.
pub(crate) fn line_classes(colour: usize) -> String {
    match colour / COLOURS {
        0 => format!("line line-{colour}"),
        dash => format!("line line-{} dash-{dash}", colour % COLOURS),
    }
}

/// The classes of a dot of this colour.
fn dot_classes(colour: usize) -> String {
    format!("dot dot-{}", colour % COLOURS)
}

/// Width and height of a panel in SVG units.
pub(crate) const SIZE: (f64, f64) = (400.0, 268.0);
pub(super) const LEFT: f64 = 42.0;
pub(super) const RIGHT: f64 = 30.0;
pub(super) const TOP: f64 = 46.0;
pub(super) const BOTTOM: f64 = 46.0;

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
        if path.len() > 1 {
            let _ = write!(
                svg,
                "<polyline class=\"{}\" points=\"{}\"><title>{}</title></polyline>",
                line_classes(series.colour),
                path.join(" "),
                escape(&series.name)
            );
        }
        // A line of one point is none.
        if self.marks != Marks::None || visible.len() == 1 {
            for &(x, y) in &visible {
                let _ = write!(
                    svg,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}, {}: {}</title></circle>",
                    dot_classes(series.colour),
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn panel(points: Vec<(f64, f64)>, marks: Marks) -> Panel {
        let reach = if marks == Marks::None { Reach::Settled } else { Reach::All };
        Panel {
            title: "a < b".to_owned(),
            x_label: "heads".to_owned(),
            x_format: |x| format!("{x:.0}"),
            y_format: |y| format!("{y:.1}"),
            value_format: |y| format!("{y:.2}"),
            series: vec![Series { name: "n = 4".to_owned(), colour: 2, points }],
            marks,
            reference: None,
            reach,
        }
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
    fn a_line_of_one_point_is_a_dot_and_later_colours_are_dashed() {
        let svg = panel(vec![(1.0, 1.0)], Marks::None).svg();
        assert_eq!((svg.matches("<circle").count(), svg.matches("<polyline").count()), (1, 0));
        let classes: std::collections::BTreeSet<String> = (0..LINES).map(line_classes).collect();
        assert_eq!(classes.len(), LINES);
        assert_eq!(line_classes(3), "line line-3");
        assert_eq!(line_classes(8), "line line-3 dash-1");
    }

    #[test]
    fn charts_of_one_point_or_none_have_no_infinite_coordinates() {
        for points in [vec![], vec![(1.0, 1.0)], vec![(1.0, f64::NAN)]] {
            let svg = panel(points, Marks::Last).svg();
            assert!(!svg.contains("inf") && !svg.contains("NaN,") && !svg.contains("=\"NaN"));
        }
    }
}
