//! Cross-entropies in chunks of all sizes against `ndarray` in float64 and against autograd, and
//! in bfloat16 beside libtorch's own operators.

use super::{CrossEntropyOptions, IGNORED, in_chunks, linear_cross_entropy_with_reference};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use tch::{Device, Kind, Reduction, Tensor};

fn matrix(tensor: &Tensor) -> Array2<f64> {
    let (rows, columns) = tensor.size2().unwrap();
    let values = Vec::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1)).unwrap();
    Array2::from_shape_vec((rows as usize, columns as usize), values).unwrap()
}

/// Loss and plain cross-entropy from their definition, token by token.
fn defined(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[i64],
    options: &CrossEntropyOptions,
) -> (f64, f64) {
    let logits = matrix(hidden).dot(&matrix(weight).t());
    let (mut loss, mut nats, mut count) = (0.0, 0.0, 0.0);
    for (row, &target) in logits.rows().into_iter().zip(targets) {
        if target == IGNORED {
            continue;
        }
        let normaliser = row.mapv(f64::exp).sum();
        let costs: Array1<f64> = row.mapv(|x| -(x.exp() / normaliser).ln());
        let at_target = costs[target as usize];
        loss += (1.0 - options.label_smoothing) * at_target
            + options.label_smoothing * costs.mean().unwrap()
            + options.z_loss * normaliser.ln().powi(2);
        nats += at_target;
        count += 1.0;
    }
    (loss / f64::max(count, 1.0), nats / f64::max(count, 1.0))
}

/// Gradients of `factor` times a loss by two leaves, in float64.
fn gradients(leaves: &[Tensor; 2], loss: &Tensor, factor: f64) -> [Tensor; 2] {
    (loss * factor).backward();
    leaves.each_ref().map(|leaf| leaf.grad().to_kind(Kind::Double))
}

fn leaves(tensors: [&Tensor; 2], kind: Kind) -> [Tensor; 2] {
    tensors.map(|tensor| tensor.detach().to_kind(kind).copy().set_requires_grad(true))
}

fn largest(tensor: &Tensor) -> f64 {
    if tensor.numel() == 0 { 0.0 } else { tensor.abs().max().double_value(&[]) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_cut_into_chunks_gives_the_definition_and_autograd_s_gradients(
        tokens in 0usize..12, vocab in 1i64..40, dim in 1i64..7, seed in 0i64..1000,
        ignored in prop::sample::select(vec![0u32, 3, 10]), chunk in 1i64..200,
        smoothing in prop::sample::select(vec![0.0, 0.1, 0.7, 1.0]),
        z in prop::sample::select(vec![0.0, 1e-4, 0.3]), double: bool,
    ) {
        let (kind, bound) = if double { (Kind::Double, 1e-10) } else { (Kind::Float, 2e-5) };
        tch::manual_seed(seed);
        let hidden = Tensor::randn([tokens as i64, dim], (Kind::Double, Device::Cpu));
        let weight = Tensor::randn([vocab, dim], (Kind::Double, Device::Cpu));
        // Of ten tokens so many have no target: none, some, all.
        let targets: Vec<i64> = (0..tokens as u32)
            .map(|t| if t * 7 % 10 < ignored { IGNORED } else { i64::from(t) * 5 % vocab })
            .collect();
        let options = CrossEntropyOptions { label_smoothing: smoothing, z_loss: z };
        let (loss, nats) = defined(&hidden, &weight, &targets, &options);
        let targets = Tensor::from_slice(&targets);

        let ours = leaves([&hidden, &weight], kind);
        let both = in_chunks(&ours[0], &ours[1], &targets, &options, chunk).unwrap();
        prop_assert!((both.loss.double_value(&[]) - loss).abs() < bound * (1.0 + loss));
        prop_assert!((both.nats.double_value(&[]) - nats).abs() < bound * (1.0 + nats));

        let plain = leaves([&hidden, &weight], Kind::Double);
        let whole =
            linear_cross_entropy_with_reference(&plain[0], &plain[1], &targets, &options).unwrap();
        prop_assert!((whole.double_value(&[]) - loss).abs() < 1e-10 * (1.0 + loss));
        let expected = gradients(&plain, &whole, 3.0);
        for (ours, expected) in gradients(&ours, &both.loss, 3.0).iter().zip(&expected) {
            let difference = largest(&(ours - expected));
            prop_assert!(difference < bound * (1.0 + largest(expected)), "{difference}");
        }
    }

    #[test]
    fn the_cut_changes_no_gradient_by_more_than_the_order_of_its_sum(
        chunk in 1i64..4000, seed in 0i64..1000,
    ) {
        tch::manual_seed(seed);
        let hidden = Tensor::randn([40, 6], (Kind::Double, Device::Cpu));
        let weight = Tensor::randn([90, 6], (Kind::Double, Device::Cpu));
        let targets = Tensor::randint(90, [40], (Kind::Int64, Device::Cpu));
        let options = CrossEntropyOptions { label_smoothing: 0.2, z_loss: 0.01 };
        let [whole, cut] = [i64::MAX, chunk].map(|chunk| {
            let leaves = leaves([&hidden, &weight], Kind::Double);
            let both = in_chunks(&leaves[0], &leaves[1], &targets, &options, chunk).unwrap();
            gradients(&leaves, &both.loss, 3.0)
        });
        // A token's own gradient is computed by itself; only the weight's is a sum over chunks.
        prop_assert!(largest(&(&whole[0] - &cut[0])) < 1e-14);
        prop_assert!(largest(&(&whole[1] - &cut[1])) < 1e-13);
    }
}

/// The loss in libtorch's operators of the leaves' own kind alone, all logits at once.
fn plain_operators(
    leaves: &[Tensor; 2],
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Tensor {
    let logits = leaves[0].matmul(&leaves[1].transpose(0, 1));
    let smoothing = options.label_smoothing;
    let loss =
        logits.cross_entropy_loss::<Tensor>(targets, None, Reduction::Mean, IGNORED, smoothing);
    let log_sums = logits.logsumexp([-1i64].as_slice(), false);
    let squares = log_sums.masked_select(&targets.ne(IGNORED)).square().mean(logits.kind());
    loss + squares * options.z_loss
}

/// Numbers of mean 0 and variance 1, always the same: tests beside this one draw from libtorch's
/// generator at the same time.
fn noise(shape: [i64; 2]) -> Tensor {
    let mut state = 11u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let normal = |_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
    let numbers: Vec<f64> = (0..shape[0] * shape[1]).map(normal).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// What a computation is off by from float64: the loss, and both gradients relative to their norms.
fn errors(loss: &Tensor, ours: &[Tensor; 2], exact: f64, expected: &[Tensor; 2]) -> [f64; 3] {
    let relative = |i: usize| {
        let difference: Tensor = &ours[i] - &expected[i];
        (difference.norm() / expected[i].norm()).double_value(&[])
    };
    [(loss.double_value(&[]) - exact).abs(), relative(0), relative(1)]
}

#[test]
fn bfloat16_is_as_close_to_float64_as_plain_operators_in_bfloat16() {
    let (tokens, dim, vocab) = (512, 64, 1000);
    let half = |shape: [i64; 2], scale: f64| (noise(shape) * scale).to_kind(Kind::BFloat16);
    // Logits of a standard deviation of 2.
    let (hidden, weight) = (half([tokens, dim], 1.0), half([vocab, dim], 0.25).flip([1]));
    let targets: Vec<i64> = (0..tokens).map(|t| t * 617 % vocab).collect();
    let targets = Tensor::from_slice(&targets);
    let _ = targets.narrow(0, 0, 100).fill_(IGNORED);
    let all_terms = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 1e-3 };
    // Each of nine chunks rounds its share of the weight's gradient before it is added in float32.
    let (one, nine) = ((i64::MAX, 1.1), (60 * vocab, 1.2));
    for options in [CrossEntropyOptions::default(), all_terms] {
        for ((chunk, slack), factor) in [(one, 1.0), (one, 3.0), (nine, 1.0), (nine, 3.0)] {
            let exact = leaves([&hidden, &weight], Kind::Double);
            let loss = plain_operators(&exact, &targets, &options);
            let expected = gradients(&exact, &loss, factor);
            let loss = loss.double_value(&[]);

            let ours = leaves([&hidden, &weight], Kind::BFloat16);
            let both = in_chunks(&ours[0], &ours[1], &targets, &options, chunk).unwrap();
            assert_eq!(both.loss.kind(), Kind::Float);
            let ours = errors(&both.loss, &gradients(&ours, &both.loss, factor), loss, &expected);
            // A bfloat16 is off by up to 2⁻⁹ of itself. Logits are, and their errors average out
            // in the loss; gradients are rounded on their way in and out.
            assert!(ours[0] < 5e-4 && ours[1] < 4e-3 && ours[2] < 4e-3, "{ours:?}");

            let theirs = leaves([&hidden, &weight], Kind::BFloat16);
            let in_half = plain_operators(&theirs, &targets, &options);
            let theirs = errors(&in_half, &gradients(&theirs, &in_half, factor), loss, &expected);
            assert!(ours[0] < theirs[0] / 4.0, "loss: {ours:?} against {theirs:?}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert!(*ours <= theirs * slack, "{chunk}, {factor}: {ours} against {theirs}");
            }
        }
    }
}
