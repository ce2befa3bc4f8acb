//! Where the figures of a training go, step by step.

use crate::metrics::MetricsFile;
use crate::progress::Progress;
use crate::tensorboard::EventFile;
use crate::usage::Meter;
use crate::{Error, StepMetrics};

/// All that look on.
pub(crate) struct Watch {
    pub(crate) metrics: MetricsFile,
    /// Where TensorBoard reads, if it is to.
    pub(crate) events: Option<EventFile>,
    pub(crate) progress: Progress,
    /// None where nobody asks for what it takes.
    pub(crate) meter: Option<Meter>,
}

impl Watch {
    /// Shows and writes a step.
    pub(crate) fn step(&mut self, line: &StepMetrics) -> Result<(), Error> {
        self.metrics.push(line)?;
        let usage = self.meter.as_mut().map(|meter| meter.usage(line)).unwrap_or_default();
        if let Some(events) = &mut self.events {
            events.push(line, &usage)?;
        }
        self.progress.step(line, &usage);
        Ok(())
    }

    /// Hands all that was written to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.metrics.flush()?;
        self.events.as_mut().map_or(Ok(()), EventFile::flush)
    }
}
