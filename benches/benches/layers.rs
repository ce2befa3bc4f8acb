//! Criterion over the layers: kernels with their gradients, whole training steps, decoding.
//!
//! `cargo xtask bench layers`, or `cargo bench -p foretoken-benches`; a word behind it filters.

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{BenchmarkId, Criterion, Throughput};
use foretoken_decode::{Decoder, Decoding, GenerateOptions};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_kernels::{
    AttentionShape, Rotary, causal_attention, linear_cross_entropy, rms_norm, swiglu,
};
use foretoken_loss::MultiTokenLoss;
use foretoken_trunk::Architecture;
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const ROWS: i64 = 2048;
const DIM: i64 = 256;

fn leaf(size: &[i64]) -> Tensor {
    Tensor::randn(size, FLOAT).set_requires_grad(true)
}

/// Forward and backward of each fused kernel.
fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements(ROWS as u64));
    let (x, weight) = (leaf(&[ROWS, DIM]), leaf(&[DIM]));
    group.bench_function("rms_norm", |bench| {
        bench.iter(|| rms_norm(&x, &weight, 1e-5).map(|y| y.sum(Kind::Float).backward()));
    });
    let gates = leaf(&[ROWS, 4 * DIM]);
    group.bench_function("swiglu", |bench| {
        bench.iter(|| swiglu(&gates).map(|y| y.sum(Kind::Float).backward()));
    });
    let shape = AttentionShape { heads: 8, kv_heads: 4, head_dim: 32 };
    if let Ok(rotary) = Rotary::new(shape.head_dim, 10_000.0, 256, Kind::Float, Device::Cpu) {
        let qkv = leaf(&[ROWS / 256, 256, shape.qkv_width()]);
        group.bench_function("causal_attention", |bench| {
            bench.iter(|| {
                let y = causal_attention(qkv.shallow_clone(), shape, &rotary);
                y.map(|y| y.sum(Kind::Float).backward())
            });
        });
    }
    for vocab in [264, 32_768] {
        let unembedding = leaf(&[vocab, DIM]);
        let targets = Tensor::randint(vocab, [ROWS], (Kind::Int64, Device::Cpu));
        group.bench_function(BenchmarkId::new("linear_cross_entropy", vocab), |bench| {
            bench.iter(|| linear_cross_entropy(&x, &unembedding, &targets).map(|y| y.backward()));
        });
    }
    group.finish();
}

fn model(heads: usize) -> Option<MultiTokenModel> {
    let architecture = Architecture { layers: 10, ..Architecture::default() };
    let heads = HeadsConfig { kind: "block".into(), count: heads };
    let config = ModelConfig { architecture, heads, end_of_text: None };
    MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0).ok()
}

/// Gradients of the whole objective, by the number of heads at equal parameters.
fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gradients");
    group.throughput(Throughput::Elements(4 * 256)).sample_size(20);
    for heads in [1, 4, 8] {
        let Some(model) = model(heads) else { continue };
        let columns = 256 + heads as i64;
        let tokens = Tensor::randint(256, [4, columns], (Kind::Int64, Device::Cpu));
        let loss = MultiTokenLoss::new(heads);
        group.bench_function(BenchmarkId::from_parameter(heads), |bench| {
            bench.iter(|| black_box(loss.backward(&model, &tokens)));
        });
    }
    group.finish();
}

/// A text of 128 tokens behind a prompt of as many, by the heads used.
fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decoding");
    group.throughput(Throughput::Elements(128));
    let Some(model) = model(4) else { return };
    let Ok(mut decoder) = Decoder::new(&model) else { return };
    let prompt: Vec<u32> = (0..128).map(|i| i * i % 256).collect();
    for heads in 1..=4 {
        let decoding = Decoding::Speculative { heads };
        let options =
            GenerateOptions { max_new_tokens: 128, decoding, ..GenerateOptions::default() };
        group.bench_function(BenchmarkId::from_parameter(heads), |bench| {
            bench.iter(|| {
                black_box(decoder.generate(
                    &prompt,
                    &options,
                    &mut |_, _| ControlFlow::Continue(()),
                ))
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    kernels(&mut criterion);
    steps(&mut criterion);
    decoding(&mut criterion);
    criterion.final_summary();
}
