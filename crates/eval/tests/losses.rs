//! Losses per head against cross-entropy computed by hand from the logits.

use std::path::Path;

use foretoken_data::{
    CorpusSource, PrepareOptions, Split, SplitFractions, TokenShard, Tokenizer, open_split, prepare,
};
use foretoken_eval::{LossOptions, head_losses};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use tch::{Device, Kind, Tensor};

/// All of `text` as the test split, as bytes.
fn shard(folder: &Path, text: &str) -> TokenShard {
    let path = folder.join("text.txt");
    std::fs::write(&path, text).unwrap();
    let out_dir = folder.join("shards");
    let options = PrepareOptions {
        source: CorpusSource::Path(path),
        tokenizer: Tokenizer::bytes(),
        out_dir: out_dir.clone(),
        name: "letters".to_owned(),
        split: SplitFractions::all_test(),
    };
    prepare(&options, &|_| ()).unwrap();
    open_split(&out_dir, Split::Test).unwrap()
}

fn model(heads: usize) -> MultiTokenModel {
    let config = ModelConfig {
        architecture: Architecture {
            dim: 16,
            layers: heads + 1,
            attention_heads: 2,
            kv_heads: 2,
            ffn: 32,
            context: 64,
            ..Architecture::default()
        },
        heads: HeadsConfig { kind: "block".to_owned(), count: heads },
        end_of_text: None,
    };
    MultiTokenModel::new(&config, Kind::Double, Device::Cpu, 5).unwrap()
}

/// Mean of −log softmax(logits)[target], from numbers, not tensors.
fn cross_entropy(model: &MultiTokenModel, window: &[u32], sequence: usize, head: usize) -> f64 {
    let inputs: Vec<i64> = window[..sequence].iter().map(|&t| i64::from(t)).collect();
    let _guard = tch::no_grad_guard();
    let hidden = model.hidden(&Tensor::from_slice(&inputs).view([1, -1])).unwrap();
    let logits = model.logits(head, &hidden).unwrap().squeeze_dim(0);
    let logits: Vec<Vec<f64>> = Vec::try_from(logits).unwrap();
    let losses = logits.iter().enumerate().map(|(position, row)| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        sum.ln() - row[window[position + 1 + head] as usize]
    });
    losses.sum::<f64>() / sequence as f64
}

#[test]
fn losses_are_the_mean_nats_of_every_head_over_the_windows() {
    let folder = tempfile::tempdir().unwrap();
    // Every window is the same text up to rotation, so that each one's loss can be had by hand.
    let shard = shard(folder.path(), &"abcde".repeat(200));
    let model = model(3);
    let options = LossOptions { windows: 7, sequence: 16, batch: 3, seed: 1 };
    let losses = head_losses(&model, &shard, &options).unwrap();
    let all: Vec<u32> = shard.tokens(0..40).unwrap();
    for (head, &loss) in losses.iter().enumerate() {
        let by_rotation: Vec<f64> =
            (0..5).map(|start| cross_entropy(&model, &all[start..], 16, head)).collect();
        let low = by_rotation.iter().copied().fold(f64::INFINITY, f64::min);
        let high = by_rotation.iter().copied().fold(0.0, f64::max);
        assert!((low..=high).contains(&loss), "head {head}: {loss} not in {low}..{high}");
    }
    // A single window is one of the five rotations to the last digits.
    let one = LossOptions { windows: 1, ..options };
    let losses = head_losses(&model, &shard, &one).unwrap();
    let matches = |start: usize| {
        let by_hand = (0..3).map(|head| cross_entropy(&model, &all[start..], 16, head));
        by_hand.zip(&losses).all(|(a, b)| (a - b).abs() < 1e-9)
    };
    assert!((0..5).any(matches));
}

#[test]
fn the_batch_changes_nothing_but_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let shard = shard(folder.path(), &"def f(x):\n    return x\n".repeat(40));
    let model = model(2);
    let losses = |batch| {
        let options = LossOptions { windows: 6, sequence: 20, batch, seed: 2 };
        head_losses(&model, &shard, &options).unwrap()
    };
    for (one, four) in losses(1).iter().zip(losses(4)) {
        assert!((one - four).abs() < 1e-12);
    }
}
