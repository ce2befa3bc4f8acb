//! The teacher-forced walk against a model asked one prefix at a time.

use foretoken_eval::{HeldOutOptions, Walk, held_out, held_out_texts};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use tch::{Device, Kind, Tensor};

const VOCAB: u32 = 5;

/// A random model over few tokens, so that its drafts are right now and then.
fn model(heads: usize) -> MultiTokenModel {
    let config = ModelConfig {
        architecture: Architecture {
            vocab: VOCAB as usize,
            dim: 16,
            layers: heads + 2,
            attention_heads: 2,
            kv_heads: 2,
            head_dim: 8,
            ffn: 32,
            context: 24,
            ..Architecture::default()
        },
        heads: HeadsConfig::new("block", heads),
        end_of_text: Vec::new(),
    };
    MultiTokenModel::new(&config, Kind::Double, Device::Cpu, 3).unwrap()
}

fn text(length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i / 3 + i % 2) % VOCAB).collect()
}

/// What head `head` predicts after `prefix`, from a forward pass over that prefix alone.
fn asked(model: &MultiTokenModel, prefix: &[u32], head: usize) -> u32 {
    let tokens: Vec<i64> = prefix.iter().map(|&token| i64::from(token)).collect();
    let tokens = Tensor::from_slice(&tokens).view([1, -1]);
    let _guard = tch::no_grad_guard();
    let logits = model.logits(head, &model.hidden(&tokens).unwrap()).unwrap();
    let last = logits.select(1, prefix.len() as i64 - 1).view([-1]);
    last.argmax(-1, false).int64_value(&[]) as u32
}

/// Passes and accepted drafts of one window, every draft asked for on its own.
fn walked_by_hand(model: &MultiTokenModel, text: &[u32], positions: usize, k: usize) -> Vec<u64> {
    let mut accepted = vec![0; k];
    let mut p = 0;
    while p < positions {
        accepted[0] += 1;
        let mut advance = 1;
        while advance < k && asked(model, &text[..=p], advance) == text[p + 1 + advance] {
            accepted[advance] += 1;
            advance += 1;
        }
        p += advance;
    }
    accepted
}

#[test]
fn one_forward_pass_gives_what_asking_prefix_by_prefix_gives_for_every_k() {
    let (heads, window) = (3, 10);
    let (model, text) = (model(heads), text(38));
    let options = HeldOutOptions { window, prompt: 0, batch: 2 };
    let found = held_out(&model, &text, &options).unwrap();
    for k in 1..=heads {
        let mut by_hand = vec![0; k];
        // Windows of 10, 10, 10 and the 5 positions that leave room for three drafts.
        for (start, positions) in [(0, 10), (10, 10), (20, 10), (30, 5)] {
            let counts = walked_by_hand(&model, &text[start..], positions, k);
            by_hand.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        let walk: &Walk = found.walk(k).unwrap();
        assert_eq!(walk.passes(), by_hand[0], "k = {k}");
        assert_eq!(walk.tokens(), by_hand.iter().sum::<u64>(), "k = {k}");
    }
    let all = found.walk(heads).unwrap();
    assert!(all.tokens_per_forward() > 1.0, "the case has no accepted draft: choose another");
}

#[test]
fn the_batch_changes_nothing() {
    let (model, text) = (model(2), text(100));
    let found =
        |batch| held_out(&model, &text, &HeldOutOptions { window: 12, prompt: 0, batch }).unwrap();
    assert_eq!(found(1), found(5));
}

#[test]
fn a_prompt_is_read_but_not_walked() {
    let (model, text) = (model(2), text(17));
    let options = HeldOutOptions { window: 15, prompt: 6, batch: 1 };
    let found = held_out(&model, &text, &options).unwrap();
    // Every draft of the walk sees the text from its start.
    let (mut passes, mut tokens, mut p) = (0, 0, 6);
    while p < 15 {
        let accepted = u64::from(asked(&model, &text[..=p], 1) == text[p + 2]);
        passes += 1;
        tokens += 1 + accepted;
        p += 1 + accepted as usize;
    }
    let walk = found.walk(2).unwrap();
    assert_eq!((walk.passes(), walk.tokens()), (passes, tokens));
}

#[test]
fn texts_are_walked_one_by_one() {
    let (model, text) = (model(2), text(60));
    let options = HeldOutOptions { window: 12, prompt: 0, batch: 3 };
    let together = held_out_texts(&model, &[&text[..14], &text[20..34], &text[40..]], &options);
    let mut apart = Walk::new(2);
    for text in [&text[..14], &text[20..34], &text[40..]] {
        apart.merge(held_out(&model, text, &options).unwrap().walk(2).unwrap());
    }
    assert_eq!(together.unwrap().walk(2), Some(&apart));
}

#[test]
fn tokens_outside_of_the_vocabulary_and_short_texts_are_refused() {
    let model = model(2);
    let options = HeldOutOptions::for_model(&model);
    assert_eq!(options.window, 24);
    let outside = held_out(&model, &[1, 2, VOCAB, 0], &options).unwrap_err();
    assert!(outside.to_string().contains('5'), "{outside}");
    let short = held_out(&model, &[1, 2], &options).unwrap_err();
    assert!(short.to_string().contains("at least 3"), "{short}");
}

#[test]
fn a_window_longer_than_the_context_is_refused_by_the_model() {
    let options = HeldOutOptions { window: 25, prompt: 0, batch: 1 };
    assert!(held_out(&model(1), &text(60), &options).is_err());
}
