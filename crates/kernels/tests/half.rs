//! bfloat16 on the CPU: what goes in is rounded, what comes out is rounded once, and nothing between.

use foretoken_kernels::{
    AttentionShape, Rotary, causal_attention, causal_attention_reference, embedding, rms_norm,
    rms_norm_reference, swiglu, swiglu_reference,
};
use tch::{Device, Kind, Tensor};

/// Half the distance of two neighbours of bfloat16, which has eight significant bits, and the
/// error of float32 beside it.
const ROUNDING: f64 = 1.0 / 256.0 + 1e-4;

/// Seeded by itself: libtorch's generator is one for all tests that run at once.
fn random(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    let mixed = (Tensor::arange(count, (Kind::Double, Device::Cpu)) + 1.0 + seed * 7919) * 12.9898;
    let uniform = (mixed.sin() * 43758.5453).frac();
    (uniform * 1.7).reshape(shape).to_kind(Kind::BFloat16)
}

/// Outputs and gradients in bfloat16 against those of `reference` in float64 on the same numbers.
fn check(
    inputs: &[Tensor],
    ours: impl Fn(&[Tensor]) -> Tensor,
    reference: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |kind: Kind, f: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|t| t.to_kind(kind).detach().set_requires_grad(true)).collect();
        let y = f(&leaves);
        assert_eq!(y.kind(), kind);
        let weights = random(&y.size(), 77).to_kind(kind);
        (&y * weights).sum(kind).backward();
        let mut all = vec![y.detach()];
        all.extend(leaves.iter().map(Tensor::grad));
        all
    };
    let (half, exact) = (run(Kind::BFloat16, &ours), run(Kind::Double, &reference));
    for (place, (half, exact)) in half.iter().zip(&exact).enumerate() {
        assert_eq!(half.kind(), Kind::BFloat16);
        let error = (half.to_kind(Kind::Double) - exact).abs();
        let bound = exact.abs() * ROUNDING + 1e-4 * exact.abs().max();
        let over: Tensor = error - bound;
        let over = over.max().double_value(&[]);
        assert!(over <= 0.0, "output or gradient {place} is off by {over} more than a rounding");
    }
}

#[test]
fn a_norm_is_rounded_once() {
    let inputs = [random(&[37, 24], 1), random(&[24], 2)];
    check(
        &inputs,
        |t| rms_norm(&t[0], &t[1], 1e-5).unwrap(),
        |t| rms_norm_reference(&t[0], &t[1], 1e-5).unwrap(),
    );
}

#[test]
fn a_gated_unit_is_rounded_once() {
    check(
        &[random(&[19, 34], 3)],
        |t| swiglu(&t[0]).unwrap(),
        |t| swiglu_reference(&t[0]).unwrap(),
    );
}

#[test]
fn attention_is_rounded_once() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };
    let rotary = |kind| Rotary::new(8, 10_000.0, 64, kind, Device::Cpu).unwrap();
    let (half, exact) = (rotary(Kind::BFloat16), rotary(Kind::Double));
    check(
        &[random(&[2, 21, shape.qkv_width()], 4)],
        |t| causal_attention(t[0].shallow_clone(), shape, &half).unwrap(),
        |t| causal_attention_reference(&t[0], shape, &exact).unwrap(),
    );
}

#[test]
fn the_gradient_of_a_frequent_row_is_not_lost() {
    // 600 times the same small gradient: a sum in eight bits would stand still long before.
    let tokens = Tensor::zeros([600], (Kind::Int64, Device::Cpu));
    let weight = random(&[3, 4], 5).set_requires_grad(true);
    let rows = embedding(&weight, &tokens).unwrap();
    assert_eq!(rows.kind(), Kind::BFloat16);
    rows.sum(Kind::Float).backward();
    let gradient = Vec::<f64>::try_from(weight.grad().get(0).to_kind(Kind::Double)).unwrap();
    assert!(gradient.iter().all(|sum| (sum - 600.0).abs() <= 600.0 * ROUNDING), "{gradient:?}");
}
