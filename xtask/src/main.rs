//! `cargo xtask`: everything around the library that is not the library.
//!
//! * `setup` fetches libtorch and the default corpus into `.libtorch/`,
//! * `test` runs every check of the repository,
//! * `reproduce` sets up, builds and starts `foretoken reproduce`,
//! * `launch` starts several processes of one training on this machine,
//! * `bench` runs other software on the same work as ours,
//! * `compare` holds our reading of a pretrained model against that of transformers.
//!
//! This crate imports no other crate of the workspace and no `tch`: it has to build before
//! libtorch is there.

mod bench;
mod check;
mod compare;
mod launch;
mod process;
mod reproduce;
mod setup;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set-up, checks, reproductions and benchmarks of foretoken.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch libtorch and the default corpus into .libtorch/ (other commands do so when needed)
    Setup(setup::SetupArguments),
    /// Set up, then run every check: format, lints, layers, tests, docs, a smoke reproduction
    Test(check::TestArguments),
    /// Set up, build, then run `foretoken reproduce` with these arguments
    Reproduce(reproduce::ReproduceArguments),
    /// Set up, build, then start several processes of one training on this machine
    Launch(launch::LaunchArguments),
    /// Set up, build, then run other software and ours on the same work
    Bench(bench::BenchArguments),
    /// Set up, build, then hold a pretrained model, as we read it, against transformers
    Compare(compare::CompareArguments),
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = Workspace::find().and_then(|workspace| match command_line.command {
        Command::Setup(arguments) => setup::run(&workspace, &arguments),
        Command::Test(arguments) => check::run(&workspace, &arguments),
        Command::Reproduce(arguments) => reproduce::run(&workspace, &arguments),
        Command::Launch(arguments) => launch::run(&workspace, &arguments),
        Command::Bench(arguments) => bench::run(&workspace, &arguments),
        Command::Compare(arguments) => compare::run(&workspace, &arguments),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
