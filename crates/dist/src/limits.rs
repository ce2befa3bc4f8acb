//! How long the ranks wait for each other.

use std::time::Duration;

/// How long the ranks of a group wait for each other before they give up.
///
/// A [`Duration`] stands for limits that all have that length, with `silence` at most 30 s.
///
/// ```
/// use foretoken_dist::Limits;
/// use std::time::Duration;
///
/// let limits = Limits::from(Duration::from_secs(600));
/// assert_eq!(limits.collective, Duration::from_secs(600));
/// assert_eq!(limits.silence, Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For all ranks to come, counted on each from its own start.
    pub join: Duration,
    /// For a collective, from its start on this rank to its end: longer than the longest time that
    /// one rank works while the others wait for it, for instance to write a checkpoint.
    pub collective: Duration,
    /// For a sign of life. A thread of its own gives it, however busy the rank is, so that a rank
    /// that says nothing for so long is dead, stopped, or cut off.
    pub silence: Duration,
}

impl Limits {
    /// The time between two heartbeats: ten in the silence that is allowed, at most one in 2 s.
    pub(crate) fn beat(&self) -> Duration {
        (self.silence / 10).clamp(Duration::from_millis(20), Duration::from_secs(2))
    }
}

impl From<Duration> for Limits {
    fn from(limit: Duration) -> Self {
        Self { join: limit, collective: limit, silence: limit.min(Duration::from_secs(30)) }
    }
}

impl Default for Limits {
    /// Ten minutes to come, half an hour for a collective, 30 s of silence.
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Self { join: minutes(10), collective: minutes(30), silence: Duration::from_secs(30) }
    }
}
