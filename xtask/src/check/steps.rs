//! Steps with a name, a duration and an outcome.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::process;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// Runs steps in order, goes on after a failed one, and sums up at the end.
pub(crate) struct Steps<'w> {
    workspace: &'w Workspace,
    libtorch: &'w Libtorch,
    only: Option<&'w str>,
    started: Instant,
    passed: usize,
    failed: Vec<String>,
}

impl<'w> Steps<'w> {
    /// No step run yet; `only` skips those whose name does not contain it.
    pub(crate) fn new(
        workspace: &'w Workspace,
        libtorch: &'w Libtorch,
        only: Option<&'w str>,
    ) -> Self {
        Self { workspace, libtorch, only, started: Instant::now(), passed: 0, failed: Vec::new() }
    }

    /// Runs one step.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        if self.only.is_some_and(|text| !name.contains(text)) {
            return;
        }
        println!("── {name}");
        let started = Instant::now();
        let outcome = step();
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("── {name}: ok ({seconds:.1} s)");
                self.passed += 1;
            }
            Err(error) => {
                println!("── {name}: FAILED ({seconds:.1} s)\n{error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Runs Cargo in the repository as one step.
    pub(crate) fn cargo(&mut self, name: &str, arguments: &[&str], environment: &[(&str, &str)]) {
        let mut command = cargo_in(self.workspace, self.libtorch);
        command.args(arguments).envs(environment.iter().copied());
        self.run(name, || process::run(&mut command));
    }

    /// Prints what failed and the counts, and gives the exit code.
    pub(crate) fn finish(self) -> ExitCode {
        let minutes = self.started.elapsed().as_secs_f64() / 60.0;
        println!("── all steps: {minutes:.1} minutes");
        for name in &self.failed {
            println!("failed: {name}");
        }
        if self.passed + self.failed.len() == 0 {
            println!("no step has such a name");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.passed > 0 && self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Cargo in the repository's folder, with the libraries within reach.
pub(crate) fn cargo_in(workspace: &Workspace, libtorch: &Libtorch) -> Command {
    let mut command = process::cargo();
    command.current_dir(workspace.root());
    libtorch.apply(&mut command);
    command
}
