//! Losses per head against cross-entropy computed by hand from the logits.

use std::path::Path;

use foretoken_data::{
    CorpusSource, PrepareOptions, Split, SplitFractions, TokenShard, Tokenizer, open_split, prepare,
};
use foretoken_eval::{LossOptions, head_losses, seeded_starts};
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
    with_heads(HeadsConfig::new("block", heads))
}

fn with_heads(heads: HeadsConfig) -> MultiTokenModel {
    let config = ModelConfig {
        architecture: Architecture {
            dim: 16,
            layers: heads.count + 1,
            attention_heads: 2,
            kv_heads: 2,
            ffn: 32,
            context: 64,
            ..Architecture::default()
        },
        heads,
        end_of_text: Vec::new(),
    };
    MultiTokenModel::new(&config, Kind::Double, Device::Cpu, 5).unwrap()
}

/// Mean of −log softmax(logits)[target], from numbers, not tensors.
fn cross_entropy(model: &MultiTokenModel, window: &[u32], sequence: usize, head: usize) -> f64 {
    let offset = model.config().heads.offsets()[head];
    let inputs: Vec<i64> = window[..sequence].iter().map(|&t| i64::from(t)).collect();
    let _guard = tch::no_grad_guard();
    let hidden = model.hidden(&Tensor::from_slice(&inputs).view([1, -1])).unwrap();
    let logits = model.logits(head, &hidden).unwrap().squeeze_dim(0);
    let logits: Vec<Vec<f64>> = Vec::try_from(logits).unwrap();
    let losses = logits.iter().enumerate().map(|(position, row)| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        sum.ln() - row[window[position + 1 + offset] as usize]
    });
    losses.sum::<f64>() / sequence as f64
}

#[test]
fn losses_are_the_mean_nats_of_every_head_over_the_windows() {
    let folder = tempfile::tempdir().unwrap();
    let shard = shard(folder.path(), &"def f(x, y):\n    return x + y\n".repeat(60));
    let options = LossOptions { windows: 7, sequence: 16, batch: 3, seed: 1 };
    let leaping = HeadsConfig::new("block", 3).with_offsets(vec![0, 2, 5]).unwrap();
    for model in [model(3), with_heads(leaping)] {
        let losses = head_losses(&model, &shard, &options).unwrap();
        // 64 tokens behind each window are kept free for the targets of any number of heads.
        let starts = seeded_starts(shard.len(), 7, 16 + 64, 1).unwrap();
        for (head, loss) in losses.into_iter().enumerate() {
            let by_hand = starts.iter().map(|&start| {
                let window = shard.tokens(start..start + 16 + 6).unwrap();
                cross_entropy(&model, &window, 16, head)
            });
            let by_hand = by_hand.sum::<f64>() / 7.0;
            assert!((loss - by_hand).abs() < 1e-9, "head {head}: {loss}, by hand {by_hand}");
        }
    }
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
