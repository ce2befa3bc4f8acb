//! The objective against its definition: one head at a time and all at once, values and gradients.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_loss::{HeadExecution, MultiTokenLoss};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

fn model(layers: usize, heads: usize, kv_heads: usize, kind: Kind, seed: i64) -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers,
        attention_heads: 4,
        kv_heads,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", heads);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, kind, Device::Cpu, seed).unwrap()
}

fn tokens(rows: i64, columns: i64) -> Tensor {
    Tensor::randint(40, [rows, columns], (Kind::Int64, Device::Cpu))
}

fn take_gradients(model: &MultiTokenModel) -> Vec<Tensor> {
    let parameters = model.parameters();
    parameters
        .iter()
        .map(|p| {
            let mut gradient = p.tensor.grad();
            let copy = gradient.copy();
            let _ = gradient.zero_();
            copy
        })
        .collect()
}

fn largest_relative_difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| {
            let wide = b.to_kind(Kind::Double);
            let difference = (a.to_kind(Kind::Double) - &wide).abs().max().double_value(&[]);
            difference / (1e-3 + wide.abs().max().double_value(&[]))
        })
        .fold(0.0, f64::max)
}

#[test]
fn blocks_computed_again_give_the_same_gradients_to_the_bit() {
    for kind in [Kind::Float, Kind::Double] {
        let model = model(6, 2, 2, kind, 4);
        let tokens = tokens(3, 14);
        let loss = MultiTokenLoss::new(2);
        let kept =
            (loss.backward(&model, &tokens).unwrap().to_vec().unwrap(), take_gradients(&model));
        let loss = loss.with_recompute(true);
        let again =
            (loss.backward(&model, &tokens).unwrap().to_vec().unwrap(), take_gradients(&model));
        assert_eq!(kept, again);
        assert!(kept.1.iter().all(|gradient| gradient.abs().max().double_value(&[]) > 0.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn heads_backward_one_by_one_equals_all_at_once(
        extra in 1usize..4, heads in 1usize..5, kv in prop::sample::select(vec![1usize, 2, 4]),
        rows in 1i64..4, seq in 1i64..12, seed in 0i64..1000, double: bool,
    ) {
        let (kind, bound) = if double { (Kind::Double, 1e-10) } else { (Kind::Float, 2e-4) };
        let model = model(heads + extra, heads, kv, kind, seed);
        let tokens = tokens(rows, seq + heads as i64);
        let weights: Vec<f64> = (0..heads).map(|i| 1.0 - 0.2 * i as f64).collect();
        let loss = MultiTokenLoss::weighted(weights.clone());
        let losses = loss.backward(&model, &tokens).unwrap().to_vec().unwrap();
        let one_by_one = take_gradients(&model);
        let total = loss.all_at_once(&model, &tokens).unwrap();
        total.backward();
        let at_once = take_gradients(&model);
        let sum: f64 = losses.iter().zip(&weights).map(|(l, w)| l * w).sum();
        prop_assert!((sum - total.double_value(&[])).abs() < bound * 10.0);
        let difference = largest_relative_difference(&one_by_one, &at_once);
        prop_assert!(difference < bound, "gradients differ by {difference}");
        let grouped = loss.clone().with_execution(HeadExecution::Grouped);
        let in_one_pass = grouped.backward(&model, &tokens).unwrap().to_vec().unwrap();
        let difference = largest_relative_difference(&take_gradients(&model), &at_once);
        prop_assert!(difference < bound, "gradients in one pass differ by {difference}");
        prop_assert!(losses.iter().zip(&in_one_pass).all(|(a, b)| (a - b).abs() < bound * 10.0));
        let evaluated = loss.evaluate(&model, &tokens).unwrap().to_vec().unwrap();
        prop_assert!(losses.iter().zip(&evaluated).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn heads_that_are_skipped_get_no_gradient_in_one_pass_either() {
    let model = model(5, 3, 2, Kind::Double, 2);
    let tokens = tokens(2, 7 + 3);
    let loss = MultiTokenLoss::weighted(vec![1.0, 0.0, 0.5]);
    for execution in [HeadExecution::Sequential, HeadExecution::Grouped] {
        let losses = loss.clone().with_execution(execution).backward(&model, &tokens).unwrap();
        let losses = losses.to_vec().unwrap();
        assert!(losses[0].is_finite() && losses[1].is_nan() && losses[2].is_finite());
        let parameters = model.head_parameters();
        let learned = |head: &str| {
            let of_head = parameters.iter().filter(|p| p.parts[0].name.starts_with(head));
            let mut gradients = of_head.map(|p| p.tensor.grad());
            gradients.any(|g| g.defined() && g.abs().max().double_value(&[]) > 0.0)
        };
        assert!(!learned("heads.1.") && learned("heads.2."), "{execution:?}");
    }
}

#[test]
fn heads_that_are_not_alike_cannot_run_as_one() {
    let architecture =
        Architecture { vocab: 40, dim: 24, layers: 4, ffn: 40, ..Architecture::default() };
    let heads = HeadsConfig::new("medusa", 2);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 1).unwrap();
    let loss = MultiTokenLoss::new(2).with_execution(HeadExecution::Grouped);
    let error = loss.backward(&model, &tokens(1, 6)).unwrap_err().to_string();
    assert!(error.contains("head 1") && error.contains("medusa"), "{error}");
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let model = model(4, 2, 2, Kind::Double, 7);
    let tokens = tokens(2, 8 + 2);
    let loss = MultiTokenLoss::new(2);
    loss.backward(&model, &tokens).unwrap();
    let objective =
        || loss.evaluate(&model, &tokens).unwrap().to_vec().unwrap().iter().sum::<f64>();
    for parameter in model.parameters() {
        let gradient = parameter.tensor.grad().view([-1]);
        let flat = parameter.tensor.detach().view([-1]);
        for element in [0, flat.numel() as i64 / 2, flat.numel() as i64 - 1] {
            let step = 1e-5;
            let move_by = |by: f64| {
                no_grad(|| drop(flat.get(element).f_add_scalar_(by).unwrap()));
            };
            move_by(step);
            let above = objective();
            move_by(-2.0 * step);
            let below = objective();
            move_by(step);
            let numeric = (above - below) / (2.0 * step);
            let exact = gradient.double_value(&[element]);
            let error = (numeric - exact).abs() / (1e-2 + exact.abs());
            assert!(error < 1e-5, "{}: {numeric} against {exact}", parameter.parts[0].name);
        }
    }
}

#[test]
fn head_i_is_scored_on_the_token_at_offset_i_plus_one() {
    let model = model(5, 3, 4, Kind::Double, 3);
    let tokens = tokens(2, 9 + 3);
    let losses = MultiTokenLoss::new(3).evaluate(&model, &tokens).unwrap().to_vec().unwrap();
    let hidden = model.hidden(&tokens.narrow(1, 0, 9)).unwrap();
    for (head, loss) in losses.iter().enumerate() {
        let probabilities = model.logits(head, &hidden).unwrap().log_softmax(-1, Kind::Double);
        let mut expected = 0.0;
        for row in 0..2 {
            for t in 0..9 {
                let target = tokens.int64_value(&[row, t + head as i64 + 1]);
                expected -= probabilities.double_value(&[row, t, target]) / 18.0;
            }
        }
        assert!((loss - expected).abs() < 1e-12, "head {head}: {loss} against {expected}");
    }
}

#[test]
fn a_batch_too_short_and_a_wrong_number_of_weights_are_refused() {
    let model = model(4, 3, 4, Kind::Float, 0);
    let short = MultiTokenLoss::new(3).backward(&model, &tokens(1, 3)).unwrap_err();
    assert!(short.to_string().contains("at least 4"), "{short}");
    let heads = MultiTokenLoss::new(2).backward(&model, &tokens(1, 9)).unwrap_err();
    assert!(heads.to_string().contains("2 weights"), "{heads}");
}
