//! The `foretoken` command: arguments in, the layers' work, results on stdout.

mod arguments;
mod cuda;
mod device;
mod export;
mod failure;
mod generate;
mod import;
mod interrupt;
mod logits;
mod model;
mod output;
mod plot;
mod prompts;
mod reproduce;
mod stop;
mod train;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    let result = match arguments.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Logits(arguments) => logits::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Plot(arguments) => plot::run(&arguments),
        Command::Reproduce(arguments) => reproduce::run(&arguments),
    };
    failure::exit_code(result)
}
