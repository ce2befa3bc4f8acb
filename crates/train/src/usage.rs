//! What a step makes of the machine.

use std::time::{Duration, Instant};

use foretoken_heads::MultiTokenModel;

use crate::config::{HeadTraining, TrainConfig};
use crate::written::is_written;
use crate::{StepFlops, StepMetrics, peak_memory_bytes, product_rate};

/// Time between two looks at the memory, which cost a small model's step a part of its time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Memory and arithmetic of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// The most memory that this process has held, where the system says.
    pub(crate) memory_bytes: Option<u64>,
    /// The operations that the model's mathematics needs as a share of what the machine can do in
    /// the same seconds in matrix products alone, where that could be measured.
    pub(crate) utilisation: Option<f64>,
}

/// Takes the [`Usage`] of one step after another.
#[derive(Debug)]
pub(crate) struct Meter {
    work: StepFlops,
    /// Tokens of a step, over all processes.
    tokens: f64,
    processes: f64,
    /// Steps after which a frozen model's states come from the disk.
    cached_after: u64,
    /// Share of the batches in the model's own words: their states come from the disk, too, since many
    /// are written at once.
    written: f64,
    /// Floating-point operations that the machine can do in a second.
    peak: Option<f64>,
    memory: Option<u64>,
    looked: Instant,
}

impl Meter {
    /// For a training of `model` by `config` in so many processes. Measures what this one can do,
    /// which takes it a fifth of a second.
    pub(crate) fn new(config: &TrainConfig, model: &MultiTokenModel, processes: usize) -> Self {
        let peak = product_rate(config.train.precision.products(model.device()), model.device());
        if let Err(error) = &peak {
            tracing::warn!("cannot measure what this machine can do: {error}");
        }
        Self {
            work: work(config, model),
            tokens: config.tokens_per_step() as f64,
            processes: processes as f64,
            cached_after: match config.data.batches {
                0 => u64::MAX,
                batches => batches,
            },
            written: config.data.generated,
            peak: peak.ok(),
            memory: peak_memory_bytes(),
            looked: Instant::now(),
        }
    }

    /// The usage of a step.
    pub(crate) fn usage(&mut self, line: &StepMetrics) -> Usage {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.memory = peak_memory_bytes();
        }
        let cached =
            line.step > self.cached_after || is_written(line.step.saturating_sub(1), self.written);
        let frozen = if cached { 0.0 } else { self.work.frozen };
        let steps_a_second = line.tokens_per_second / self.tokens;
        let a_second = (self.work.learning + frozen) * steps_a_second / self.processes;
        Usage { memory_bytes: self.memory, utilisation: self.peak.map(|peak| a_second / peak) }
    }
}

/// The operations of a step of this training.
fn work(config: &TrainConfig, model: &MultiTokenModel) -> StepFlops {
    let (batch, sequence) = (config.train.batch, config.train.sequence);
    match config.heads.train {
        HeadTraining::Together => StepFlops::together(model, batch, sequence),
        HeadTraining::Alone => {
            StepFlops::alone(model, batch, sequence, config.heads.targets.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, tokens_per_second: f64) -> StepMetrics {
        StepMetrics {
            step,
            tokens: 64 * step,
            epoch: 0,
            losses: vec![2.5],
            learning_rate: 1e-3,
            grad_norm: 1.0,
            updated: true,
            seconds: 0.5,
            tokens_per_second,
        }
    }

    #[test]
    fn utilisation_is_the_steps_operations_over_what_the_machine_could_have_done() {
        let mut meter = Meter {
            work: StepFlops { learning: 6e9, frozen: 2e9 },
            tokens: 100.0,
            processes: 1.0,
            cached_after: 10,
            written: 0.0,
            peak: Some(4e10),
            memory: Some(1),
            looked: Instant::now(),
        };
        // 100 tokens a step and 50 a second: a step takes two seconds.
        assert_eq!(meter.usage(&line(10, 50.0)).utilisation, Some(8e9 / 2.0 / 4e10));
        assert_eq!(meter.usage(&line(11, 50.0)).utilisation, Some(6e9 / 2.0 / 4e10));
        // Of a half every other batch is written, that of step 10 among them.
        meter.written = 0.5;
        assert_eq!(meter.usage(&line(10, 50.0)).utilisation, Some(6e9 / 2.0 / 4e10));
        assert_eq!(meter.usage(&line(9, 50.0)).utilisation, Some(8e9 / 2.0 / 4e10));
        meter.written = 0.0;
        meter.processes = 2.0;
        assert_eq!(meter.usage(&line(10, 50.0)).utilisation, Some(8e9 / 4.0 / 4e10));
        meter.peak = None;
        assert_eq!(meter.usage(&line(11, 50.0)).utilisation, None);
    }
}
