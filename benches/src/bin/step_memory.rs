//! Peak memory of training steps, model and optimiser included, in a process of its own, and the
//! shortest one's time.

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use foretoken_benches::{TrainingLoop, current_resident_bytes, peak_resident_bytes};
use foretoken_heads::MultiTokenModel;
use foretoken_train::TrainConfig;
use serde_json::json;
use tch::{Device, Kind, Tensor};

const STEPS: usize = 3;

/// Peak memory of training steps.
#[derive(Parser)]
struct Arguments {
    /// n
    #[arg(long)]
    heads: usize,
    /// Threads of the tensor library
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Sequences in a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 512)]
    sequence: usize,
    /// Layers in all; every n takes its heads from them
    #[arg(long, default_value_t = 10)]
    layers: usize,
    /// Width
    #[arg(long, default_value_t = 256)]
    dim: usize,
    /// Tokens of the model
    #[arg(long, default_value_t = 32_768)]
    vocab: usize,
    /// A key of the recipe, `section.key=value`; may be given again
    #[arg(long)]
    set: Vec<String>,
    /// The naive way: all heads in one graph, all of their logits in memory
    #[arg(long)]
    all_at_once: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tch::set_num_threads(arguments.threads);
    let Arguments { heads, batch, sequence, layers, dim, vocab, all_at_once, .. } = arguments;
    let recipe = format!(
        "[model]\nlayers = {layers}\nattention_heads = 4\ndim = {dim}\nffn = {}\ncontext = {sequence}\n\
         [heads]\ncount = {heads}\n[train]\nsteps = {STEPS}\nbatch = {batch}\nsequence = {sequence}\n",
        dim * 8 / 3 / 8 * 8
    );
    let config = TrainConfig::from_toml(&recipe, &arguments.set)?;
    let model = MultiTokenModel::new(&config.model_config(vocab)?, Kind::Float, Device::Cpu, 0)?;
    let parameters = model.parameter_count();
    let tokens_per_step = config.tokens_per_step();
    // A key that was set stands for its option, too.
    let (heads, steps) = (config.heads.count, config.train.steps);
    let shape = [config.train.batch as i64, config.columns() as i64];
    let mut training = TrainingLoop::new(model, config)?;
    let before_bytes = current_resident_bytes()?;
    let tokens = Tensor::f_randint(vocab as i64, shape, (Kind::Int64, Device::Cpu))?;
    let mut step_seconds = f64::INFINITY;
    for _ in 0..steps {
        let start = Instant::now();
        if all_at_once {
            training.step_all_at_once(&tokens)?;
        } else {
            training.step(&tokens)?;
        }
        step_seconds = step_seconds.min(start.elapsed().as_secs_f64());
    }
    let peak_bytes = peak_resident_bytes()?;
    println!(
        "{}",
        json!({
            "heads": heads, "vocab": vocab, "all_at_once": all_at_once, "set": arguments.set,
            "parameters": parameters, "tokens_per_step": tokens_per_step,
            "before_bytes": before_bytes, "peak_bytes": peak_bytes,
            "step_seconds": step_seconds,
        })
    );
    Ok(())
}
