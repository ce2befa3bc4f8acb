//! Criterion over the layers: kernels with their gradients beside the plain references, Muon's
//! Newton–Schulz, products of few rows, decoding.
//!
//! `cargo xtask bench layers`, or `cargo bench -p foretoken-benches`; a word behind it filters.

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use foretoken_decode::{Decoder, Decoding, GenerateOptions};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_kernels::cpu::{PackedLinear, Rows, WeightFormat};
use foretoken_kernels::{
    AttentionShape, Rotary, causal_attention, causal_attention_reference, linear_cross_entropy,
    linear_cross_entropy_reference, linear_distillation, rms_norm, rms_norm_reference, swiglu,
    swiglu_reference,
};
use foretoken_train::orthogonalize;
use foretoken_trunk::Architecture;
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const ROWS: i64 = 2048;
const DIM: i64 = 256;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn leaf(size: &[i64]) -> Tensor {
    Tensor::randn(size, FLOAT).set_requires_grad(true)
}

/// Forward and backward of a function of tensors.
fn both_ways<E: std::fmt::Debug>(
    group: &mut Group<'_>,
    name: &str,
    form: &str,
    function: impl Fn() -> Result<Tensor, E>,
) {
    group.bench_function(BenchmarkId::new(name, form), |bench| {
        bench.iter(|| black_box(function().map(|y| y.sum(Kind::Float).backward())));
    });
}

/// Forward and backward of each kernel, fused and plain.
fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements(ROWS as u64));
    let (x, weight) = (leaf(&[ROWS, DIM]), leaf(&[DIM]));
    both_ways(&mut group, "rms_norm", "fused", || rms_norm(&x, &weight, 1e-5));
    both_ways(&mut group, "rms_norm", "reference", || rms_norm_reference(&x, &weight, 1e-5));
    let gates = leaf(&[ROWS, 8 * DIM]);
    both_ways(&mut group, "swiglu", "fused", || swiglu(&gates));
    both_ways(&mut group, "swiglu", "reference", || swiglu_reference(&gates));
    attention(&mut group);
    for vocab in [264, 32_768] {
        cross_entropy(&mut group, &x, vocab);
    }
    group.finish();
}

fn attention(group: &mut Group<'_>) {
    let shape = AttentionShape { heads: 8, kv_heads: 4, head_dim: 32 };
    let Ok(rotary) = Rotary::new(shape.head_dim, 10_000.0, 256, Kind::Float, Device::Cpu) else {
        return;
    };
    let qkv = leaf(&[ROWS / 256, 256, shape.qkv_width()]);
    both_ways(group, "causal_attention", "fused", || {
        causal_attention(qkv.shallow_clone(), shape, &rotary)
    });
    both_ways(group, "causal_attention", "reference", || {
        causal_attention_reference(&qkv, shape, &rotary)
    });
}

fn cross_entropy(group: &mut Group<'_>, hidden: &Tensor, vocab: i64) {
    let unembedding = leaf(&[vocab, DIM]);
    let targets = Tensor::randint(vocab, [ROWS], (Kind::Int64, Device::Cpu));
    let name = |what: &str| format!("{what}/{vocab}");
    both_ways(group, &name("linear_cross_entropy"), "fused", || {
        linear_cross_entropy(hidden, &unembedding, &targets)
    });
    both_ways(group, &name("linear_cross_entropy"), "reference", || {
        linear_cross_entropy_reference(hidden, &unembedding, &targets)
    });
    let teacher = Tensor::randn([ROWS, DIM], FLOAT);
    both_ways(group, &name("linear_distillation"), "fused", || {
        linear_distillation(hidden, &unembedding, &teacher)
    });
}

/// Muon's iteration over the matrices of eight blocks, by shape and number format.
fn newton_schulz(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("newton_schulz");
    for (rows, columns) in [(DIM, DIM), (688, DIM), (DIM, 688)] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let stack = Tensor::randn([8, rows, columns], FLOAT).to_kind(kind);
            group.throughput(Throughput::Elements(stack.numel() as u64));
            let id = BenchmarkId::new(format!("{rows}x{columns}"), format!("{kind:?}"));
            group.bench_function(id, |bench| {
                bench.iter(|| black_box(tch::no_grad(|| orthogonalize(&stack))));
            });
        }
    }
    group.finish();
}

/// A product with more weights than caches hold, by the rows that it is of: reading the weights takes
/// most of it, and each row more should add little.
fn products(criterion: &mut Criterion) {
    let (outputs, inputs) = (49_152, 576);
    // In blocks of levels, as a quantised model has them.
    let weight: Vec<f32> = (0..outputs * inputs).map(|i| (i * 7919 % 16) as f32 - 8.0).collect();
    let mut group = criterion.benchmark_group("products");
    for (name, format) in [("full", WeightFormat::Full), ("levels", WeightFormat::Compact)] {
        let product = PackedLinear::pack(&weight, outputs, inputs, format);
        group.throughput(Throughput::Bytes(product.bytes() as u64));
        for rows in [1, 2, 3, 4, 6, 8, 12] {
            let (mut x, mut y) = (Rows::new(rows, inputs), Rows::new(rows, outputs));
            (0..rows).for_each(|r| x.row_mut(r).fill(1.0));
            group.bench_function(BenchmarkId::new(name, rows), |bench| {
                bench.iter(|| product.apply(&mut x, black_box(&mut y), rows, false));
            });
        }
    }
    group.finish();
}

/// A text of 128 tokens behind a prompt of as many, by the heads used.
fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decoding");
    group.throughput(Throughput::Elements(128));
    let config = ModelConfig {
        architecture: Architecture { layers: 10, ..Architecture::default() },
        heads: HeadsConfig::new("block", 4),
        end_of_text: Vec::new(),
    };
    let Ok(model) = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0) else { return };
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
    newton_schulz(&mut criterion);
    products(&mut criterion);
    decoding(&mut criterion);
    criterion.final_summary();
}
