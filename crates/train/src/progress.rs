//! How far a training is, on stderr.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

use crate::StepMetrics;
use crate::usage::Usage;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Time between two words on what comes before the first step.
const WORD_EVERY: Duration = Duration::from_secs(15);

/// When a word is due on how far something is that takes long.
pub(crate) struct Word(Instant);

impl Default for Word {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Word {
    /// Whether it is time for the next one, which is then taken for said.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.0.elapsed() > WORD_EVERY;
        if due {
            *self = Self::default();
        }
        due
    }
}

/// What is shown of a training.
pub(crate) struct Progress {
    shown: Shown,
    /// What its losses are called.
    losses: &'static str,
}

/// A bar on a terminal, a line every few seconds elsewhere, or nothing.
enum Shown {
    Bar(ProgressBar),
    Lines(Lines),
    Silent,
}

/// What the plain lines need to know.
struct Lines {
    steps: u64,
    began: Instant,
    first: u64,
    last: Instant,
}

impl Progress {
    /// For steps `first..steps`, with losses under that name.
    pub(crate) fn new(shown: bool, first: u64, steps: u64, losses: &'static str) -> Self {
        let shown = if shown { Shown::new(first, steps) } else { Shown::Silent };
        Self { shown, losses }
    }

    pub(crate) fn step(&mut self, metrics: &StepMetrics, usage: &Usage) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_message(summary(self.losses, metrics, usage));
                bar.set_position(metrics.step);
            }
            Shown::Lines(lines) => {
                lines.step(metrics.step, || summary(self.losses, metrics, usage));
            }
            Shown::Silent => {}
        }
    }

    pub(crate) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.abandon();
        }
    }
}

impl Shown {
    fn new(first: u64, steps: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            return Self::Lines(Lines { steps, began: now, first, last: now });
        }
        let bar = ProgressBar::new(steps).with_position(first);
        let template = "{bar:24} {pos}/{len} steps  {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.reset_eta();
        Self::Bar(bar)
    }
}

impl Lines {
    fn step(&mut self, step: u64, summary: impl FnOnce() -> String) {
        if self.last.elapsed() < LINE_EVERY && step != self.first + 1 && step != self.steps {
            return;
        }
        self.last = Instant::now();
        let each = self.began.elapsed().as_secs_f64() / (step - self.first).max(1) as f64;
        let left = each * self.steps.saturating_sub(step) as f64;
        // A closed stderr is no reason to stop training.
        let _ = writeln!(
            std::io::stderr(),
            "step {step}/{}  {}  {left:.0} s left",
            self.steps,
            summary()
        );
    }
}

/// Losses, tokens a second, memory, and how much of the machine's arithmetic the model needs.
fn summary(name: &str, metrics: &StepMetrics, usage: &Usage) -> String {
    let loss = |loss: &f64| if loss.is_nan() { "-".to_owned() } else { format!("{loss:.3}") };
    let losses: Vec<String> = metrics.losses.iter().map(loss).collect();
    let mut text =
        format!("{name} {}  {:.0} tokens/s", losses.join(" "), metrics.tokens_per_second);
    if let Some(bytes) = usage.memory_bytes {
        let _ = write!(text, "  {}", DecimalBytes(bytes));
    }
    if let Some(share) = usage.utilisation {
        let _ = write!(text, "  utilisation {:.0}%", 100.0 * share);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_every_heads_loss_the_speed_and_what_is_known_of_the_machine() {
        let metrics = StepMetrics {
            step: 1,
            tokens: 64,
            epoch: 0,
            losses: vec![1.2345, 2.0],
            learning_rate: 0.1,
            grad_norm: 1.0,
            updated: true,
            seconds: 1.0,
            tokens_per_second: 1234.5,
        };
        let usage = Usage { memory_bytes: Some(1_500_000_000), utilisation: Some(0.376) };
        let figures = "loss 1.234 2.000  1234 tokens/s";
        let shown = |usage: &Usage| summary("loss", &metrics, usage);
        assert_eq!(shown(&usage), format!("{figures}  1.50 GB  utilisation 38%"));
        assert_eq!(shown(&Usage::default()), figures);
    }
}
