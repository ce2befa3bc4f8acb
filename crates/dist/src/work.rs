//! A collective under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::group::Inner;
use crate::native::{self, Message};
use crate::{Error, Result};

/// Between two looks at the heartbeat.
const SLICE: Duration = Duration::from_millis(100);

/// A collective under way: [`wait`](Self::wait) for it before its tensor is used. One that is
/// dropped before goes on, and the group can't be closed properly any more.
#[must_use = "a collective is done only when it has been waited for"]
#[derive(Debug)]
pub struct Work {
    group: Arc<Inner>,
    native: native::Work,
    collective: &'static str,
    since: Instant,
    done: bool,
}

impl Work {
    pub(crate) fn new(group: Arc<Inner>, native: native::Work, collective: &'static str) -> Self {
        Self { group, native, collective, since: Instant::now(), done: false }
    }

    /// Waits until it is done, up to the group's limit for collectives.
    ///
    /// # Errors
    /// When a rank fails, leaves, or doesn't come within the limit, which ends the group.
    pub fn wait(self) -> Result<()> {
        let limit = self.group.limits().collective;
        self.wait_for(limit)
    }

    /// Waits until it is done, up to `limit` after its start.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn wait_for(mut self, limit: Duration) -> Result<()> {
        let mut pulse = Pulse::default();
        loop {
            let left = limit.saturating_sub(self.since.elapsed());
            match self.native.wait(left.min(SLICE)) {
                Ok(true) => {
                    self.done = true;
                    return Ok(());
                }
                Ok(false) => self.look(left, &mut pulse)?,
                Err(Message(message)) => {
                    return Err(self.group.explain(self.collective, message));
                }
            }
        }
    }

    /// Looks for a reason to wait no longer.
    fn look(&self, left: Duration, pulse: &mut Pulse) -> Result<()> {
        let watch = self.group.watch();
        let failure = watch.trouble_with(self.collective).or_else(|| {
            (pulse.still(watch.rounds()) > self.group.limits().silence).then(|| watch.mute())
        });
        match failure {
            Some(failure) => Err(watch.agree(failure).into()),
            None if left.is_zero() => Err(self.overdue()),
            None => Ok(()),
        }
    }

    fn overdue(&self) -> Error {
        let waited = self.since.elapsed();
        if let Some(failure) = self.group.watch().late(self.collective, waited) {
            return self.group.watch().agree(failure).into();
        }
        let message = format!("not done within {:.1} s", waited.as_secs_f64());
        self.group.explain(self.collective, message)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.done {
            self.group.abandon();
        }
    }
}

/// How long the heartbeat's thread has made no round, in time that this process ran.
#[derive(Debug, Default)]
struct Pulse {
    rounds: u64,
    still: Duration,
}

impl Pulse {
    fn still(&mut self, rounds: u64) -> Duration {
        match rounds == self.rounds {
            true => self.still += SLICE,
            false => *self = Self { rounds, still: Duration::ZERO },
        }
        self.still
    }
}
