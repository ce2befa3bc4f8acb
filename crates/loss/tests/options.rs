//! The objective's options: weights, leaps, cross-entropy terms, the factor, skipped heads.

use foretoken_heads::{
    Head, HeadContext, HeadsConfig, LinearHead, ModelConfig, MultiTokenModel, Registry, Tap,
};
use foretoken_kernels::KvCache;
use foretoken_loss::{CrossEntropyOptions, Curriculum, HeadWeights, MultiTokenLoss};
use foretoken_trunk::{Architecture, Parameter};
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};

fn config(kind: &str, heads: usize) -> ModelConfig {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: heads + 2,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new(kind, heads);
    ModelConfig { architecture, heads, end_of_text: Vec::new() }
}

fn model(heads: usize, seed: i64) -> MultiTokenModel {
    MultiTokenModel::new(&config("block", heads), Kind::Double, Device::Cpu, seed).unwrap()
}

fn tokens(rows: i64, columns: usize) -> Tensor {
    Tensor::randint(40, [rows, columns as i64], (Kind::Int64, Device::Cpu))
}

/// Takes the gradients out of a model: zeros where none arrived.
fn take_gradients(model: &MultiTokenModel) -> Vec<Tensor> {
    let take = |parameter: &Parameter| {
        let mut gradient = parameter.tensor.grad();
        if !gradient.defined() {
            return parameter.tensor.detach().zeros_like();
        }
        let copy = gradient.copy();
        let _ = gradient.zero_();
        copy
    };
    model.parameters().iter().map(take).collect()
}

fn largest_relative_difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    let relative = |(a, b): (&Tensor, &Tensor)| {
        (a - b).abs().max().double_value(&[]) / (1e-3 + b.abs().max().double_value(&[]))
    };
    a.iter().zip(b).map(relative).fold(0.0, f64::max)
}

/// Offsets that begin with 0 and go on by the steps given.
fn rising(steps: &[usize]) -> Vec<usize> {
    let mut at = 0;
    std::iter::once(0)
        .chain(steps.iter().map(|step| {
            at += step;
            at
        }))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn head_by_head_is_all_at_once_whatever_is_set(
        weights in prop::collection::vec(
            prop_oneof![2 => 0.05f64..2.0, 1 => Just(0.0)], 1..5
        ),
        leaps in prop::collection::vec(1usize..4, 4),
        smoothing in prop_oneof![Just(0.0), 0.0f64..=1.0], z in prop_oneof![Just(0.0), 0.0f64..0.5],
        factor in 0.1f64..3.0, rows in 1i64..4, seq in 1usize..10, seed in 0i64..1000,
    ) {
        let heads = weights.len();
        let model = model(heads, seed);
        let loss = MultiTokenLoss::weighted(weights.clone())
            .with_offsets(rising(&leaps[..heads - 1]))
            .with_cross_entropy(CrossEntropyOptions { label_smoothing: smoothing, z_loss: z })
            .with_factor(factor);
        let tokens = tokens(rows, seq + loss.reach());
        let reported = loss.backward(&model, &tokens).unwrap();
        let one_by_one = take_gradients(&model);
        let total = loss.all_at_once(&model, &tokens).unwrap();
        if total.requires_grad() {
            total.backward();
        }
        let difference = largest_relative_difference(&one_by_one, &take_gradients(&model));
        prop_assert!(difference < 1e-10, "gradients differ by {difference}");

        // What is reported: plain means of the heads that learn, whatever was set.
        let evaluated = loss.evaluate(&model, &tokens).unwrap();
        let all = evaluated.to_vec().unwrap();
        prop_assert!(evaluated.by_head().unwrap().iter().all(Option::is_some));
        let plain = reported.to_vec().unwrap();
        for (head, reported) in reported.by_head().unwrap().into_iter().enumerate() {
            prop_assert_eq!(reported.is_none(), weights[head] == 0.0);
            prop_assert_eq!(reported.is_none(), plain[head].is_nan());
            prop_assert!(reported.is_none_or(|loss| (loss - all[head]).abs() < 1e-12));
        }
    }

    #[test]
    fn gradients_of_parts_with_their_factors_add_up_to_the_whole(
        parts in 1i64..5, rows in 1i64..3, seed in 0i64..1000,
    ) {
        let model = model(3, seed);
        let loss = MultiTokenLoss::weighted(HeadWeights::Lambda(0.3).for_heads(3));
        let tokens = tokens(parts * rows, 6 + 3);
        loss.backward(&model, &tokens).unwrap();
        let whole = take_gradients(&model);
        let part = loss.clone().with_factor(1.0 / parts as f64);
        for tokens in tokens.chunk(parts, 0) {
            part.backward(&model, &tokens).unwrap();
        }
        let difference = largest_relative_difference(&take_gradients(&model), &whole);
        prop_assert!(difference < 1e-10, "gradients differ by {difference}");
    }
}

#[test]
fn a_leap_head_is_scored_on_the_token_at_its_offset() {
    let model = model(3, 5);
    let offsets = [0, 2, 5];
    let loss = MultiTokenLoss::new(3).with_offsets(offsets.to_vec());
    assert_eq!(loss.reach(), 6);
    let tokens = tokens(2, 7 + 6);
    let losses = loss.evaluate(&model, &tokens).unwrap().to_vec().unwrap();
    let hidden = model.hidden(&tokens.narrow(1, 0, 7)).unwrap();
    for ((head, loss), offset) in losses.iter().enumerate().zip(offsets) {
        let probabilities = model.logits(head, &hidden).unwrap().log_softmax(-1, Kind::Double);
        let mut expected = 0.0;
        for row in 0..2 {
            for t in 0..7 {
                let target = tokens.int64_value(&[row, t + 1 + offset as i64]);
                expected -= probabilities.double_value(&[row, t, target]) / 14.0;
            }
        }
        assert!((loss - expected).abs() < 1e-12, "head {head}: {loss} against {expected}");
    }
}

/// A linear head that counts how often it is asked.
#[derive(Debug)]
struct Counted(LinearHead);

static FORWARDS: AtomicUsize = AtomicUsize::new(0);

impl Head for Counted {
    fn kind(&self) -> &'static str {
        "counted"
    }

    fn tap(&self) -> Tap {
        Tap::TrunkOutput
    }

    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> foretoken_heads::Result<Tensor> {
        FORWARDS.fetch_add(1, Ordering::Relaxed);
        self.0.forward(hidden, context, cache)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        self.0.parameters(prefix)
    }
}

#[test]
fn heads_that_a_curriculum_leaves_out_are_not_run() {
    let registry = Registry::stock()
        .with("counted", 0, |sizes, init| Ok(Box::new(Counted(LinearHead::new(sizes, init)?))));
    let config = config("counted", 4);
    let model =
        MultiTokenModel::with_registry(&config, &registry, Kind::Double, Device::Cpu, 0).unwrap();
    let all = MultiTokenLoss::new(4);
    let tokens = tokens(2, 6 + all.reach());
    let forwards = || FORWARDS.swap(0, Ordering::Relaxed);
    for (step, beyond_the_first) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
        let active = Curriculum::Forward.active_heads(4, step, 4);
        let losses = all.active(active).backward(&model, &tokens).unwrap();
        assert_eq!(forwards(), beyond_the_first);
        let learned = losses.by_head().unwrap().iter().flatten().count();
        assert_eq!(learned, 1 + beyond_the_first);
        let arrived = model.head_parameters().iter().filter(|p| p.tensor.grad().defined()).count();
        assert_eq!(arrived, beyond_the_first);
    }
    // An evaluation looks at all of them.
    let losses = all.active(1).evaluate(&model, &tokens).unwrap();
    assert_eq!(forwards(), 3);
    assert!(losses.to_vec().unwrap().iter().all(|loss| loss.is_finite()));
}

#[test]
fn an_objective_that_cannot_be_is_refused_before_anything_runs() {
    let refused = |loss: MultiTokenLoss| loss.check(3).unwrap_err().to_string();
    let three = || MultiTokenLoss::new(3);
    assert!(refused(MultiTokenLoss::new(2)).contains("2 weights, but the model has 3 heads"));
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let loss = MultiTokenLoss::weighted(vec![1.0, bad, 1.0]);
        assert!(refused(loss).contains(&format!("the weight of head 1 is {bad}")));
        if !bad.is_finite() {
            assert!(refused(three().with_factor(bad)).contains("factor"));
        }
    }
    for offsets in [vec![], vec![0, 1], vec![1, 2, 3], vec![0, 1, 1], vec![0, 2, 1]] {
        let message = refused(three().with_offsets(offsets.clone()));
        assert!(message.contains(&format!("{offsets:?}")), "{message}");
    }
    let options = CrossEntropyOptions { label_smoothing: 2.0, z_loss: 0.0 };
    assert!(refused(three().with_cross_entropy(options)).contains("label_smoothing is 2"));

    let model = model(3, 0);
    let far = three().with_offsets(vec![0, 1, usize::MAX]);
    assert!(far.backward(&model, &tokens(1, 9)).unwrap_err().to_string().contains("too short"));
    let leap = three().with_offsets(vec![0, 1, 7]);
    let error = leap.backward(&model, &tokens(1, 8)).unwrap_err().to_string();
    assert!(error.contains("8 columns") && error.contains("at least 9"), "{error}");
    assert!(leap.backward(&model, &tokens(1, 9)).is_ok());
}

#[test]
fn an_objective_without_any_head_leaves_the_model_alone() {
    let model = model(2, 0);
    let none = MultiTokenLoss::new(2).active(0);
    let tokens = tokens(1, 5 + none.reach());
    let losses = none.backward(&model, &tokens).unwrap();
    assert_eq!(losses.by_head().unwrap(), [None, None]);
    assert!(model.parameters().iter().all(|parameter| !parameter.tensor.grad().defined()));
    assert_eq!(none.all_at_once(&model, &tokens).unwrap().double_value(&[]), 0.0);
}
