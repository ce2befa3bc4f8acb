//! New heads on a frozen model: targets, gradients, and that nothing else learns.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel, Registry};
use foretoken_loss::{Error, FrozenTrunkLoss, HeadTargets};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

fn model(kind: &str, heads: usize, seed: i64) -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: 3,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    let stock = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads: stock, end_of_text: Vec::new() };
    let model = MultiTokenModel::new(&config, Kind::Double, Device::Cpu, seed).unwrap();
    let heads = HeadsConfig::new(kind, heads);
    let model = model.grow(&heads, &Registry::stock(), seed).unwrap();
    for parameter in model.head_parameters() {
        no_grad(|| {
            let noise = parameter.tensor.randn_like() * 0.1;
            _ = parameter.tensor.shallow_clone().g_add_(&noise);
        });
    }
    model.freeze_stock(true);
    model
}

fn tokens(rows: i64, columns: i64) -> Tensor {
    Tensor::randint(40, [rows, columns], (Kind::Int64, Device::Cpu))
}

/// The loss of a head from its definition, position by position.
fn defined(
    model: &MultiTokenModel,
    tokens: &Tensor,
    seq: i64,
    head: usize,
    targets: HeadTargets,
) -> Tensor {
    let kept: Vec<i64> = match model.draft_vocabulary() {
        Some(vocabulary) => vocabulary.tokens().iter().map(|&token| i64::from(token)).collect(),
        None => (0..40).collect(),
    };
    let some = |logits: Tensor| logits.index_select(-1, &Tensor::from_slice(&kept));
    let inputs = tokens.narrow(1, 0, tokens.size()[1] - 1);
    let hidden = model.hidden(&inputs).unwrap();
    // Position t is told of token t + head, by what the first blocks make of the text up to it.
    let told = model.told(&inputs).unwrap().map(|told| told.narrow(1, head as i64, seq));
    let state = model.head_hidden_told(head, &hidden.narrow(1, 0, seq), told.as_ref()).unwrap();
    let student = some(state.matmul(&model.unembedding().tr()));
    let student = student.log_softmax(-1, Kind::Double);
    match targets {
        HeadTargets::Model => {
            let teacher = some(model.logits(0, &hidden).unwrap()).narrow(1, head as i64, seq);
            let teacher = teacher.softmax(-1, Kind::Double).detach();
            -(teacher * student).sum(Kind::Double) / (tokens.size()[0] * seq) as f64
        }
        HeadTargets::Text => {
            let mut sum = Tensor::zeros([0i64; 0], (Kind::Double, Device::Cpu));
            let mut count = 0.0;
            for row in 0..tokens.size()[0] {
                for t in 0..seq {
                    let target = tokens.int64_value(&[row, t + head as i64 + 1]);
                    if let Some(at) = kept.iter().position(|&token| token == target) {
                        sum -= student.get(row).get(t).get(at as i64);
                        count += 1.0;
                    }
                }
            }
            sum / f64::max(count, 1.0)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn losses_and_gradients_are_those_of_the_definition(
        kind in prop::sample::select(vec!["block", "informed", "medusa", "linear"]),
        heads in 2usize..5, rows in 1i64..3, seq in 1i64..8, seed in 0i64..1000,
        soft: bool, few: bool,
    ) {
        let targets = if soft { HeadTargets::Model } else { HeadTargets::Text };
        let mut model = model(kind, heads, seed);
        if few {
            model.set_draft_vocabulary(Some((0..40).step_by(3).collect())).unwrap();
        }
        let tokens = tokens(rows, seq + heads as i64);
        let states = FrozenTrunkLoss::states(&model, &tokens).unwrap();
        let loss = FrozenTrunkLoss::new(targets);
        let evaluated = loss.evaluate(&model, &tokens, &states).unwrap().to_vec().unwrap();
        let losses = loss.backward(&model, &tokens, &states).unwrap().to_vec().unwrap();
        prop_assert_eq!(losses.len(), heads - 1);
        let parameters = model.head_parameters();
        let gradients: Vec<Tensor> = parameters.iter().map(|p| p.tensor.grad().copy()).collect();
        for parameter in &parameters {
            _ = parameter.tensor.grad().zero_();
        }
        let mut total = Tensor::zeros([0i64; 0], (Kind::Double, Device::Cpu));
        for head in 1..heads {
            let expected = defined(&model, &tokens, seq, head, targets);
            let value = expected.double_value(&[]);
            // The losses are reported in float32.
            prop_assert!((losses[head - 1] - value).abs() < 1e-6 * (1.0 + value));
            prop_assert!((evaluated[head - 1] - value).abs() < 1e-6 * (1.0 + value));
            total += expected;
        }
        if total.requires_grad() {
            total.backward();
        }
        for (parameter, ours) in parameters.iter().zip(&gradients) {
            let theirs = parameter.tensor.grad();
            let difference = (ours - &theirs).abs().max().double_value(&[]);
            prop_assert!(difference < 1e-9, "{:?}: {}", parameter.parts, difference);
        }
        for tensor in [&model.trunk().embed_tokens, model.unembedding(), model.final_norm()] {
            prop_assert!(!tensor.grad().defined());
        }
    }
}

#[test]
fn a_model_without_heads_to_train_is_refused() {
    let model = model("block", 1, 0);
    let error = FrozenTrunkLoss::states(&model, &tokens(1, 8)).unwrap_err();
    assert!(matches!(error, Error::NoHeads));
}
