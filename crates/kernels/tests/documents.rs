//! Attention over rows of several documents: fused against plain operators, and against each document
//! by itself.

use foretoken_kernels::{AttentionShape, Rotary, causal_attention, causal_attention_reference};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };

/// Documents of these lengths, one after the other: their numbers, `[seq]`.
fn numbers(lengths: &[usize]) -> Tensor {
    let numbers: Vec<i64> =
        lengths.iter().zip(0..).flat_map(|(&length, n)| std::iter::repeat_n(n, length)).collect();
    Tensor::from_slice(&numbers)
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn documents_side_by_side_are_as_each_by_itself(
        lengths in prop::collection::vec(1usize..70, 1..6), seed in 0i64..1000,
        double in prop::bool::weighted(0.2),
    ) {
        let (kind, bound) = if double { (Kind::Double, 1e-12) } else { (Kind::Float, 2e-5) };
        let seq = lengths.iter().sum::<usize>() as i64;
        let rotary = Rotary::new(8, 10_000.0, seq, kind, Device::Cpu).unwrap();
        tch::manual_seed(seed);
        let qkv = || Tensor::randn([2, seq, SHAPE.qkv_width()], (kind, Device::Cpu));
        let (qkv, dy) = (qkv(), Tensor::randn([2, seq, 32], (kind, Device::Cpu)));
        // The rows have the same documents in opposite orders.
        let backwards: Vec<usize> = lengths.iter().rev().copied().collect();
        let documents = Tensor::stack(&[numbers(&lengths), numbers(&backwards)], 0);
        let apart = rotary.within_documents(&documents).unwrap();

        let fused = qkv.copy().set_requires_grad(true);
        let y = causal_attention(fused.shallow_clone() * 1.0, SHAPE, &apart).unwrap();
        (&y * &dy).sum(kind).backward();
        let plain = qkv.copy().set_requires_grad(true);
        let reference = causal_attention_reference(&plain, SHAPE, &apart).unwrap();
        (&reference * &dy).sum(kind).backward();
        prop_assert!(largest(&(&y - &reference)) < bound);
        prop_assert!(largest(&(fused.grad() - plain.grad())) < 10.0 * bound);

        for (row, lengths) in [(0, &lengths), (1, &backwards)] {
            let mut start = 0;
            for &length in lengths {
                let length = length as i64;
                let part = |tensor: &Tensor| tensor.narrow(0, row, 1).narrow(1, start, length);
                let alone = part(&qkv).copy().set_requires_grad(true);
                let by_itself = causal_attention_reference(&alone, SHAPE, &rotary).unwrap();
                (&by_itself * part(&dy)).sum(kind).backward();
                prop_assert!(largest(&(part(&y) - &by_itself)) < bound);
                prop_assert!(largest(&(part(&fused.grad()) - alone.grad())) < 10.0 * bound);
                start += length;
            }
        }
    }
}

#[test]
fn stacked_rows_have_the_documents_of_their_own_and_others_are_refused() {
    let rotary = Rotary::new(8, 10_000.0, 8, Kind::Float, Device::Cpu).unwrap();
    let two = Tensor::stack(&[numbers(&[3, 4]), numbers(&[5, 2])], 0);
    let apart = rotary.within_documents(&two).unwrap();
    let qkv = Tensor::randn([2, 7, SHAPE.qkv_width()], (Kind::Float, Device::Cpu));
    let once = causal_attention(qkv.copy(), SHAPE, &apart).unwrap();
    let thrice = causal_attention(qkv.repeat([3, 1, 1]), SHAPE, &apart).unwrap();
    assert_eq!(thrice, once.repeat([3, 1, 1]));
    for shape in [[3, 7], [2, 6]] {
        let shape = [shape[0], shape[1], SHAPE.qkv_width()];
        let other = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let error = causal_attention(other, SHAPE, &apart).unwrap_err().to_string();
        assert!(error.contains("documents") && error.contains("[2, 7]"), "{error}");
    }
}

#[test]
fn half_precision_keeps_documents_apart_too() {
    let rotary = Rotary::new(8, 10_000.0, 8, Kind::BFloat16, Device::Cpu).unwrap();
    let apart = rotary.within_documents(&numbers(&[3, 4]).unsqueeze(0)).unwrap();
    let qkv = Tensor::randn([1, 7, SHAPE.qkv_width()], (Kind::BFloat16, Device::Cpu));
    let y = causal_attention(qkv.copy(), SHAPE, &apart).unwrap();
    let alone = causal_attention(qkv.narrow(1, 3, 4).copy(), SHAPE, &rotary).unwrap();
    let difference = (y.narrow(1, 3, 4) - alone).to_kind(Kind::Float);
    assert!(largest(&difference) < 2e-2);
}
