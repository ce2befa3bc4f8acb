//! Both engines against the model's own forward of a whole text.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use crate::cpu_engine;
use crate::engine::Engine;
use crate::tensor_engine::{Held, TensorEngine};
use crate::{DecoderOptions, DraftPrecision};

fn model(
    head: &str,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    kind: Kind,
    seed: i64,
) -> MultiTokenModel {
    tch::set_num_threads(1);
    let architecture = Architecture {
        vocab: 50,
        dim: 48,
        layers,
        attention_heads: 4,
        kv_heads,
        ffn: 56,
        context: 128,
        ..Architecture::default()
    };
    let heads = HeadsConfig { kind: head.into(), count: heads };
    let config = ModelConfig { architecture, heads, end_of_text: None };
    let model = MultiTokenModel::new(&config, kind, Device::Cpu, seed).unwrap();
    for parameter in model.parameters() {
        let mut tensor = parameter.tensor.shallow_clone();
        no_grad(|| match tensor.dim() {
            2 => _ = tensor.g_mul_scalar_(1.5),
            _ => _ = tensor.uniform_(0.5, 1.5),
        });
    }
    model
}

/// Logits of each head after each token, from the model's own forward: `[heads][seq][vocab]`. Heads
/// are told the text's tokens before `start`, the prompt, and head 0's choices from there on.
fn whole(model: &MultiTokenModel, tokens: &[u32], start: usize) -> Vec<Vec<Vec<f64>>> {
    let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
    no_grad(|| {
        let hidden = model.hidden(&Tensor::from_slice(&ids).view([1, -1])).unwrap();
        let own = model.best_tokens(0, &hidden).unwrap();
        let (known, len) = (start as i64 - 1, ids.len() as i64);
        let next = Tensor::from_slice(&ids[1..start]).view([1, -1]);
        let next = Tensor::cat(&[next, own.narrow(1, known, len - known)], 1);
        let logits = |head| {
            let state = model.head_hidden_before(head, &hidden, &next).unwrap();
            state.matmul(&model.unembedding().transpose(0, 1)).squeeze_dim(0)
        };
        (0..model.heads().len())
            .map(|head| Vec::<Vec<f64>>::try_from(logits(head).to_kind(Kind::Double)).unwrap())
            .collect()
    })
}

/// Asserts that `chosen` is the best token, or as good as the best.
fn assert_best(chosen: u32, logits: &[f64], tolerance: f64, place: &str) {
    let top = logits.iter().fold(f64::NEG_INFINITY, |top, &logit| top.max(logit));
    let own = logits[chosen as usize];
    assert!(own >= top - tolerance, "{place}: token {chosen} has {own}, the best has {top}");
}

/// The largest difference of a logit, against the largest logit.
fn distance(engine: &mut dyn Engine, row: usize, expected: &[f64]) -> f64 {
    let mut logits = Vec::new();
    engine.logits(row, &mut logits).unwrap();
    assert_eq!(logits.len(), expected.len());
    let largest = expected.iter().fold(1.0f64, |top, logit| top.max(logit.abs()));
    logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

/// Walks a text in steps of several rows of which some are taken back, and checks every row.
fn walk(
    model: &MultiTokenModel,
    engine: &mut dyn Engine,
    tokens: &[u32],
    start: usize,
    steps: &[(usize, usize)],
    tolerance: f64,
) {
    let heads = model.heads().len();
    let expected = whole(model, tokens, start);
    engine.reset();
    let drafts_at = |engine: &mut dyn Engine, position: usize| {
        if heads > 1 {
            let drafts = engine.draft(heads - 1).unwrap().to_vec();
            assert_eq!(drafts.len(), heads - 1);
            for (token, logits) in drafts.into_iter().zip(&expected[1..]) {
                assert_best(token, &logits[position], tolerance, &format!("at {position}"));
            }
        }
    };
    let first = engine.prefill(&tokens[..start], heads - 1).unwrap();
    assert_best(first, &expected[0][start - 1], tolerance, "after the prompt");
    assert!(distance(engine, 0, &expected[0][start - 1]) < tolerance);
    drafts_at(engine, start - 1);
    let mut position = start;
    for &(rows, kept) in steps {
        let rows = rows.min(heads).min(tokens.len() - position);
        if rows == 0 {
            break;
        }
        let kept = kept.clamp(1, rows);
        // Rows that will be taken back are other tokens than the text's.
        let mut pass = tokens[position..position + rows].to_vec();
        pass[kept..].iter_mut().for_each(|token| *token = (*token + 1) % 50);
        let chosen = engine.verify(&pass).unwrap().to_vec();
        for row in 0..kept {
            let logits = &expected[0][position + row];
            assert_best(chosen[row], logits, tolerance, &format!("row {row} at {position}"));
            let distance = distance(engine, row, logits);
            assert!(distance < tolerance, "row {row} at {position} is off by {distance}");
        }
        engine.keep(kept);
        position += kept;
        drafts_at(engine, position - 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_row_and_draft_is_the_models_own(
        tokens in proptest::collection::vec(0u32..50, 2..128), start in 1usize..100,
        steps in proptest::collection::vec((1usize..5, 1usize..5), 1..30),
        layers in 5usize..7, heads in 1usize..5, kv_heads in prop::sample::select(vec![1, 2, 4]),
        seed in 0i64..100, head in prop::sample::select(vec!["block", "informed"]),
    ) {
        let start = start.min(tokens.len());
        let options = DecoderOptions { threads: Some(1), drafts: DraftPrecision::Full };
        let double = model(head, layers, heads, kv_heads, Kind::Double, seed);
        let mut ours = cpu_engine::build(&double, options).unwrap().unwrap();
        walk(&double, ours.as_mut(), &tokens, start, &steps, 1e-10);
        walk(&double, &mut TensorEngine::new(Held::Lent(&double)).unwrap(), &tokens, start, &steps, 1e-10);
        let float = model(head, layers, heads, kv_heads, Kind::Float, seed);
        let mut ours = cpu_engine::build(&float, options).unwrap().unwrap();
        walk(&float, ours.as_mut(), &tokens, start, &steps, 1e-4);
    }
}
