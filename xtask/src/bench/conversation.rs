//! A program that answers each line with one line of JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// A started program, waiting between our lines.
pub(crate) struct Conversation {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    /// Starts the program and reads its greeting, one line of JSON.
    pub(crate) fn start(command: &mut Command) -> Result<(Self, Value)> {
        let name = process::line(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let input = child.stdin.take().context("no pipe to the program")?;
        let output = child.stdout.take().context("no pipe from the program")?;
        let mut this = Self { name, child, input, output: BufReader::new(output) };
        let greeting = this.answer()?;
        Ok((this, greeting))
    }

    /// Sends one line and waits for the answer.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Value> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .with_context(|| format!("`{}` ended early", self.name))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .with_context(|| format!("cannot read from `{}`", self.name))?;
        if line.is_empty() {
            bail!("`{}` ended without an answer", self.name);
        }
        serde_json::from_str(&line)
            .with_context(|| format!("`{}` answered {:?}", self.name, line.trim()))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_answered_in_turn() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '{}'; while read a; do echo \"[$a]\"; done"]);
        let (mut conversation, greeting) = Conversation::start(&mut command)?;
        assert_eq!(greeting, serde_json::json!({}));
        assert_eq!(conversation.ask("1")?, serde_json::json!([1]));
        assert_eq!(conversation.ask("2")?, serde_json::json!([2]));
        Ok(())
    }

    #[test]
    fn a_program_that_ends_is_an_error_that_names_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let error = Conversation::start(&mut command).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("exit 3")));
    }
}
