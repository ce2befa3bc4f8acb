//! Rows of several documents against each document by itself.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_loss::{HeadExecution, MultiTokenLoss, TextRows};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn model(heads: usize, kind: &str, number: Kind, seed: i64) -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: heads + 2,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 64,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new(kind, heads);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, number, Device::Cpu, seed).unwrap()
}

fn take_gradients(model: &MultiTokenModel) -> Vec<Tensor> {
    let take = |tensor: &Tensor| {
        let mut gradient = tensor.grad();
        if !gradient.defined() {
            return tensor.detach().zeros_like();
        }
        let copy = gradient.copy();
        let _ = gradient.zero_();
        copy
    };
    model.parameters().iter().map(|parameter| take(&parameter.tensor)).collect()
}

/// A row of `documents` tokens of text each, and so many of padding.
fn row(documents: &[i64], padding: i64) -> TextRows {
    let length = documents.iter().sum::<i64>() + padding;
    let tokens = Tensor::randint(40, [1, length], (Kind::Int64, Device::Cpu));
    let mut numbers = Vec::new();
    for (number, &length) in (0i64..).zip(documents) {
        numbers.extend(std::iter::repeat_n(number, length as usize));
    }
    numbers.extend(std::iter::repeat_n(TextRows::PADDING, padding as usize));
    TextRows { tokens, documents: Some(Tensor::from_slice(&numbers).view([1, -1])) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn documents_in_a_row_give_the_losses_and_gradients_of_each_alone(
        lengths in prop::collection::vec(1i64..9, 1..4), heads in 1usize..4, padding in 3i64..6,
        kind in prop::sample::select(vec!["block", "medusa", "informed"]), seed in 0i64..1000,
        recompute: bool, grouped: bool, double: bool,
    ) {
        let (number, bound) = if double { (Kind::Double, 1e-10) } else { (Kind::Float, 1e-5) };
        let model = model(heads, kind, number, seed);
        let rows = row(&lengths, padding);
        let loss = MultiTokenLoss::new(heads).with_recompute(recompute);
        let loss = match grouped && kind == "block" {
            true => loss.with_execution(HeadExecution::Grouped),
            false => loss,
        };
        let targets = loss.targets(&rows).unwrap();
        let losses = loss.backward(&model, &rows).unwrap().to_vec().unwrap();
        let together = take_gradients(&model);
        let evaluated = loss.evaluate(&model, &rows).unwrap().to_vec().unwrap();

        // Each document by itself: as long a row as it takes, of which nothing else counts.
        let positions = (lengths.iter().sum::<i64>() + padding - heads as i64) as f64;
        let mut sums = vec![0.0; heads];
        let mut counts = vec![0.0; heads];
        let mut apart: Vec<Tensor> = together.iter().map(Tensor::zeros_like).collect();
        let mut start = 0;
        for &length in &lengths {
            let part = move |tensor: &Tensor| tensor.narrow(1, start, length);
            start += length;
            let integers = (Kind::Int64, Device::Cpu);
            let fill = |number: i64| Tensor::full([1, heads as i64], number, integers);
            let tokens = Tensor::cat(&[part(&rows.tokens), fill(0)], 1);
            let documents = part(rows.documents.as_ref().unwrap());
            let documents = Some(Tensor::cat(&[documents, fill(TextRows::PADDING)], 1));
            let alone = TextRows { tokens, documents };
            let share = length as f64 / positions;
            let scaled = loss.clone().with_factor(share);
            let of_alone = scaled.backward(&model, &alone).unwrap().to_vec().unwrap();
            for (sum, gradient) in apart.iter_mut().zip(take_gradients(&model)) {
                *sum = &*sum + gradient;
            }
            for (head, count) in scaled.targets(&alone).unwrap().into_iter().enumerate() {
                prop_assert_eq!(count, (length - 1 - head as i64).max(0) as f64);
                sums[head] += of_alone[head] * count;
                counts[head] += count;
            }
        }
        prop_assert_eq!(&targets, &counts);
        for head in 0..heads {
            let mean = sums[head] / counts[head].max(1.0);
            prop_assert!((losses[head] - mean).abs() < 3e-6, "{} and {mean}", losses[head]);
            prop_assert!((evaluated[head] - mean).abs() < 3e-6);
        }
        for (a, b) in together.iter().zip(&apart) {
            let difference = (a - b).abs().max().double_value(&[]);
            prop_assert!(difference < bound, "gradients differ by {difference}");
        }
        let at_once = loss.all_at_once(&model, &rows).unwrap();
        at_once.backward();
        for (a, b) in together.iter().zip(take_gradients(&model)) {
            prop_assert!((a - b).abs().max().double_value(&[]) < bound);
        }
    }

    #[test]
    fn parts_of_a_batch_add_up_however_their_targets_are_divided(
        cuts in prop::collection::vec((1i64..12, 0i64..4), 4), seed in 0i64..1000,
    ) {
        const COLUMNS: i64 = 18;
        let model = model(2, "block", Kind::Double, seed);
        let rows: Vec<TextRows> = cuts
            .iter()
            .map(|&(first, padding)| row(&[first, COLUMNS - first - padding], padding))
            .collect();
        let cat = |of: &dyn Fn(&TextRows) -> Tensor| {
            Tensor::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let documents = cat(&|rows| rows.documents.as_ref().unwrap().shallow_clone());
        let whole = TextRows {
            tokens: cat(&|rows| rows.tokens.shallow_clone()),
            documents: Some(documents),
        };
        MultiTokenLoss::new(2).backward(&model, &whole).unwrap();
        let expected = take_gradients(&model);
        for parts in [2, 4] {
            let loss = MultiTokenLoss::new(2).with_factor(1.0 / parts as f64);
            for part in whole.chunks(parts).unwrap() {
                loss.backward(&model, &part).unwrap();
            }
            for (a, b) in take_gradients(&model).iter().zip(&expected) {
                prop_assert!((a - b).abs().max().double_value(&[]) < 1e-10);
            }
        }
    }
}

#[test]
fn documents_of_another_shape_are_refused() {
    let model = model(2, "block", Kind::Float, 1);
    let mut rows = row(&[4, 4], 0);
    rows.documents = Some(Tensor::zeros([1, 7], (Kind::Int64, Device::Cpu)));
    let error = MultiTokenLoss::new(2).backward(&model, &rows).unwrap_err().to_string();
    assert!(error.contains("[1, 8]") && error.contains("[1, 7]"), "{error}");
}
