//! Both engines against the model's own forward of a whole text.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use crate::cpu_engine;
use crate::engine::{Engine, Other, Wanted};
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
    let heads = HeadsConfig::new(head, heads);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
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

fn ids(tokens: &[u32]) -> Tensor {
    let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
    Tensor::from_slice(&ids).view([1, -1])
}

/// Head 0's logits after each token, from the model's own forward: `[seq][vocab]`.
fn whole(model: &MultiTokenModel, tokens: &[u32]) -> Vec<Vec<f64>> {
    let logits =
        no_grad(|| model.logits(0, &model.hidden(&ids(tokens)).unwrap()).unwrap().squeeze_dim(0));
    Vec::<Vec<f64>>::try_from(logits.to_kind(Kind::Double)).unwrap()
}

/// Logits of head `chosen.len()` after the text, from the model's own forward, where `chosen` are
/// the tokens that head 0 and the heads before have chosen behind it.
fn drafting(model: &MultiTokenModel, text: &[u32], chosen: &[u32]) -> Vec<f64> {
    let (seq, head) = (text.len() as i64, chosen.len());
    let logits = no_grad(|| {
        let hidden = model.hidden(&ids(text)).unwrap();
        let told = model.told(&ids(&[text, chosen].concat())).unwrap();
        let told = told.map(|told| told.narrow(1, head as i64, seq));
        let state = model.head_hidden_told(head, &hidden, told.as_ref()).unwrap();
        state.matmul(&model.unembedding().transpose(0, 1)).get(0).get(seq - 1)
    });
    Vec::<f64>::try_from(logits.to_kind(Kind::Double)).unwrap()
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

/// How a text is walked.
struct Steps {
    /// Rows of each step, and how many of them stay.
    rows: Vec<(usize, usize)>,
    /// Whether others stand beside them.
    beside: bool,
    /// In eight steps of sixteen heads draft only as far as they are as sure as this.
    least: f64,
}

/// Walks a text in steps of several rows of which some are taken back, and checks every row.
fn walk(
    model: &MultiTokenModel,
    engine: &mut dyn Engine,
    tokens: &[u32],
    start: usize,
    steps: &Steps,
    tolerance: f64,
) {
    let &Steps { beside, least, .. } = steps;
    let heads = model.heads().len();
    let expected = whole(model, tokens);
    engine.reset();
    let drafts_behind = |engine: &mut dyn Engine, text: &[u32], next: u32, step: usize| {
        if heads > 1 {
            let mut chosen = vec![next];
            let least = (step % 16 < 8).then_some(least);
            let others = if beside { 3 } else { 0 };
            let drafts = engine.draft(Wanted { heads: heads - 1, others, least }).unwrap();
            for other in &drafts.others {
                assert!((1..=drafts.tokens.len()).contains(&other.head));
                assert!(least.is_none_or(|least| other.likelihood >= least));
                assert!(other.likelihood <= drafts.certainties[other.head - 1]);
            }
            assert!(drafts.others.len() <= others);
            let (drafts, mut certainties) = (drafts.tokens.clone(), drafts.certainties.iter());
            let mut certainty = 0.0;
            for token in drafts {
                let place = format!("draft {} behind {}", chosen.len(), text.len());
                let logits = drafting(model, text, &chosen);
                assert_best(token, &logits, tolerance, &place);
                chosen.push(token);
                if let Some(least) = least {
                    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
                    certainty += logits[token as usize] - total.ln();
                    let found = *certainties.next().unwrap();
                    assert!((found - certainty).abs() < 1e3 * tolerance, "{found} {certainty}");
                    assert!(found >= least);
                }
            }
            match least {
                None => assert_eq!(chosen.len(), heads),
                Some(least) if chosen.len() < heads => {
                    assert!(*certainties.next().unwrap() < least);
                }
                Some(_) => {}
            }
        }
    };
    let first = engine.prefill(&tokens[..start], heads - 1).unwrap();
    assert_best(first, &expected[start - 1], tolerance, "after the prompt");
    assert!(distance(engine, 0, &expected[start - 1]) < tolerance);
    drafts_behind(engine, &tokens[..start], first, 0);
    let mut position = start;
    for (step, &(rows, kept)) in steps.rows.iter().enumerate() {
        let rows = rows.min(heads).min(tokens.len() - position);
        if rows == 0 {
            break;
        }
        let kept = kept.clamp(1, rows);
        // Rows that will be taken back are other tokens than the text's.
        let mut pass = tokens[position..position + rows].to_vec();
        pass[kept..].iter_mut().for_each(|token| *token = (*token + 1) % 50);
        let other = |head: usize| Other {
            head,
            token: if head == kept { tokens[position + kept] } else { (pass[head] + 7) % 50 },
            likelihood: 0.0,
        };
        let others: Vec<Other> = if beside { (1..rows).map(other).collect() } else { Vec::new() };
        let chosen = engine.verify(&pass, &others).unwrap().to_vec();
        for row in 0..kept {
            let logits = &expected[position + row];
            assert_best(chosen[row], logits, tolerance, &format!("row {row} at {position}"));
            let distance = distance(engine, row, logits);
            assert!(distance < tolerance, "row {row} at {position} is off by {distance}");
        }
        // The text goes on with the one that stands in place of the first wrong token.
        let taken = (kept < rows).then(|| kept - 1).filter(|_| !others.is_empty());
        for (i, other) in others.iter().enumerate() {
            let text = [&tokens[..position], &pass[..other.head], &[other.token]].concat();
            let logits = whole(model, &text).pop().unwrap();
            let place = format!("in place of row {} at {position}", other.head);
            assert_best(chosen[rows + i], &logits, tolerance, &place);
            let distance = distance(engine, rows + i, &logits);
            assert!(distance < tolerance, "{place}: off by {distance}");
        }
        engine.keep(kept, taken).unwrap();
        position += kept + taken.map_or(0, |_| 1);
        let last = taken.map_or(kept - 1, |other| rows + other);
        drafts_behind(engine, &tokens[..position], chosen[last], step);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_row_and_draft_is_the_models_own(
        tokens in proptest::collection::vec(0u32..50, 2..124), start in 1usize..100,
        steps in proptest::collection::vec((1usize..5, 1usize..5), 1..30),
        layers in 5usize..7, heads in 1usize..5, kv_heads in prop::sample::select(vec![1, 2, 4]),
        seed in 0i64..100, beside: bool, least in -3.0f64..0.1, head in prop::sample::select(vec!["block", "informed"]),
    ) {
        let start = start.min(tokens.len());
        let steps = Steps { rows: steps, beside, least };
        let options = DecoderOptions {
            threads: Some(1),
            drafts: DraftPrecision::Full,
            ..DecoderOptions::default()
        };
        let double = model(head, layers, heads, kv_heads, Kind::Double, seed);
        let mut ours = cpu_engine::build(&double, options).unwrap().unwrap();
        walk(&double, ours.as_mut(), &tokens, start, &steps, 1e-10);
        let mut theirs = TensorEngine::new(Held::Lent(&double)).unwrap();
        walk(&double, &mut theirs, &tokens, start, &steps, 1e-10);
        let float = model(head, layers, heads, kv_heads, Kind::Float, seed);
        let mut ours = cpu_engine::build(&float, options).unwrap().unwrap();
        walk(&float, ours.as_mut(), &tokens, start, &steps, 1e-4);
    }
}
