//! Progress on stderr and results on stdout, where a closed pipe or a full disk is no panic.

use std::time::{Duration, Instant};

use crate::render::text::duration;

/// Time between two lines of a [`Countdown`].
const LINE_EVERY: Duration = Duration::from_secs(30);

/// A line on stderr. That nobody reads it is no reason to stop a run.
macro_rules! progress {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub(crate) use progress;

/// Says every half a minute how far something is.
pub(crate) struct Countdown {
    what: &'static str,
    parts: usize,
    done: usize,
    began: Instant,
    said: Instant,
}

impl Countdown {
    /// Of something in so many parts that take about as long as each other.
    pub(crate) fn new(what: &'static str, parts: usize) -> Self {
        let now = Instant::now();
        Self { what, parts, done: 0, began: now, said: now }
    }

    /// One more is done.
    pub(crate) fn tick(&mut self) {
        self.done += 1;
        if self.said.elapsed() < LINE_EVERY || self.done >= self.parts {
            return;
        }
        self.said = Instant::now();
        let each = self.began.elapsed().as_secs_f64() / self.done as f64;
        let left = duration(each * (self.parts - self.done) as f64);
        progress!("  {}: {} of {}, {left} left", self.what, self.done, self.parts);
    }
}

/// A line on stdout.
///
/// # Errors
///
/// When it cannot be written.
pub(crate) fn result(line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}")
}
