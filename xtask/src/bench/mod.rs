//! `cargo xtask bench`: ours and other software on the same work, side by side.

pub(crate) mod answers;
pub(crate) mod conversation;
mod data;
mod decoding;
mod job;
mod memory;
pub(crate) mod peers;
mod plan;
pub(crate) mod results;
pub(crate) mod statistics;
mod steps;
mod training;
mod turns;
mod verdicts;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process;
use crate::reproduce::build_release;
use crate::setup;
use crate::workspace::Workspace;

use plan::Plan;

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
    /// Turns of each side, alternately [default: 9, fewer of heavy rows; 5 of `data`]
    #[arg(long)]
    rounds: Option<usize>,
    /// With `steps` and --peer pytorch: only the rows whose name contains one of these texts, such as
    /// `50M` or `1M/32768/n4`; written below the build folder unless --out is given
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',')]
    rows: Vec<String>,
    /// With `steps` and --peer pytorch: the light rows, three turns each; written below the build
    /// folder unless --out is given
    #[arg(long)]
    quick: bool,
    /// With --peer pytorch: leave out `torch.compile`, which needs a C++ compiler and minutes
    #[arg(long)]
    no_compile: bool,
    /// Threads of each side [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Measure the binaries that were built last, as they are
    #[arg(long)]
    no_build: bool,
    /// The file to write [default: docs/results/bench-NAME.json; `layers` writes none]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What can be measured of ours alone.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Measurement {
    /// Peak memory of a training step: n = 4 and 8 against 1, n = 8 against the naive way, grouped
    /// heads against sequential, recomputed blocks against kept ones
    Memory,
    /// Times of kernels, gradients, steps, batches and decoding, by Criterion
    Layers,
    /// Training steps: n = 4 against 1, grouped heads against sequential, bfloat16 against float32
    Steps,
    /// Tokens a second from a warm shard, and the share of their time that trainings wait for data
    Data,
}

/// Software to compare with.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Peer {
    /// `generate` of transformers, on the same model folder
    Transformers,
    /// A plain PyTorch training loop, eager and compiled, from the same weights on the same batches
    Pytorch,
}

impl BenchArguments {
    /// What is run, as files are named after it; `layers` has no file.
    fn name(&self) -> Result<&'static str> {
        Ok(match (self.what, self.peer) {
            (Some(Measurement::Memory), _) => "memory",
            (Some(Measurement::Layers), _) => "layers",
            (Some(Measurement::Steps), _) => "steps",
            (Some(Measurement::Data), _) => "data",
            (None, Some(Peer::Transformers)) => "transformers",
            (None, Some(Peer::Pytorch)) => "pytorch",
            (None, None) => bail!(
                "say what to measure: `memory`, `layers`, `steps`, `data`, `--peer transformers` or \
                 `--peer pytorch`"
            ),
        })
    }

    /// Refuses options that what is run has no use for.
    fn check(&self, name: &str) -> Result<()> {
        if let Some(rounds @ 0..=2) = self.rounds {
            bail!("--rounds {rounds}: a median needs at least 3");
        }
        if self.model.is_some() && name != "transformers" {
            bail!("--model goes with --peer transformers only");
        }
        if (self.quick || !self.rows.is_empty()) && !["pytorch", "steps"].contains(&name) {
            bail!("--rows and --quick go with `steps` and --peer pytorch only");
        }
        if self.no_compile && name != "pytorch" {
            bail!("--no-compile goes with --peer pytorch only");
        }
        Ok(())
    }

    /// How the comparison of this name is run. Some of its rows do not take the place of all.
    fn plan(&self, name: &str, workspace: &Workspace) -> Plan {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let file = match self.quick || !self.rows.is_empty() {
            true => workspace.target().join(format!("peers/bench-{name}-part.json")),
            false => workspace.root().join(format!("docs/results/bench-{name}.json")),
        };
        Plan {
            rounds: self.rounds,
            threads: self.threads.unwrap_or(cores).max(1),
            out: self.out.clone().unwrap_or(file),
            rows: self.rows.clone(),
            quick: self.quick,
            compiled: !self.no_compile,
        }
    }
}

/// The packages whose binaries are run.
fn packages(name: &str) -> &'static [&'static str] {
    match name {
        "transformers" => &["foretoken-cli"],
        "data" => &["foretoken-benches", "foretoken-cli"],
        _ => &["foretoken-benches"],
    }
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(workspace: &Workspace, arguments: &BenchArguments) -> Result<ExitCode> {
    let name = arguments.name()?;
    arguments.check(name)?;
    let libtorch = setup::ensure(workspace)?;
    let plan = arguments.plan(name, workspace);
    if name == "layers" {
        let mut bench = process::cargo();
        bench.current_dir(workspace.root()).args(["bench", "--package", "foretoken-benches"]);
        libtorch.apply(&mut bench);
        process::run(&mut bench)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.no_build {
        for package in packages(name) {
            build_release(workspace, package, &libtorch)?;
        }
    }
    let passed = match (arguments.what, arguments.peer) {
        (Some(Measurement::Steps), _) => steps::run(workspace, &libtorch, &plan)?,
        (Some(Measurement::Data), _) => data::run(workspace, &libtorch, &plan)?,
        (_, Some(Peer::Transformers)) => {
            decoding::run(workspace, &libtorch, arguments.model.as_deref(), &plan)?
        }
        (_, Some(Peer::Pytorch)) => training::run(workspace, &libtorch, &plan)?,
        _ => memory::run(workspace, &libtorch, &plan)?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
