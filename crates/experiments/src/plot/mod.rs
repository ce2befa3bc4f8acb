//! The curves of trainings: `foretoken plot`.

mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::ensure;

use crate::curves::smoothed;
use crate::metrics::Line;
use crate::render::chart::{COLOURS, LINES, Marks, Panel, Reach, Series};
use crate::render::html::{document, push_table};
use crate::render::picture::{Key, Picture};
use crate::render::table::{Row, Table};
use crate::render::text::{escape, figure};
use run::Run;

/// Points of a line: more than a chart has room for.
const POINTS: usize = 400;

/// Colours in the order in which runs take them.
const ORDER: [usize; COLOURS] = [2, 4, 1, 3, 0];

/// What is drawn of each step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Metric {
    /// The mean loss in nats a token, a chart for each head (the default).
    #[default]
    Loss,
    /// The norm of all gradients together, before clipping.
    GradNorm,
    /// The rate of `AdamW`.
    LearningRate,
    /// Tokens a second.
    TokensPerSecond,
}

/// What the horizontal axis counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum XAxis {
    /// Steps (the default).
    #[default]
    Steps,
    /// Tokens seen.
    Tokens,
    /// Seconds of training; minutes or hours where there are many.
    Seconds,
}

/// How runs are drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlotOptions {
    /// What is drawn of each step.
    pub metric: Metric,
    /// The heads whose losses are drawn, the nearest being 1; all that were trained where none is
    /// named. Other metrics have no heads.
    pub heads: Vec<usize>,
    /// Steps up to each point that it is the mean of; 1 for the steps as they are.
    pub smooth: usize,
    /// What the horizontal axis counts.
    pub x: XAxis,
}

impl Default for PlotOptions {
    fn default() -> Self {
        Self { metric: Metric::Loss, heads: Vec::new(), smooth: 1, x: XAxis::Steps }
    }
}

/// The curves of several runs, to be written as a picture or a page.
#[derive(Debug)]
pub struct Plot {
    title: String,
    remark: Option<String>,
    keys: Vec<Key>,
    panels: Vec<Panel>,
    /// Last step and tokens of each run.
    ends: Vec<(u64, Option<u64>)>,
}

/// Reads `runs`, each the folder of a training or its `metrics.jsonl`, and draws a metric of all
/// of them into the same charts.
///
/// A line has 400 points at most: of a longer training, each is the mean of the steps since the
/// one before. A last line of a file that was cut off is passed over with a warning.
///
/// # Errors
///
/// When there are no runs or more than lines that can be told apart (15), a run is given twice, has
/// no metrics or damaged ones, or no run has what is asked for.
///
/// ```
/// use foretoken_experiments::{PlotOptions, plot};
///
/// let folder = tempfile::tempdir()?;
/// let metrics = folder.path().join("metrics.jsonl");
/// std::fs::write(&metrics, "{\"step\":1,\"losses\":[5.5]}\n{\"step\":2,\"losses\":[5.1]}\n")?;
/// let plot = plot(&[metrics], &PlotOptions::default())?;
/// assert!(plot.svg().starts_with("<svg") && plot.html().starts_with("<!doctype html>"));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn plot(runs: &[PathBuf], options: &PlotOptions) -> anyhow::Result<Plot> {
    ensure!(!runs.is_empty(), "there is no run to draw");
    ensure!(
        runs.len() <= LINES,
        "{} runs are more than the {LINES} lines that can be told apart; draw fewer at a time",
        runs.len()
    );
    let runs = Run::read_all(runs)?;
    let drawing = Drawing { scale: Scale::of(options.x, &runs), runs: &runs, options };
    let panels = drawing.panels()?;
    let ends = runs.iter().filter_map(|run| run.lines.last());
    let named = |(index, run): (usize, &Run)| Key { name: run.name.clone(), colour: colour(index) };
    Ok(Plot {
        title: title(options.metric, None),
        remark: (options.smooth > 1).then(|| format!("mean of {} steps", options.smooth)),
        keys: runs.iter().enumerate().map(named).collect(),
        panels,
        ends: ends.map(|line| (line.step, line.tokens)).collect(),
    })
}

impl Plot {
    /// The names of the runs, in the order in which they were given: of their folders as much as
    /// tells them apart.
    pub fn names(&self) -> Vec<&str> {
        self.keys.iter().map(|key| key.name.as_str()).collect()
    }

    /// How many charts there are.
    pub fn charts(&self) -> usize {
        self.panels.len()
    }

    /// The charts with their legend as the text of an SVG file, which refers to nothing outside of
    /// itself.
    pub fn svg(&self) -> String {
        Picture {
            title: &self.title,
            keys: self.keys.clone(),
            note: self.remark.clone(),
            panels: &self.panels,
        }
        .svg()
    }

    /// A page with the picture and each run's last values, which refers to nothing outside of
    /// itself.
    pub fn html(&self) -> String {
        let mut body = format!("<h1>{}</h1>\n<figure>\n{}", escape(&self.title), self.svg());
        let _ = write!(
            body,
            "<figcaption>A line has {POINTS} points at most; of a longer training, each is the mean \
             of the steps since the one before.</figcaption>\n</figure>\n<h2>At the end</h2>\n"
        );
        push_table(&mut body, &self.table(), 0);
        document(&format!("foretoken: {}", self.title), &body)
    }

    /// The last step of each run, and the value of each chart there.
    fn table(&self) -> Table {
        let columns = ["run", "steps", "tokens"].map(str::to_owned).into_iter();
        let charts = self.panels.iter().map(|panel| panel.title.clone());
        let rows = self.keys.iter().zip(&self.ends).enumerate().map(|(index, (key, end))| {
            let tokens = end.1.map_or("–".to_owned(), |tokens| figure(tokens as f64));
            let values = self.panels.iter().map(|panel| {
                let last = panel.series.get(index).and_then(|series| series.points.last());
                last.map_or("–".to_owned(), |&(_, y)| figure(y))
            });
            let cells = [key.name.clone(), end.0.to_string(), tokens].into_iter();
            Row { group: key.name.clone(), cells: cells.chain(values).collect(), best: false }
        });
        Table { columns: columns.chain(charts).collect(), rows: rows.collect() }
    }
}

fn title(metric: Metric, head: Option<usize>) -> String {
    match (metric, head) {
        (Metric::Loss, Some(head)) => format!("Loss of head {head}, nats a token"),
        (Metric::Loss, None) => "Loss".to_owned(),
        (Metric::GradNorm, _) => "Gradient norm before clipping".to_owned(),
        (Metric::LearningRate, _) => "Learning rate".to_owned(),
        (Metric::TokensPerSecond, _) => "Tokens a second".to_owned(),
    }
}

fn colour(run: usize) -> usize {
    run / COLOURS * COLOURS + ORDER[run % COLOURS]
}

/// The heads that are drawn: those asked for, or all.
fn heads(runs: &[Run], asked: &[usize]) -> anyhow::Result<BTreeSet<usize>> {
    let trained: BTreeSet<usize> = runs.iter().flat_map(Run::heads).collect();
    ensure!(!trained.is_empty(), "no step of these runs has a loss");
    if asked.is_empty() {
        return Ok(trained);
    }
    for head in asked {
        let all: Vec<String> = trained.iter().map(ToString::to_string).collect();
        ensure!(
            trained.contains(head),
            "no run has a head {head}; there are losses of {}",
            all.join(", ")
        );
    }
    Ok(asked.iter().copied().collect())
}

/// The horizontal axis: what is counted, in which unit.
struct Scale {
    axis: XAxis,
    label: &'static str,
    unit: f64,
}

impl Scale {
    fn of(axis: XAxis, runs: &[Run]) -> Self {
        let seconds = runs.iter().flat_map(|run| &run.lines).filter_map(|line| line.seconds);
        let (label, unit) = match axis {
            XAxis::Steps => ("steps", 1.0),
            XAxis::Tokens => ("tokens seen", 1.0),
            XAxis::Seconds => match seconds.fold(0.0, f64::max) {
                longest if longest < 300.0 => ("seconds of training", 1.0),
                longest if longest < 3.0 * 3600.0 => ("minutes of training", 60.0),
                _ => ("hours of training", 3600.0),
            },
        };
        Self { axis, label, unit }
    }

    fn place(&self, line: &Line) -> Option<f64> {
        let value = match self.axis {
            XAxis::Steps => Some(line.step as f64),
            XAxis::Tokens => line.tokens.map(|tokens| tokens as f64),
            XAxis::Seconds => line.seconds,
        };
        Some(drawable(value?)? / self.unit)
    }
}

/// Runs on their way into charts.
struct Drawing<'r> {
    runs: &'r [Run],
    options: &'r PlotOptions,
    scale: Scale,
}

impl Drawing<'_> {
    fn panels(&self) -> anyhow::Result<Vec<Panel>> {
        let metric = self.options.metric;
        let panels: Vec<Panel> = match metric {
            Metric::Loss => {
                let heads = heads(self.runs, &self.options.heads)?;
                heads.into_iter().map(|head| self.panel(Some(head))).collect()
            }
            _ => vec![self.panel(None)],
        };
        let mut lines = panels.iter().flat_map(|panel| &panel.series);
        ensure!(
            lines.any(|line| !line.points.is_empty()),
            "no step of these runs has a finite {} over {}",
            title(metric, None).to_lowercase(),
            self.scale.label
        );
        Ok(panels)
    }

    fn panel(&self, head: Option<usize>) -> Panel {
        let series = self.runs.iter().enumerate().map(|(index, run)| Series {
            name: run.name.clone(),
            colour: colour(index),
            points: self.curve(run, head),
        });
        Panel {
            title: title(self.options.metric, head),
            x_label: self.scale.label.to_owned(),
            x_format: figure,
            y_format: figure,
            value_format: figure,
            series: series.collect(),
            marks: Marks::None,
            reference: None,
            reach: match self.options.metric {
                Metric::Loss => Reach::Settled,
                _ => Reach::All,
            },
        }
    }

    /// The line of a run.
    fn curve(&self, run: &Run, head: Option<usize>) -> Vec<(f64, f64)> {
        let value = |line: &Line| match self.options.metric {
            Metric::Loss => run.loss(line, head?),
            Metric::GradNorm => line.grad_norm,
            Metric::LearningRate => line.learning_rate,
            Metric::TokensPerSecond => line.tokens_per_second,
        };
        let point = |line: &Line| Some((self.scale.place(line)?, drawable(value(line)?)?));
        let points: Vec<(f64, f64)> = run.lines.iter().filter_map(point).collect();
        smoothed(&points, POINTS, self.options.smooth)
    }
}

/// A number that a training's float32 can have.
fn drawable(value: f64) -> Option<f64> {
    (value.abs() <= f64::from(f32::MAX)).then_some(value)
}
