//! One line of JSON a step.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use foretoken_trunk::io::write_atomically;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Tokens seen, this step's included.
    pub tokens: u64,
    /// How often all of the training text had been seen when the step began.
    pub epoch: u64,
    /// Mean loss of each head in nats a token, head 0 first.
    pub losses: Vec<f64>,
    /// The rate of `AdamW` in this step.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping; `null` in the file where it isn't finite.
    pub grad_norm: f64,
    /// Whether the weights moved; they don't where the gradient isn't finite.
    pub updated: bool,
    /// Seconds of training so far, over all of its parts.
    pub seconds: f64,
    /// Tokens a second in this step.
    pub tokens_per_second: f64,
}

/// Lines reach the file at least this often, for those who watch it grow.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// `metrics.jsonl`, open for more lines.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    flushed: Instant,
    file: BufWriter<File>,
}

impl MetricsFile {
    /// Opens the file with the lines of the first `steps` steps only.
    pub(crate) fn open(path: &Path, steps: u64) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        if steps == 0 {
            write_atomically(path, b"")?;
        } else if path.exists() {
            let text = std::fs::read(path).map_err(read)?;
            let kept = kept_lines(&String::from_utf8_lossy(&text), steps);
            write_atomically(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| Error::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), flushed: Instant::now(), file: BufWriter::new(file) })
    }

    pub(crate) fn push(&mut self, line: &StepMetrics) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).map_err(|error| self.failed(error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|error| self.failed(error))?;
        if self.flushed.elapsed() < FLUSH_EVERY { Ok(()) } else { self.flush() }
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.flushed = Instant::now();
        self.file.flush().map_err(|error| self.failed(error))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

/// The whole lines of steps up to `steps`; a line that was cut off is none.
fn kept_lines(text: &str, steps: u64) -> String {
    #[derive(Deserialize)]
    struct Numbered {
        step: u64,
    }
    let kept = text.lines().filter(|line| {
        serde_json::from_str::<Numbered>(line).is_ok_and(|numbered| numbered.step <= steps)
    });
    kept.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            tokens: 64 * step,
            epoch: 0,
            losses: vec![2.5, 3.0],
            learning_rate: 1e-3,
            grad_norm: f64::NAN,
            updated: false,
            seconds: 0.5,
            tokens_per_second: 128.0,
        }
    }

    #[test]
    fn resuming_keeps_the_lines_of_the_steps_that_count_and_appends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0).unwrap();
        for step in 1..=5 {
            file.push(&line(step)).unwrap();
        }
        drop(file);
        let cut_off = std::fs::read_to_string(&path).unwrap() + "{\"step\":1,\"tok";
        std::fs::write(&path, cut_off).unwrap();
        let mut file = MetricsFile::open(&path, 3).unwrap();
        file.push(&line(4)).unwrap();
        file.flush().unwrap();
        let steps: Vec<serde_json::Value> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let numbers: Vec<_> = steps.iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert!(steps[3]["grad_norm"].is_null());
    }
}
