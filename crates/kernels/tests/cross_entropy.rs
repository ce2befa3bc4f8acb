//! Options of the fused cross-entropy from outside: values by hand, gradients by finite
//! differences, and what is refused.

use foretoken_kernels::{
    CrossEntropyOptions, IGNORED, linear_cross_entropy, linear_cross_entropy_with,
    linear_distillation,
};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn matrix(tensor: &Tensor) -> Array2<f64> {
    let (rows, columns) = tensor.size2().unwrap();
    let values = Vec::try_from(tensor.detach().flatten(0, -1)).unwrap();
    Array2::from_shape_vec((rows as usize, columns as usize), values).unwrap()
}

#[test]
fn every_term_is_its_formula() {
    tch::manual_seed(1);
    let (hidden, weight) = (Tensor::randn([5, 4], DOUBLE), Tensor::randn([7, 4], DOUBLE));
    let targets = [6i64, IGNORED, 0, 3, 3];
    let logits = matrix(&hidden).dot(&matrix(&weight).t());
    let over_counted = |f: &dyn Fn(usize, usize) -> f64| {
        let counted = targets.iter().enumerate().filter(|(_, target)| **target != IGNORED);
        counted.map(|(row, &target)| f(row, target as usize)).sum::<f64>() / 4.0
    };
    let log_sum = |row: usize| logits.row(row).mapv(f64::exp).sum().ln();
    let nats = over_counted(&|row, target| log_sum(row) - logits[[row, target]]);
    let even = over_counted(&|row, _| log_sum(row) - logits.row(row).mean().unwrap());
    let squares = over_counted(&|row, _| log_sum(row) * log_sum(row));
    for (s, z) in [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.25, 0.5), (1.0, 0.0)] {
        let options = CrossEntropyOptions { label_smoothing: s, z_loss: z };
        let targets = Tensor::from_slice(&targets);
        let both = linear_cross_entropy_with(&hidden, &weight, &targets, &options).unwrap();
        let expected = (1.0 - s) * nats + s * even + z * squares;
        assert!((both.loss.double_value(&[]) - expected).abs() < 1e-12, "{options:?}");
        assert!((both.nats.double_value(&[]) - nats).abs() < 1e-12, "{options:?}");
        assert!(!both.nats.requires_grad());
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    tch::manual_seed(2);
    let (hidden, weight) = (Tensor::randn([6, 5], DOUBLE), Tensor::randn([9, 5], DOUBLE));
    let targets = Tensor::from_slice(&[0i64, 8, IGNORED, 3, 3, 1]);
    let options = CrossEntropyOptions { label_smoothing: 0.3, z_loss: 0.2 };
    let loss = |hidden: &Tensor, weight: &Tensor| {
        linear_cross_entropy_with(hidden, weight, &targets, &options).unwrap().loss
    };
    let [dhidden, dweight] = {
        let leaves = [&hidden, &weight].map(|tensor| tensor.copy().set_requires_grad(true));
        loss(&leaves[0], &leaves[1]).backward();
        leaves.map(|leaf| leaf.grad())
    };
    let step = 1e-5;
    let slope = |hidden_by: &Tensor, weight_by: &Tensor| {
        let at = |by: f64| loss(&(&hidden + hidden_by * by), &(&weight + weight_by * by));
        (at(step) - at(-step)).double_value(&[]) / (2.0 * step)
    };
    for element in 0..hidden.numel() as i64 {
        let one = Tensor::zeros_like(&hidden);
        let _ = one.view([-1]).get(element).fill_(1.0);
        let exact = dhidden.view([-1]).double_value(&[element]);
        assert!((slope(&one, &weight.zeros_like()) - exact).abs() < 1e-8, "hidden {element}");
    }
    for element in 0..weight.numel() as i64 {
        let one = Tensor::zeros_like(&weight);
        let _ = one.view([-1]).get(element).fill_(1.0);
        let exact = dweight.view([-1]).double_value(&[element]);
        assert!((slope(&hidden.zeros_like(), &one) - exact).abs() < 1e-8, "weight {element}");
    }
}

#[test]
fn where_all_targets_are_ignored_there_is_nothing_to_learn() {
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let [hidden, weight] = [[3i64, 4], [8, 4]]
            .map(|shape| Tensor::randn(shape, FLOAT).to_kind(kind).set_requires_grad(true));
        let targets = Tensor::from_slice(&[IGNORED; 3]);
        let options = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 0.1 };
        let both = linear_cross_entropy_with(&hidden, &weight, &targets, &options).unwrap();
        both.loss.backward();
        assert_eq!((both.loss.double_value(&[]), both.nats.double_value(&[])), (0.0, 0.0));
        assert_eq!(hidden.grad().abs().max().double_value(&[]), 0.0);
        assert_eq!(weight.grad().abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn large_logits_stay_finite() {
    // e^500 is no float; the fused rows subtract the peak first.
    let hidden = Tensor::from_slice(&[500f32, -500.0]).view([2, 1]).set_requires_grad(true);
    let weight = Tensor::from_slice(&[1f32, -1.0, 0.5]).view([3, 1]);
    let options = CrossEntropyOptions { label_smoothing: 0.5, z_loss: 1e-4 };
    let targets = Tensor::from_slice(&[1i64, 1]);
    let both = linear_cross_entropy_with(&hidden, &weight, &targets, &options).unwrap();
    // Rows (500, −500, 250) and (−500, 500, −250): L = 500 in both.
    let expected =
        (0.5 * 1000.0 + 0.5 * (1250.0 / 3.0) + 25.0) + (0.5 * 0.0 + 0.5 * (1750.0 / 3.0) + 25.0);
    assert!((both.loss.double_value(&[]) - expected / 2.0).abs() < 1e-3);
    both.loss.backward();
    assert!(bool::try_from(hidden.grad().isfinite().all()).unwrap());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (hidden, weight) = (Tensor::zeros([2, 4], FLOAT), Tensor::zeros([8, 4], FLOAT));
    let targets = Tensor::from_slice(&[1i64, 7]);
    let message = |hidden: &Tensor, weight: &Tensor, targets: &Tensor| {
        linear_cross_entropy(hidden, weight, targets).unwrap_err().to_string()
    };
    let wide = Tensor::zeros([8, 5], FLOAT);
    assert!(message(&hidden, &wide, &targets).contains("expected [vocab, 4], found [8, 5]"));
    let empty = Tensor::zeros([0, 4], FLOAT);
    assert!(message(&hidden, &empty, &targets).contains("found [0, 4]"));
    let few = targets.narrow(0, 0, 1);
    assert!(message(&hidden, &weight, &few).contains("expected [2] on Cpu, found [1] on Cpu"));
    let narrow = targets.to_kind(Kind::Int);
    assert!(message(&hidden, &weight, &narrow).contains("Int64"));
    let outside = Tensor::from_slice(&[-1i64, 8]);
    assert!(message(&hidden, &weight, &outside).contains("expected 0 to 7, found -1 to 8"));
    let teacher = linear_distillation(&hidden, &weight, &Tensor::zeros([2, 3], FLOAT));
    assert!(teacher.unwrap_err().to_string().contains("teacher"));
}

#[test]
fn options_outside_their_range_are_refused_by_name() {
    let (hidden, weight) = (Tensor::zeros([1, 4], FLOAT), Tensor::zeros([8, 4], FLOAT));
    let message = |label_smoothing: f64, z_loss: f64| {
        let options = CrossEntropyOptions { label_smoothing, z_loss };
        let targets = Tensor::from_slice(&[1i64]);
        linear_cross_entropy_with(&hidden, &weight, &targets, &options).unwrap_err().to_string()
    };
    for smoothing in [-0.1, 1.1, f64::NAN] {
        assert!(message(smoothing, 0.0).starts_with(&format!("label_smoothing is {smoothing}")));
    }
    for z in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(message(0.0, z).starts_with(&format!("z_loss is {z}: give a finite number")));
    }
}
