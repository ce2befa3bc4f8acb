//! `cargo xtask bench`.
use crate::workspace::Workspace;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
/// Options.
#[derive(Args)]
pub(crate) struct BenchArguments {}
/// Runs.
pub(crate) fn run(_: &Workspace, _: &BenchArguments) -> Result<ExitCode> {
    anyhow::bail!("later")
}
