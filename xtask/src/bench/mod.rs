//! `cargo xtask bench`: ours and other software on the same work, side by side.

pub(crate) mod answers;
pub(crate) mod conversation;
mod decoding;
mod memory;
pub(crate) mod peers;
pub(crate) mod results;
pub(crate) mod statistics;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process;
use crate::reproduce::build_release;
use crate::setup;
use crate::workspace::Workspace;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct BenchArguments {
    /// What to measure of ours alone
    #[arg(value_enum, conflicts_with = "peer")]
    what: Option<Measurement>,
    /// Which other software to run beside ours
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// With --peer transformers: the model folder [default: the n = 4 model of `reproduce --preset
    /// quick`, or one trained for it]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Turns of each side, alternately
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Threads of each side [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Measure the binaries that were built last, as they are
    #[arg(long)]
    no_build: bool,
    /// With --peer: the file to write [default: docs/results/bench-PEER.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What can be measured of ours alone.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Measurement {
    /// Peak memory of a training step with 8 heads against 1, at a vocabulary of 32,768
    Memory,
    /// Times of kernels, gradients and decoding, by Criterion
    Layers,
}

/// Software to compare with.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Peer {
    /// `generate` of transformers, on the same model folder
    Transformers,
    /// A plain PyTorch training loop, from the same weights on the same batches
    Pytorch,
}

/// How a comparison is run.
struct Plan {
    rounds: usize,
    threads: usize,
    out: PathBuf,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(workspace: &Workspace, arguments: &BenchArguments) -> Result<ExitCode> {
    if arguments.what.is_none() && arguments.peer.is_none() {
        bail!("say what to measure: `memory`, `layers`, `--peer transformers` or `--peer pytorch`");
    }
    if arguments.rounds < 3 {
        bail!("--rounds {}: a median needs at least 3", arguments.rounds);
    }
    if arguments.model.is_some() && arguments.peer != Some(Peer::Transformers) {
        bail!("--model goes with --peer transformers only");
    }
    let libtorch = setup::ensure(workspace)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let plan = |name: &str| Plan {
        rounds: arguments.rounds,
        threads,
        out: arguments
            .out
            .clone()
            .unwrap_or_else(|| workspace.root().join(format!("docs/results/bench-{name}.json"))),
    };
    if arguments.what == Some(Measurement::Layers) {
        let mut bench = process::cargo();
        bench.current_dir(workspace.root()).args(["bench", "--package", "foretoken-benches"]);
        libtorch.apply(&mut bench);
        process::run(&mut bench)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.no_build {
        let package = match arguments.peer {
            Some(Peer::Transformers) => "foretoken-cli",
            None | Some(Peer::Pytorch) => "foretoken-benches",
        };
        build_release(workspace, package, &libtorch)?;
    }
    let passed = match arguments.peer {
        None => memory::run(workspace, &libtorch, threads)?,
        Some(Peer::Transformers) => {
            let model = arguments.model.as_deref();
            decoding::run(workspace, &libtorch, model, &plan("transformers"))?
        }
        Some(Peer::Pytorch) => training::run(workspace, &libtorch, &plan("pytorch"))?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
