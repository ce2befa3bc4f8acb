//! A report as a page, a text and a picture.
//!
//! Everything is drawn from `report.json` alone, so that a report can be rendered again. What is not
//! of reports alone ([`chart`], [`picture`], [`html::document`]) serves `foretoken plot` too.

pub(crate) mod chart;
mod figures;
mod frame;
pub(crate) mod html;
mod label;
mod markdown;
pub(crate) mod picture;
mod sample;
mod story;
pub(crate) mod table;
pub(crate) mod text;

#[cfg(test)]
pub(crate) mod example;

use crate::paper::PaperFigures;
use crate::report::Report;
use crate::results::SpeedResults;

/// Colours and lines of the charts, shared by page and picture.
const CHART_STYLE: &str = include_str!("chart.css");

/// A report in its forms for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// `report.md`: the tables.
    pub markdown: String,
    /// `report.html`: tables, charts and the coloured sample, in one file without references.
    pub html: String,
    /// `EXPERIMENT.svg`: the picture for a README.
    pub svg: String,
    /// The headline and the speed-up table, for a terminal.
    pub summary: String,
}

/// What the renderers draw from.
pub(crate) struct Source<'r> {
    pub(crate) report: &'r Report,
    pub(crate) results: SpeedResults,
    pub(crate) paper: PaperFigures,
}

/// Renders a report of the speed experiment.
///
/// # Errors
///
/// When the report's `results` or `paper` are those of another experiment or version.
pub fn render(report: &Report) -> anyhow::Result<Rendered> {
    let source = Source {
        report,
        results: SpeedResults::of(report)?,
        paper: serde_json::from_value(report.paper.clone())?,
    };
    Ok(Rendered {
        markdown: markdown::page(&source),
        html: html::page(&source),
        svg: figures::standalone(report),
        summary: markdown::summary(&source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_refers_to_nothing_outside_of_itself() {
        let rendered = render(&example::report()).unwrap();
        for page in [&rendered.html, &rendered.svg] {
            for reference in ["src=", "href=", "url(", "@import", "<script", "<link", "<iframe"] {
                assert!(!page.contains(reference), "the page has {reference}");
            }
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains("http:") && !page.contains("https:"));
        }
    }

    #[test]
    fn every_element_that_is_opened_is_closed() {
        let rendered = render(&example::report()).unwrap();
        for page in [&rendered.html, &rendered.svg] {
            for tag in ["svg", "g", "text", "table", "tr", "td", "span", "pre", "figure", "main"] {
                let opened = page.matches(&format!("<{tag}>")).count()
                    + page.matches(&format!("<{tag} ")).count();
                let closed = page.matches(&format!("</{tag}>")).count();
                assert_eq!(opened, closed, "<{tag}>");
            }
        }
    }

    #[test]
    fn text_of_the_model_is_escaped() {
        let rendered = render(&example::report()).unwrap();
        assert!(rendered.html.contains("&lt;b&gt;"));
        assert!(!rendered.html.contains("<b>"));
    }

    #[test]
    fn every_measured_row_is_in_both_tables() {
        let report = example::report();
        let rendered = render(&report).unwrap();
        for row in &report.decoding {
            let figure = format!("{:.2}", row.held_out_tokens_per_forward);
            assert!(rendered.markdown.contains(&figure), "{figure}");
            assert!(rendered.html.contains(&figure), "{figure}");
        }
    }

    #[test]
    fn figures_follow_the_report_not_a_constant() {
        let mut report = example::report();
        let before = render(&report).unwrap();
        report.decoding.last_mut().unwrap().speedup = 7.77;
        let after = render(&report).unwrap();
        for (before, after) in
            [(before.markdown, after.markdown), (before.html, after.html), (before.svg, after.svg)]
        {
            assert!(after.contains("7.77") && !before.contains("7.77"));
        }
    }

    #[test]
    fn a_report_of_another_experiment_is_refused() {
        let mut report = example::report();
        report.results = serde_json::json!({"pass_at_1": 0.5});
        assert!(render(&report).is_err());
    }
}
