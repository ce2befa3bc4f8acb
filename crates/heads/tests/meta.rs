//! Meta's multi-token checkpoints as models.

#[path = "../../trunk/tests/support/torch_file.rs"]
mod torch_file;

use foretoken_heads::{HeadsConfig, ModelConfig, ModelSource, MultiTokenModel};
use foretoken_trunk::Architecture;
use serde_json::json;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const PARTS: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Five layers in all: two of the trunk, three heads. Heads of attention are six wide.
fn model() -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: 5,
        kv_heads: 2,
        ffn: 64,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", 3);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 5).unwrap()
}

/// Meta's name of a stock tensor, and its rows as Meta has them.
fn own(stock: &str, tensor: &Tensor) -> (String, Tensor) {
    let name = match stock {
        "model.embed_tokens.weight" => "tok_embeddings.weight".to_owned(),
        "model.norm.weight" => "norm.weight".to_owned(),
        "lm_head.weight" => "output.weight".to_owned(),
        _ => {
            let (group, rest) = match stock.strip_prefix("model.layers.") {
                Some(rest) => ("layers", rest),
                None => ("extra_heads", stock.strip_prefix("heads.").unwrap()),
            };
            let (number, part) = rest.split_once('.').unwrap();
            let number = number.parse::<usize>().unwrap() - usize::from(group == "extra_heads");
            let part = part.strip_suffix(".weight").unwrap();
            let (_, part) = PARTS.iter().find(|(other, _)| *other == part).unwrap();
            format!("{group}.{number}.{part}.weight")
        }
    };
    let turned = match name.contains("attention.wq") || name.contains("attention.wk") {
        // Halves (i, i + 3) of a head become pairs (2i, 2i + 1).
        true => tensor.view([-1, 2, 3, 24]).transpose(1, 2).reshape(tensor.size()),
        false => tensor.shallow_clone(),
    };
    (name, turned)
}

fn own_tensors(model: &MultiTokenModel) -> Vec<(String, Tensor)> {
    let named = model.parameters().iter().flat_map(|p| p.named().unwrap()).collect::<Vec<_>>();
    named.iter().map(|(name, tensor)| own(name, tensor)).collect()
}

fn write(folder: &Path, tensors: &[(String, Tensor)]) {
    let params = json!({
        "dim": 24, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1,
        "multiple_of": 8, "norm_eps": 1e-5, "rope_theta": 10000.0, "n_future_tokens": 3,
        "max_seq_len": 32,
    });
    fs::write(folder.join("params.json"), params.to_string()).unwrap();
    fs::write(folder.join("consolidated.pth"), torch_file::file(tensors)).unwrap();
}

fn logits(model: &MultiTokenModel, head: usize) -> Tensor {
    let tokens = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    model.logits(head, &model.hidden(&tokens).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_of_meta_is_the_model_of_the_same_weights() {
    let (meta, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = model();
    write(meta.path(), &own_tensors(&model));
    model.save(ours.path()).unwrap();
    let load =
        |folder: &Path| ModelSource::open(folder).unwrap().model(Kind::Float, Device::Cpu).unwrap();
    let (loaded, same) = (load(meta.path()), load(ours.path()));
    assert_eq!(loaded.config(), model.config());
    for (read, written) in loaded.parameters().iter().zip(&model.parameters()) {
        assert_eq!(read.named().unwrap(), written.named().unwrap());
    }
    for head in 0..3 {
        assert_eq!(logits(&loaded, head), logits(&same, head));
    }

    // A `config.json` says that the folder is one of ours.
    fs::copy(ours.path().join("config.json"), meta.path().join("config.json")).unwrap();
    let source = ModelSource::open(meta.path()).unwrap();
    let error = source.model(Kind::Float, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_with_the_tensor_named() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = own_tensors(&model());
    let refused = |tensors: &[(String, Tensor)]| {
        write(folder.path(), tensors);
        MultiTokenModel::from_meta(folder.path(), Kind::Float, Device::Cpu).unwrap_err().to_string()
    };
    let copies = || tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone()));
    for name in ["extra_heads.1.ffn_norm.weight", "layers.2.attention.wk.weight", "norm.weight"] {
        let fewer: Vec<_> = copies().filter(|(other, _)| other != name).collect();
        let error = refused(&fewer);
        assert!(error.contains(name) && error.contains("is missing"), "{error}");
        let with_other_shape: Vec<_> = copies()
            .map(|(other, t)| match other == name {
                true => (other, Tensor::cat(&[&t, &t], 0)),
                false => (other, t),
            })
            .collect();
        let error = refused(&with_other_shape);
        assert!(error.contains("shape"), "{error}");
    }
    let mut more: Vec<_> = copies().collect();
    let norm = Tensor::ones([24], (Kind::Float, Device::Cpu));
    more.push(("extra_heads.2.ffn_norm.weight".into(), norm));
    let error = refused(&more);
    assert!(error.contains("extra_heads.2.ffn_norm.weight"), "{error}");
    assert!(error.contains("no place"), "{error}");
}

#[test]
fn a_missing_tokenizer_is_said_to_need_a_conversion() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &own_tensors(&model()));
    fs::write(folder.path().join("tokenizer.model"), "sentencepiece").unwrap();
    let source = ModelSource::open(folder.path()).unwrap();
    let error = source.tokenizer().unwrap_err().to_string();
    for word in ["tokenizer.json", "tokenizer.model", "SentencePiece", "convert"] {
        assert!(error.contains(word), "{error}");
    }
}
