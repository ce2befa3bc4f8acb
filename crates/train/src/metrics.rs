//! One line of JSON a step.

use std::fs::OpenOptions;
use std::path::Path;

use foretoken_trunk::io::write_atomically;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Error;
use crate::log_file::LogFile;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Tokens seen, this step's included.
    pub tokens: u64,
    /// How often all of the training text had been seen when the step began.
    pub epoch: u64,
    /// Mean loss of each head in nats a token, head 0 first; NaN, in the file `null`, for heads that
    /// a curriculum leaves out.
    #[serde(deserialize_with = "nan_for_null")]
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

fn nan_for_null<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<f64>, D::Error> {
    let losses = Vec::<Option<f64>>::deserialize(from)?;
    Ok(losses.into_iter().map(|loss| loss.unwrap_or(f64::NAN)).collect())
}

/// `metrics.jsonl`, open for more lines.
#[derive(Debug)]
pub(crate) struct MetricsFile(LogFile);

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
        Ok(Self(LogFile::new(path.to_owned(), file)))
    }

    pub(crate) fn push(&mut self, line: &StepMetrics) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).map_err(|error| self.0.failed(error.into()))?;
        text.push(b'\n');
        self.0.append(&text)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.0.flush()
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
