//! Criterion over training: gradients of the objective, and whole steps with their update.
//!
//! `cargo xtask bench layers`, or `cargo bench -p foretoken-benches`; a word behind it filters.

use std::hint::black_box;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, Throughput};
use foretoken_benches::TrainingLoop;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::MultiTokenLoss;
use foretoken_train::TrainConfig;
use tch::{Device, Kind, Tensor};

const VOCAB: usize = 264;
const ROWS: usize = 4;
const SEQUENCE: usize = 256;

fn recipe(heads: usize, sets: &[&str]) -> Result<TrainConfig> {
    let text = format!(
        "[model]\nlayers = 10\nattention_heads = 4\ndim = 128\nffn = 344\ncontext = {SEQUENCE}\n\
         [heads]\ncount = {heads}\n[train]\nsteps = 1000000\nbatch = {ROWS}\n\
         sequence = {SEQUENCE}\n"
    );
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Ok(TrainConfig::from_toml(&text, &sets)?)
}

fn model(config: &TrainConfig) -> Result<MultiTokenModel> {
    Ok(MultiTokenModel::new(&config.model_config(VOCAB)?, Kind::Float, Device::Cpu, 0)?)
}

fn batch(heads: usize) -> Tensor {
    let shape = [ROWS as i64, (SEQUENCE + heads) as i64];
    Tensor::randint(VOCAB as i64, shape, (Kind::Int64, Device::Cpu))
}

/// Gradients of the objective, by the number of heads at equal parameters: head by head, and with
/// all heads in one graph.
fn gradients(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("gradients");
    group.throughput(Throughput::Elements((ROWS * SEQUENCE) as u64)).sample_size(20);
    for heads in [1, 4, 8] {
        let model = model(&recipe(heads, &[])?)?;
        let (tokens, loss) = (batch(heads), MultiTokenLoss::new(heads));
        group.bench_function(BenchmarkId::new("head by head", heads), |bench| {
            bench.iter(|| black_box(loss.backward(&model, &tokens)));
        });
        group.bench_function(BenchmarkId::new("all at once", heads), |bench| {
            bench.iter(|| black_box(loss.all_at_once(&model, &tokens).map(|sum| sum.backward())));
        });
    }
    group.finish();
    Ok(())
}

/// Whole steps of four heads, by optimiser and precision.
fn steps(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("steps");
    group.throughput(Throughput::Elements((ROWS * SEQUENCE) as u64)).sample_size(20);
    for optimizer in ["adamw", "muon"] {
        for precision in ["float32", "bfloat16"] {
            let kind = format!("optimizer.type={optimizer}");
            let precise = format!("train.precision={precision}");
            let config = recipe(4, &[&kind, &precise])?;
            let mut training = TrainingLoop::new(model(&config)?, config)?;
            let tokens = batch(4);
            group.bench_function(BenchmarkId::new(optimizer, precision), |bench| {
                bench.iter(|| black_box(training.step(&tokens)));
            });
        }
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    gradients(&mut criterion)?;
    steps(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
