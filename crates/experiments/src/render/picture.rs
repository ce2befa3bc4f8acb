//! Several charts as one picture that carries its own style, legend and background.

use std::fmt::Write;

use super::CHART_STYLE;
use super::chart::{COLOURS, Marks, Panel, SIZE, line_classes};
use super::text::escape;

/// What a line of a colour stands for.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// What stands in the legend.
    pub(crate) name: String,
    /// As in a chart's lines.
    pub(crate) colour: usize,
}

/// Charts two abreast under one legend.
pub(crate) struct Picture<'p> {
    /// What it shows, for those who don't see it.
    pub(crate) title: &'p str,
    /// The legend, drawn from left to right.
    pub(crate) keys: Vec<Key>,
    /// A remark at the right of the legend.
    pub(crate) note: Option<String>,
    /// The charts.
    pub(crate) panels: &'p [Panel],
}

/// Left and right of everything.
const MARGIN: f64 = 16.0;
/// Between two charts.
const GAP: f64 = 12.0;
/// From the left edge to the legend, and from a key's line to its name.
const LEGEND: (f64, f64) = (24.0, 30.0);
/// Room for a key and its name.
const KEY: f64 = 92.0;
/// Height of the first row of the legend with the space above it, and of each further row.
const ROWS: (f64, f64) = (46.0, 20.0);
/// Width of a letter at the legend's size, on average and generously.
const LETTER: f64 = 7.0;
/// Most characters of a name that stand in the legend.
const NAME: usize = 44;

impl Picture<'_> {
    /// The picture as the text of an SVG file.
    pub(crate) fn svg(&self) -> String {
        let columns = self.panels.len().clamp(1, 2);
        let rows = self.panels.len().div_ceil(columns);
        let width = columns as f64 * (SIZE.0 + GAP) + MARGIN;
        let (legend, top) = self.legend(width);
        let height = top + rows as f64 * SIZE.1 + 18.0;
        // One chart alone is drawn as large as two abreast.
        let scale = if columns == 1 { 2.0 } else { 1.0 };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"figure\" \
             viewBox=\"0 0 {width} {height}\" width=\"{}\" height=\"{}\" role=\"img\" \
             aria-label=\"{}\"><style>{CHART_STYLE}</style>\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\" rx=\"10\"/>{legend}",
            scale * width,
            scale * height,
            escape(self.title)
        );
        for (index, panel) in self.panels.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let x = MARGIN + column as f64 * (SIZE.0 + GAP);
            svg.push_str(&panel.group(x, top + row as f64 * SIZE.1));
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The legend, in as many rows as it needs, and where the charts begin below it.
    fn legend(&self, width: f64) -> (String, f64) {
        let marked = self.panels.iter().any(|panel| panel.marks != Marks::None);
        let mut svg = String::new();
        let (mut x, mut y) = (LEGEND.0, 28.0);
        for key in &self.keys {
            let name = shortened(&key.name);
            let room = KEY.max(LEGEND.1 + LETTER * name.chars().count() as f64 + 24.0);
            if x > LEGEND.0 && x + room > width {
                (x, y) = (LEGEND.0, y + ROWS.1);
            }
            let _ = write!(
                svg,
                "<line class=\"{}\" x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>",
                line_classes(key.colour),
                x + 22.0
            );
            if marked {
                let _ = write!(
                    svg,
                    "<circle class=\"dot dot-{}\" cx=\"{}\" cy=\"{y}\" r=\"4\"/>",
                    key.colour % COLOURS,
                    x + 11.0
                );
            }
            let _ = write!(
                svg,
                "<text class=\"legend\" x=\"{}\" y=\"{}\">{}</text>",
                x + LEGEND.1,
                y + 4.0,
                escape(&name)
            );
            x += room;
        }
        if let Some(note) = &self.note {
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{}\" y=\"32\" text-anchor=\"end\">{}</text>",
                width - LEGEND.0,
                escape(note)
            );
        }
        (svg, y - 28.0 + ROWS.0)
    }
}

/// A name with no more characters than a legend has room for: the end tells most.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count - NAME + 1).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::super::chart::tests::panel;
    use super::*;

    fn picture(names: &[&str], panels: &[Panel]) -> String {
        let keys = names.iter().zip(0..).map(|(&name, colour)| Key { name: name.into(), colour });
        Picture { title: "t", keys: keys.collect(), note: None, panels }.svg()
    }

    #[test]
    fn charts_stand_two_abreast_and_the_picture_is_as_high_as_its_rows() {
        let panels: Vec<Panel> = (0..3).map(|_| panel(vec![(0.0, 1.0)], Marks::None)).collect();
        let svg = picture(&["a"], &panels);
        assert!(svg.contains("viewBox=\"0 0 840 600\""), "{}", &svg[..200]);
        for place in ["translate(16 46)", "translate(428 46)", "translate(16 314)"] {
            assert!(svg.contains(place), "{place}");
        }
        assert!(picture(&["a"], &panels[..1]).contains("viewBox=\"0 0 428 332\" width=\"856\""));
    }

    #[test]
    fn a_legend_that_is_too_long_goes_on_below_and_moves_the_charts_down() {
        let panels = [panel(vec![(0.0, 1.0)], Marks::None)];
        let names: Vec<String> = (0..4).map(|i| format!("{i} of some runs of much work")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let svg = picture(&names, &panels);
        assert_eq!(svg.matches("class=\"legend\" x=\"54\"").count(), 4);
        assert!(svg.contains("translate(16 106)"));
        assert_eq!(svg.matches("<circle").count(), 1, "dots only where there is one point");
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        let name = format!("{}tells", "x".repeat(200));
        let short = shortened(&name);
        assert!(short.starts_with('…') && short.ends_with("tells"));
        assert_eq!(short.chars().count(), NAME);
        assert_eq!(shortened("n = 4"), "n = 4");
    }
}
