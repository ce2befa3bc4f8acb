//! Stdout that may be closed or full.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// Stdout, every write checked. A closed pipe passes as the [`io::Error`] that it is, which ends
/// the command quietly; everything else says that stdout was at fault.
pub(crate) struct Output {
    stdout: io::Stdout,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { stdout: io::stdout() }
    }

    /// Writes text as it is, at once.
    pub(crate) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        let mut stdout = self.stdout.lock();
        checked(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
    }

    /// Writes text and ends the line.
    pub(crate) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let json = serde_json::to_string(value).context("cannot write the result as JSON")?;
        self.line(&json)
    }
}

fn checked(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        other => Ok(other?),
    }
}
