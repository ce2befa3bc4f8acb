//! Which charts the speed report draws.

use std::fmt::Write;

use crate::report::{ModelRow, Report};
use crate::results::SpeedResults;

use super::chart::{Marks, Panel, Reach, Series};
use super::picture::{Key, Picture};
use super::text::{escape, short};

/// The colour of a model: the baseline's is neutral, and a number of heads keeps its colour over
/// all presets.
pub(crate) fn colour(heads: usize) -> usize {
    match heads {
        0 | 1 => 0,
        2 => 1,
        3 | 4 => 2,
        5..=8 => 3,
        _ => 4,
    }
}

/// A model's name in charts and tables: `n = 4`.
pub(crate) fn label(model: &ModelRow) -> String {
    format!("n = {}", model.heads)
}

/// The legend of a figure as HTML.
pub(crate) fn legend(models: &[&ModelRow]) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for model in models {
        let _ = write!(
            html,
            "<li><i class=\"key key-{}\"></i>{}</li>",
            colour(model.heads),
            escape(&label(model))
        );
    }
    html.push_str("</ul>");
    html
}

/// Models that draft.
pub(crate) fn drafting(report: &Report) -> Vec<&ModelRow> {
    report.models.iter().filter(|m| m.heads > 1).collect()
}

/// One figure by number of heads used, a line for each model that drafts.
fn by_heads_used(
    report: &Report,
    title: &str,
    unit: &'static str,
    value: impl Fn(&str, usize) -> Option<f64>,
) -> Panel {
    let series = drafting(report)
        .into_iter()
        .map(|model| Series {
            name: label(model),
            colour: colour(model.heads),
            points: (1..=model.heads)
                .filter_map(|k| Some((k as f64, value(&model.name, k)?)))
                .collect(),
        })
        .collect();
    let label =
        if unit == "×" { |y: f64| format!("{y:.2}×") } else { |y: f64| format!("{y:.2}") };
    Panel {
        title: title.to_owned(),
        x_label: "heads used, k".to_owned(),
        x_format: |x| format!("{x:.0}"),
        y_format: tick,
        value_format: label,
        series,
        marks: Marks::Highest,
        reference: Some(1.0),
        reach: Reach::All,
    }
}

/// A tick with as many decimals as it needs, at most two.
fn tick(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.strip_suffix('0').unwrap_or(&text);
    text.to_owned()
}

/// Tokens per forward and wall-clock speed-up, each in two ways.
pub(crate) fn speed(report: &Report) -> [Panel; 4] {
    let row = |model: &str, k: usize| {
        report.decoding.iter().find(|row| row.model == model && row.heads_used == k)
    };
    [
        by_heads_used(report, "Tokens per forward pass, held-out text", "", |m, k| {
            row(m, k).map(|r| r.held_out_tokens_per_forward)
        }),
        by_heads_used(report, "Speed-up over the same model, wall-clock", "×", |m, k| {
            row(m, k).map(|r| r.speedup)
        }),
        by_heads_used(report, "Tokens per forward pass, own greedy text", "", |m, k| {
            row(m, k).map(|r| r.tokens_per_forward)
        }),
        by_heads_used(report, "Speed-up over the n = 1 baseline, wall-clock", "×", |m, k| {
            row(m, k).map(|r| r.speedup_over_baseline)
        }),
    ]
}

/// Training loss over the tokens seen, and validation loss of each head.
pub(crate) fn losses(report: &Report, results: &SpeedResults) -> [Panel; 2] {
    let curves = report.models.iter().filter_map(|model| {
        let curve = results.loss_curves.iter().find(|c| c.model == model.name)?;
        Some(Series {
            name: label(model),
            colour: colour(model.heads),
            points: curve.points.clone(),
        })
    });
    let by_head = report.models.iter().map(|model| Series {
        name: label(model),
        colour: colour(model.heads),
        points: model
            .validation_loss
            .iter()
            .zip(1..)
            .map(|(&loss, head)| (f64::from(head), loss))
            .collect(),
    });
    [
        Panel {
            title: "Training loss of head 1, nats per token".to_owned(),
            x_label: "tokens seen".to_owned(),
            x_format: short,
            y_format: tick,
            value_format: tick,
            series: curves.collect(),
            marks: Marks::None,
            reference: None,
            reach: Reach::Settled,
        },
        Panel {
            title: "Validation loss by head, nats per token".to_owned(),
            x_label: "head".to_owned(),
            x_format: |x| format!("{x:.0}"),
            y_format: tick,
            value_format: |y| format!("{y:.2}"),
            series: by_head.collect(),
            marks: Marks::Last,
            reference: None,
            reach: Reach::All,
        },
    ]
}

/// Share of passes in which the drafts up to each head were all accepted, all heads used.
pub(crate) fn acceptance(report: &Report, results: &SpeedResults) -> [Panel; 2] {
    let panel = |title: &str, shares: &dyn Fn(&ModelRow) -> Option<Vec<f64>>| {
        let series = drafting(report).into_iter().filter_map(|model| {
            Some(Series {
                name: label(model),
                colour: colour(model.heads),
                points: shares(model)?
                    .into_iter()
                    .zip(1..)
                    .map(|(share, head)| (f64::from(head), share))
                    .collect(),
            })
        });
        Panel {
            title: title.to_owned(),
            x_label: "all drafts up to head".to_owned(),
            x_format: |x| format!("{x:.0}"),
            y_format: super::text::percent,
            value_format: super::text::percent,
            series: series.collect(),
            marks: Marks::Last,
            reference: None,
            reach: Reach::Share,
        }
    };
    [
        panel("Accepted on held-out text", &|model| {
            let rows = &results.held_out;
            rows.iter()
                .find(|r| r.model == model.name && r.heads_used == model.heads)
                .map(|r| r.acceptance.clone())
        }),
        panel("Accepted on own greedy text", &|model| {
            report
                .decoding_of(&model.name)
                .find(|r| r.heads_used == model.heads)
                .map(|r| r.acceptance.clone())
        }),
    ]
}

/// The figure for a README.
pub(crate) fn standalone(report: &Report) -> String {
    let [held_out, speedup, _, _] = speed(report);
    let key = |model: &ModelRow| Key { name: label(model), colour: colour(model.heads) };
    let note = report.models.last().map(|model| {
        format!(
            "n: tokens predicted at once · {} parameters · preset {}",
            short(model.parameters as f64),
            report.preset
        )
    });
    let title = "Tokens per forward pass and wall-clock speed-up by number of heads used";
    Picture {
        title,
        keys: drafting(report).into_iter().map(key).collect(),
        note,
        panels: &[held_out, speedup],
    }
    .svg()
}
