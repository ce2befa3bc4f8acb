//! `cargo xtask test`: every check of the repository, one after the other.
//!
//! All of it is built in the dev profile: libtorch's bindings take minutes to compile, and a second
//! profile for the smoke reproduction would compile them twice.

mod crate_pages;
mod launchers;
mod layers;
mod metadata;
mod outside;
mod report;
mod schema;
mod smoke;
mod steps;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::workspace::Workspace;

use steps::Steps;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct TestArguments {
    /// Run the slow tests too, those marked `#[ignore]`
    #[arg(long)]
    all: bool,
    /// Run only the steps whose name contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Runs `cargo xtask test`.
pub(crate) fn run(workspace: &Workspace, arguments: &TestArguments) -> Result<ExitCode> {
    let libtorch = setup::ensure(workspace)?;
    let mut steps = Steps::new(workspace, &libtorch, arguments.only.as_deref());
    steps.run("layers", || layers::check(workspace));
    steps.run("crate pages", || crate_pages::check(workspace));
    steps.cargo("format", &["fmt", "--all", "--check"], &[]);
    steps.cargo(
        "lints",
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &[],
    );
    let ignored: &[&str] = if arguments.all { &["--", "--include-ignored"] } else { &[] };
    steps.cargo(
        "tests",
        &[&["test", "--workspace", "--all-targets", "--no-fail-fast"], ignored].concat(),
        &[],
    );
    steps.cargo("doc tests", &[&["test", "--workspace", "--doc"], ignored].concat(), &[]);
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    steps.cargo("docs", &["doc", "--workspace", "--no-deps", "--quiet"], &deny);
    steps.run("outside crate", || outside::check(workspace, &libtorch));
    steps.run("smoke reproduction", || smoke::check(workspace, &libtorch));
    steps.run("launchers", || launchers::check(workspace, &libtorch));
    Ok(steps.finish())
}
