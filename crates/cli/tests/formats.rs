//! Models to and from the formats of other software.

mod common;

use std::fs;
use std::path::Path;

use common::{Place, assert_refused, error_text, json, model, text};
use foretoken_heads::{HeadsConfig, ModelSource, MultiTokenModel, Registry};
use tch::{Device, Kind};

fn open(path: &Path) -> MultiTokenModel {
    ModelSource::open(path).unwrap().model(Kind::Float, Device::Cpu).unwrap()
}

/// Writes two Medusa heads for the trained model.
fn medusa_heads(place: &Place) -> String {
    let heads = HeadsConfig::new("medusa", 3);
    let mut grown = open(Path::new(model())).grow(&heads, &Registry::stock(), 0).unwrap();
    grown.set_draft_vocabulary(Some((32..127).collect())).unwrap();
    let path = place.path("medusa.safetensors");
    grown.save_heads(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_says_what_is_written() {
    let place = Place::new();
    for (command, words) in [("export", ["medusa", "gguf"]), ("import", ["transformers", "GGUF"])] {
        let help = text(&place.run(&[command, "--help"]));
        assert!(help.contains("Examples") && help.contains("foretoken "), "{help}");
        assert!(words.iter().all(|word| help.contains(word)), "{help}");
    }
}

#[test]
fn a_model_comes_back_from_a_gguf_file_and_joins_its_heads_again() {
    let place = Place::new();
    let export = ["export", "--model", model(), "--format", "gguf", "--out", "m.gguf", "--json"];
    let written = json(&place.run(&export));
    let bytes = fs::metadata(place.path("m.gguf")).unwrap().len();
    let expected = serde_json::json!({
        "out": "m.gguf", "format": "gguf", "numbers": "float32", "bytes": bytes,
        "heads_left_out": 1,
    });
    assert_eq!(written, expected);

    let import = ["import", "--model", "m.gguf", "--out", "plain", "--json"];
    let written = json(&place.run(&import));
    assert_eq!(written["heads"]["count"], 1);
    let files = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(place.names("plain"), files);
    let trained = open(Path::new(model()));
    for name in ["m.gguf", "plain"] {
        let model = open(&place.path(name));
        assert_eq!(model.stock_sha256().unwrap(), trained.stock_sha256().unwrap(), "{name}");
    }

    let import = ["import", "--model", "plain", "--with-heads", model(), "--out", "joined"];
    let said = text(&place.run(&import));
    assert!(said.starts_with("joined: ") && said.contains("2 heads, type block"), "{said}");
    let joined = open(&place.path("joined"));
    assert_eq!(joined.config().architecture.layers, trained.config().architecture.layers);
    for (joined, trained) in joined.head_parameters().iter().zip(trained.head_parameters()) {
        assert_eq!(joined.tensor, trained.tensor);
    }
    let generate = ["--prompt", "def f1", "--max-new-tokens", "20", "--json"];
    for name in ["m.gguf", "joined"] {
        let arguments = [&["generate", "--model", name][..], &generate].concat();
        let generated = json(&place.run(&arguments));
        assert_eq!(generated["tokens"].as_array().unwrap().len(), 20, "{name}");
        assert_eq!(generated["prompt_tokens"], 6);
    }
}

#[test]
fn heads_draft_for_a_model_in_other_numbers_and_nothing_else() {
    let place = Place::new();
    let heads = medusa_heads(&place);
    let with_heads = ["--with-heads", heads.as_str()];
    let logits = ["logits", "--model", model(), "--prompt", "def f1", "--out", "x", "--json"];
    let written = json(&place.run(&[&logits[..], &with_heads].concat()));
    assert_eq!(written["logits"][0], 3);

    let export = ["export", "--model", model(), "--format", "gguf", "--out", "half.gguf"];
    text(&place.run(&[&export[..], &["--float16"]].concat()));
    let no_heads = ["generate", "--model", model(), "--prompt", "x", "--with-heads", "half.gguf"];
    assert_refused(&place.run(&no_heads), 1, &["half.gguf", "no place for heads"]);
    let generate = ["generate", "--model", "half.gguf", "--prompt", "def f1", "--json"];
    let more = ["--max-new-tokens", "20"];
    let plain = json(&place.run(&[&generate[..], &more].concat()));
    let forced = ["--decoding", "speculative"];
    let drafted = place.run(&[&generate[..], &more, &with_heads, &forced].concat());
    assert!(error_text(&drafted).contains("trained on another model"), "{}", error_text(&drafted));
    assert_eq!(json(&drafted)["tokens"], plain["tokens"]);
    assert!(json(&drafted)["acceptance"].as_array().is_some_and(|heads| heads.len() == 3));
    let import = ["import", "--model", "half.gguf", "--out", "joined"];
    let refused = place.run(&[&import[..], &with_heads].concat());
    assert_refused(&refused, 1, &["another model", "train heads"]);
}

#[test]
fn float16_halves_the_file() {
    let place = Place::new();
    let export = |out: &str, more: &[&str]| {
        let arguments = ["export", "--model", model(), "--format", "gguf", "--out", out];
        let said = text(&place.run(&[&arguments[..], more].concat()));
        assert!(said.contains("the head beyond the first is left out"), "{said}");
        fs::metadata(place.path(out)).unwrap().len()
    };
    assert!(export("half.gguf", &["--float16"]) < export("whole.gguf", &[]) * 6 / 10);
}

#[test]
fn medusa_heads_become_a_folder_for_vllm() {
    let place = Place::new();
    let heads = medusa_heads(&place);
    let export = ["export", "--model", model(), "--with-heads", &heads, "--format", "medusa"];
    let written = json(&place.run(&[&export[..], &["--out", "medusa/", "--json"]].concat()));
    let expected = serde_json::json!({
        "out": "medusa/", "format": "medusa", "heads": 2, "draft_vocabulary": 95,
    });
    assert_eq!(written, expected);
    assert_eq!(place.names("medusa"), ["config.json", "model.safetensors"]);
    let back = ["generate", "--model", model(), "--with-heads", "medusa", "--prompt", "x"];
    assert_refused(&place.run(&back), 1, &["medusa", "vLLM", "exported from"]);
    assert_eq!(place.names("."), ["medusa", "medusa.safetensors", "text.txt"]);
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let export = ["export", "--model", model(), "--out", "out", "--format"];
    let run = |more: &[&str]| place.run(&[&export[..], more].concat());
    assert_refused(&run(&["medusa"]), 1, &["Medusa", "\"block\""]);
    assert_refused(&run(&["medusa", "--float16"]), 2, &["--float16"]);
    assert_refused(&run(&["gguf", "--with-heads", "x"]), 2, &["--with-heads", "medusa"]);
    assert_refused(&run(&["medusa", "--with-heads", "nowhere"]), 1, &["nowhere"]);
    assert_eq!(run(&["onnx"]).status.code(), Some(2));
    assert_eq!(place.names("."), ["text.txt"]);

    for (command, more) in [
        ("export", &["--format", "gguf"][..]),
        ("export", &["--format", "medusa"]),
        ("import", &[]),
    ] {
        let arguments = [command, "--model", model(), "--out", "text.txt"];
        let output = place.run(&[&arguments[..], more].concat());
        assert_refused(&output, 1, &["--out", "text.txt", "already"]);
    }
    let into_model = ["import", "--model", model(), "--out", model()];
    assert_refused(&place.run(&into_model), 1, &[model(), "already"]);
    let missing = ["import", "--model", "nowhere", "--out", "out"];
    assert_refused(&place.run(&missing), 1, &["nowhere"]);
    assert_eq!(place.names("."), ["text.txt"]);
}
