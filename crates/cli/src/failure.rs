//! How a command ends: exit codes, and errors on one line.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Options that are known and make no sense, together or yet.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A usage error with this message.
pub(crate) fn usage<T>(message: impl Into<String>) -> anyhow::Result<T> {
    Err(Usage(message.into()).into())
}

/// Says what went wrong on stderr; 0, 1 (failed) or 2 (usage).
pub(crate) fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    if reader_is_gone(&error) {
        // `foretoken … | head -1`: whoever read has what it wanted.
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "error: {}", one_line(&error));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The chain of causes joined by colons; one that the message before it quotes is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_of_causes_is_one_line_that_says_nothing_twice() {
        let error = anyhow::anyhow!("disk\nfull").context("cannot write x").context("saving");
        assert_eq!(one_line(&error), "saving: cannot write x: disk full");
        let quoting = Err::<(), _>(io::Error::other("disk full"))
            .context("cannot write x: disk full")
            .unwrap_err();
        assert_eq!(one_line(&quoting), "cannot write x: disk full");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(reader_is_gone(&pipe));
        assert!(!reader_is_gone(&anyhow::anyhow!("Broken pipe")));
    }
}
