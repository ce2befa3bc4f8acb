//! Training steps on command, for a comparison in turns.
//!
//! `prepare` writes a job folder; `serve` reads it, greets with one line of JSON and answers each
//! line of stdin with another: `steps N` trains, `evaluate` gives the held-out losses, `bound` the
//! least time of a step on this machine.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use foretoken_benches::{Bound, Job, StepWork, Text, TrainingLoop};
use foretoken_train::{MuonPrecision, TrainConfig};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Training steps on command.
#[derive(Parser)]
enum Command {
    /// Write a job folder
    Prepare {
        /// The recipe, TOML
        #[arg(long)]
        recipe: PathBuf,
        /// A key of the recipe, `section.key=value`
        #[arg(long)]
        set: Vec<String>,
        /// The folder of the corpus `python-code`
        #[arg(long)]
        corpus: PathBuf,
        /// Where its token shards are or go
        #[arg(long)]
        shards: PathBuf,
        /// Tokens of the model [default: the bytes]
        #[arg(long)]
        vocab: Option<usize>,
        /// Batches to evaluate on
        #[arg(long, default_value_t = 16)]
        held_out: u64,
        /// The folder to write
        #[arg(long)]
        job: PathBuf,
    },
    /// Read a job folder and obey stdin
    Serve {
        /// The folder that `prepare` wrote
        #[arg(long)]
        job: PathBuf,
        /// Threads of the tensor library
        #[arg(long)]
        threads: i32,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Prepare { recipe, set, corpus, shards, vocab, held_out, job } => {
            let config = TrainConfig::from_file(&recipe, &set)?;
            Job::new(&job).write(&config, &Text { corpus, shards, vocab, held_out })
        }
        Command::Serve { job, threads } => {
            tch::set_num_threads(threads);
            serve(&Job::new(&job))
        }
    }
}

fn serve(job: &Job) -> Result<()> {
    let config = job.config()?;
    let (train, held_out) = job.read_batches()?;
    let model = job.model()?;
    let parameters = model.parameter_count();
    let ends = model.trunk().embed_tokens.numel() + model.unembedding().numel();
    let work = StepWork::new(&model, &config);
    say(&json!({
        "parameters": parameters,
        "non_embedding_parameters": parameters - ends,
        "vocab": model.config().architecture.vocab,
        "tokens_per_step": config.tokens_per_step(),
        "flops_per_step": work.flops(),
    }))?;
    let mut training = TrainingLoop::new(model, config)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read stdin")?;
        let answer = match line.split_once(' ') {
            Some(("steps", count)) => steps(&mut training, &train, count.parse()?)?,
            None if line == "evaluate" => evaluate(&training, &held_out)?,
            None if line == "bound" => {
                let kind = training.model().kind();
                Bound::measure(&work, parameters, kind, muon_kind(training.config()))?.to_json()
            }
            _ => bail!("unknown command {line:?}"),
        };
        say(&answer)?;
    }
    Ok(())
}

fn steps(training: &mut TrainingLoop, batches: &[Tensor], count: usize) -> Result<Value> {
    let mut losses = Vec::with_capacity(count);
    let start = Instant::now();
    for _ in 0..count {
        let batch = &batches[training.done() as usize % batches.len()];
        losses.push(training.step(batch)?.0.f_get(0)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({"seconds": seconds, "losses": numbers(&Tensor::f_stack(&losses, 0)?)?}))
}

fn evaluate(training: &TrainingLoop, batches: &[Tensor]) -> Result<Value> {
    let losses: Vec<Tensor> =
        batches.iter().map(|batch| Ok(training.evaluate(batch)?.0)).collect::<Result<_>>()?;
    let mean = Tensor::f_stack(&losses, 0)?.f_mean_dim(0, false, Kind::Double)?;
    Ok(json!({"losses": numbers(&mean)?}))
}

/// What Newton–Schulz computes in; a comparison's recipe names it.
fn muon_kind(config: &TrainConfig) -> Kind {
    match config.optimizer.muon_precision {
        MuonPrecision::Bfloat16 | MuonPrecision::Fast => Kind::BFloat16,
        MuonPrecision::Float32 | MuonPrecision::Auto => Kind::Float,
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.f_to_kind(Kind::Double)?)?)
}

fn say(value: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}").and_then(|()| stdout.flush()).context("cannot write to stdout")
}
