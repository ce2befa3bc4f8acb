//! Models as folders: round trips, parity of parameters, and what happens to damaged ones.

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn config(layers: usize, heads: usize) -> ModelConfig {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", heads);
    ModelConfig { architecture, heads, end_of_text: vec![39] }
}

fn model(layers: usize, heads: usize) -> MultiTokenModel {
    MultiTokenModel::new(&config(layers, heads), Kind::Float, Device::Cpu, 5).unwrap()
}

fn load(folder: &Path) -> Result<MultiTokenModel, String> {
    MultiTokenModel::load(folder, Kind::Float, Device::Cpu).map_err(|error| error.to_string())
}

fn logits(model: &MultiTokenModel, head: usize) -> Tensor {
    let tokens = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    model.logits(head, &model.hidden(&tokens).unwrap()).unwrap()
}

#[test]
fn a_model_survives_its_folder_bit_for_bit() {
    for heads in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let saved = model(5, heads);
        saved.save(folder.path()).unwrap();
        assert_eq!(folder.path().join("heads.safetensors").exists(), heads > 1);
        let loaded = load(folder.path()).unwrap();
        assert_eq!(loaded.config().heads, saved.config().heads);
        assert_eq!(loaded.config().end_of_text, [39]);
        for head in 0..heads {
            assert_eq!(logits(&saved, head), logits(&loaded, head));
        }
    }
}

#[test]
fn a_model_of_n_heads_has_the_parameters_of_its_next_token_baseline() {
    let baseline = model(6, 1).parameter_count();
    for heads in 2..6 {
        assert_eq!(model(6, heads).parameter_count(), baseline);
    }
}

#[test]
fn the_next_token_part_is_a_stock_llama() {
    let folder = tempfile::tempdir().unwrap();
    model(6, 3).save(folder.path()).unwrap();
    let config: Value =
        serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 4);
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    let stock = read_safetensors(&folder.path().join("model.safetensors")).unwrap();
    let find = |name: &str| stock.iter().find(|(n, _)| n == name).map(|(_, t)| t.size());
    assert_eq!(find("model.layers.3.self_attn.k_proj.weight"), Some(vec![12, 24]));
    assert_eq!(find("model.layers.3.mlp.up_proj.weight"), Some(vec![40, 24]));
    assert_eq!(find("lm_head.weight"), Some(vec![40, 24]));
    assert_eq!(find("model.layers.4.self_attn.k_proj.weight"), None);
    let index: Value = serde_json::from_slice(
        &fs::read(folder.path().join("model.safetensors.index.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), stock.len());
    let heads = read_safetensors(&folder.path().join("heads.safetensors")).unwrap();
    assert!(
        heads.iter().all(|(name, _)| name.starts_with("heads.1.") || name.starts_with("heads.2."))
    );
}

#[test]
fn a_folder_says_where_its_heads_leap() {
    let folder = tempfile::tempdir().unwrap();
    let leaping = config(5, 3);
    let heads = leaping.heads.clone().with_offsets(vec![0, 1, 3]).unwrap();
    let leaping = ModelConfig { heads, ..leaping };
    let saved = MultiTokenModel::new(&leaping, Kind::Float, Device::Cpu, 5).unwrap();
    saved.save(folder.path()).unwrap();
    let loaded = load(folder.path()).unwrap();
    assert_eq!(loaded.config().heads, leaping.heads);
    assert_eq!(loaded.config().heads.offsets(), [0, 1, 3]);

    let path = folder.path().join("config.json");
    let said = fs::read_to_string(&path).unwrap();
    for offsets in ["[0, 3, 1]", "[1, 2, 3]", "[0, 1]", "[]"] {
        let mut config: Value = serde_json::from_str(&said).unwrap();
        config["foretoken"]["heads"]["offsets"] = serde_json::from_str(offsets).unwrap();
        fs::write(&path, config.to_string()).unwrap();
        let error = load(folder.path()).unwrap_err();
        for part in ["config.json", "foretoken.heads", offsets, "3 heads"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_position_sees_nothing_of_the_future() {
    let model = model(5, 2);
    let tokens = Tensor::arange(10, (Kind::Int64, Device::Cpu)).view([1, 10]);
    let changed = tokens.copy();
    let _ = changed.narrow(1, 6, 1).fill_(30);
    for head in 0..2 {
        let run = |t: &Tensor| model.logits(head, &model.hidden(t).unwrap()).unwrap();
        let difference = (run(&tokens) - run(&changed)).abs().amax([0, 2].as_slice(), false);
        assert!(difference.narrow(0, 0, 6).max().double_value(&[]) < 1e-6);
        assert!(difference.get(6).double_value(&[]) > 1e-4);
    }
}

#[test]
fn damaged_folders_are_refused_with_the_file_and_the_tensor_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    model(5, 3).save(folder.path()).unwrap();
    let stock = fs::read(at("model.safetensors")).unwrap();
    let expect = |words: &[&str]| {
        let error = load(folder.path()).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };

    fs::write(at("model.safetensors"), &stock[..stock.len() / 2]).unwrap();
    expect(&["model.safetensors", "not a whole safetensors file"]);
    fs::remove_file(at("model.safetensors")).unwrap();
    expect(&["model.safetensors", "No such file"]);

    fs::write(at("model.safetensors"), &stock).unwrap();
    let mut tensors = read_safetensors(&at("model.safetensors")).unwrap();
    tensors.push(("model.layers.9.extra".into(), Tensor::ones([1], (Kind::Float, Device::Cpu))));
    write_safetensors(&at("model.safetensors"), &tensors).unwrap();
    expect(&["model.layers.9.extra", "no place"]);
    tensors.pop();
    tensors[0].1 = tensors[0].1.transpose(0, 1).contiguous();
    write_safetensors(&at("model.safetensors"), &tensors).unwrap();
    expect(&[tensors[0].0.as_str(), "expected the shape"]);
    drop(tensors.remove(0));
    write_safetensors(&at("model.safetensors"), &tensors).unwrap();
    expect(&["is missing"]);

    fs::write(at("model.safetensors"), &stock).unwrap();
    let heads = fs::read(at("heads.safetensors")).unwrap();
    fs::remove_file(at("heads.safetensors")).unwrap();
    expect(&["heads.safetensors"]);

    let config = fs::read_to_string(at("config.json")).unwrap();
    for (from, to, word) in [
        ("\"llama\"", "\"gemma\"", "model_type is gemma"),
        ("\"llama\"", "\"mistral\"", "sliding_window"),
        ("\"llama\"", "\"mistral\", \"sliding_window\": 4096", "sliding_window"),
        ("\"hidden_size\": 24", "\"hidden_size\": 1000000", "numbers"),
        ("\"hidden_size\": 24", "\"hidden_size\": 1e30", "hidden_size"),
        ("\"count\": 3", "\"count\": 90", "90 heads"),
        ("\"version\": 1", "\"version\": 7", "version 7"),
        ("{", "", "not a JSON object"),
    ] {
        fs::write(at("config.json"), config.replacen(from, to, 1)).unwrap();
        expect(&["config.json", word].map(|w| {
            if word == "numbers" && w == "config.json" { "model.safetensors" } else { w }
        }));
    }
    fs::write(at("heads.safetensors"), &heads).unwrap();
    let mistral = config.replacen("\"llama\"", "\"mistral\", \"sliding_window\": null", 1);
    fs::write(at("config.json"), mistral).unwrap();
    load(folder.path()).unwrap();
}

#[test]
fn layers_for_which_a_file_has_no_tensors_are_refused_before_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let architecture = Architecture {
        vocab: 4,
        dim: 2,
        layers: 2,
        attention_heads: 1,
        kv_heads: 1,
        ffn: 1,
        context: 4,
        ..Architecture::default()
    };
    let small =
        ModelConfig { architecture, heads: HeadsConfig::new("block", 1), end_of_text: vec![] };
    let saved = MultiTokenModel::new(&small, Kind::Float, Device::Cpu, 5).unwrap();
    saved.save(folder.path()).unwrap();
    load(folder.path()).unwrap();
    // Numbers enough for ten thousand layers, in one tensor.
    let layers = 10_000;
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let layered = config.replace("layers\": 2", &format!("layers\": {layers}"));
    assert_ne!(config, layered);
    fs::write(folder.path().join("config.json"), layered).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = read_safetensors(&path).unwrap();
    tensors.push(("filler".into(), Tensor::zeros([26 * layers], (Kind::Half, Device::Cpu))));
    write_safetensors(&path, &tensors).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("tensors, but the model") && error.contains("90003"), "{error}");
}

#[test]
fn impossible_heads_are_refused_with_the_key_named() {
    let build = |layers, heads: usize, kind: &str| {
        let mut config = config(layers, heads);
        config.heads.kind = kind.into();
        MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0).unwrap_err().to_string()
    };
    assert!(build(4, 4, "block").contains("heads.count"));
    assert!(build(4, 0, "block").contains("heads.count"));
    assert!(build(4, 2, "blocks").contains("known ones are: block"));
}
