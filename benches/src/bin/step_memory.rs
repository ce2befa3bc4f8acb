//! Peak memory of training steps at a large vocabulary, in a process of its own.

use anyhow::Result;
use clap::Parser;
use foretoken_benches::{TrainingLoop, current_resident_bytes, peak_resident_bytes};
use foretoken_heads::MultiTokenModel;
use foretoken_train::TrainConfig;
use serde_json::json;
use tch::{Device, Kind, Tensor};

const VOCAB: usize = 32_768;
const STEPS: usize = 3;

/// Peak memory of training steps at a large vocabulary.
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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tch::set_num_threads(arguments.threads);
    let Arguments { heads, batch, sequence, layers, dim, .. } = arguments;
    let recipe = format!(
        "[model]\nlayers = {layers}\nattention_heads = 4\ndim = {dim}\nffn = {}\ncontext = {sequence}\n\
         [heads]\ncount = {heads}\n[train]\nsteps = {STEPS}\nbatch = {batch}\nsequence = {sequence}\n",
        dim * 8 / 3 / 8 * 8
    );
    let config = TrainConfig::from_toml(&recipe, &[])?;
    let model = MultiTokenModel::new(&config.model_config(VOCAB), Kind::Float, Device::Cpu, 0)?;
    let parameters = model.parameter_count();
    let tokens_per_step = config.tokens_per_step();
    let mut training = TrainingLoop::new(model, config)?;
    let before_bytes = current_resident_bytes()?;
    let shape = [batch as i64, (sequence + heads) as i64];
    let tokens = Tensor::f_randint(VOCAB as i64, shape, (Kind::Int64, Device::Cpu))?;
    for _ in 0..STEPS {
        training.step(&tokens)?;
    }
    let peak_bytes = peak_resident_bytes()?;
    println!(
        "{}",
        json!({
            "heads": heads, "parameters": parameters, "tokens_per_step": tokens_per_step,
            "before_bytes": before_bytes, "peak_bytes": peak_bytes,
        })
    );
    Ok(())
}
