//! Progress on stderr and results on stdout, where a closed pipe or a full disk is no panic.

/// A line on stderr. That nobody reads it is no reason to stop a run.
macro_rules! progress {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub(crate) use progress;

/// A line on stdout.
///
/// # Errors
///
/// When it cannot be written.
pub(crate) fn result(line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}")
}
