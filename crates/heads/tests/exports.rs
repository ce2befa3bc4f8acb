//! Models in the formats of other software.

use foretoken_data::{Message, Tokenizer, Vocabulary};
use foretoken_heads::{
    GgufNumbers, HeadsConfig, ModelConfig, ModelSource, MultiTokenModel, NewFolder, Registry,
};
use foretoken_trunk::io::read_safetensors;
use foretoken_trunk::{Architecture, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_context: 8192.0,
};

/// Sizes that GGUF's float32 holds, with more rows than the byte tokenizer has tokens.
fn sizes(layers: usize) -> Architecture {
    Architecture {
        vocab: 270,
        dim: 24,
        layers,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        norm_eps: f64::from(1e-5_f32),
        ..Architecture::default()
    }
}

/// A model whose norms and biases are random too.
fn model(architecture: Architecture, heads: usize) -> MultiTokenModel {
    let heads = HeadsConfig::new("block", heads);
    let config = ModelConfig { architecture, heads, end_of_text: vec![256] };
    let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 5).unwrap();
    for parameter in model.parameters() {
        let _ = parameter.tensor.detach().uniform_(-1.0, 1.0);
    }
    model
}

fn medusa(count: usize) -> MultiTokenModel {
    let heads = HeadsConfig::new("medusa", count);
    let model = model(sizes(3), 1).grow(&heads, &Registry::stock(), 1).unwrap();
    for parameter in model.head_parameters() {
        let _ = parameter.tensor.detach().uniform_(-1.0, 1.0);
    }
    model
}

fn export(model: &MultiTokenModel, path: &Path) {
    model.export_gguf(path, "small", &Tokenizer::bytes(), GgufNumbers::Float32).unwrap();
}

fn open(path: &Path) -> MultiTokenModel {
    ModelSource::open(path).unwrap().model(Kind::Float, Device::Cpu).unwrap()
}

/// The tensors of a model but for those of its heads beyond the first.
fn stock(model: &MultiTokenModel) -> BTreeMap<String, Tensor> {
    let parameters = model.parameters();
    let all = parameters.iter().flat_map(|parameter| parameter.named().unwrap());
    all.filter(|(name, _)| !name.starts_with("heads.")).collect()
}

#[test]
fn what_ends_a_turn_in_the_template_of_a_gguf_file_ends_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut vocabulary = Tokenizer::bytes().vocabulary().unwrap();
    vocabulary.tokens[257] = "<|im_end|>".to_owned();
    // One that texts have.
    vocabulary.tokens[258] = "<|end|>".to_owned();
    vocabulary.token_types.as_mut().unwrap()[258] = 4;
    for (template, ends) in [
        (None, &[256][..]),
        (Some("{{ messages[0].content }}<|im_start|>"), &[256]),
        (Some("{{ messages[0].content }}<|im_end|><|end|>"), &[256, 257]),
    ] {
        vocabulary.chat_template = template.map(str::to_owned);
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        model(sizes(3), 1).export_gguf(&path, "small", &tokenizer, GgufNumbers::Float32).unwrap();
        assert_eq!(open(&path).config().end_of_text, ends);
    }
}

#[test]
fn a_gguf_file_gives_back_sizes_and_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let linear = RopeScaling::Linear { factor: 2.0 };
    for (heads, architecture) in [
        (1, sizes(3)),
        (3, sizes(5)),
        (1, Architecture { tied: true, ..sizes(3) }),
        (1, Architecture { qkv_bias: true, tied: true, ..sizes(3) }),
        (1, Architecture { head_dim: 8, attention_heads: 2, ..sizes(3) }),
        (1, Architecture { rope_scaling: linear, ..sizes(3) }),
        (1, Architecture { rope_scaling: LLAMA3, rope_theta: 500_000.0, ..sizes(3) }),
    ] {
        let saved = model(architecture.clone(), heads);
        export(&saved, &path);
        let read = open(&path);
        let layers = architecture.layers + 1 - heads;
        assert_eq!(read.config().architecture, Architecture { layers, ..architecture });
        assert_eq!(read.config().heads.count, 1);
        assert_eq!(read.config().end_of_text, [256]);
        assert_eq!(stock(&read), stock(&saved));
        assert_eq!(read.stock_sha256().unwrap(), saved.stock_sha256().unwrap());
    }
}

#[test]
fn a_gguf_file_gives_back_three_tokens_that_end_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (ends, read) in
        [(vec![], vec![256]), (vec![3, 256], vec![256, 3]), (vec![7, 3, 9], vec![256, 7, 3])]
    {
        let config = ModelConfig { end_of_text: ends, ..model(sizes(3), 1).config().clone() };
        let saved = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 1).unwrap();
        export(&saved, &path);
        assert_eq!(open(&path).config().end_of_text, read);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_gguf_file_gives_back_the_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    export(&model(sizes(3), 1), &path);
    let tokenizer = ModelSource::open(&path).unwrap().tokenizer().unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (270, Some(256)));
    let text = "def é(x):<|endoftext|>\n  [PAD264]";
    let bytes = Tokenizer::bytes();
    assert_eq!(tokenizer.encode(text).unwrap(), bytes.encode(text).unwrap());
    let ids = bytes.encode_with_specials(text).unwrap();
    assert_eq!(tokenizer.encode_with_specials(text).unwrap(), ids);
}

#[test]
fn a_folders_rows_without_a_token_have_no_text_and_tokens_without_a_row_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::bytes().save(&folder.path().join("tokenizer.json")).unwrap();
    let tokenizer = |vocab| {
        let saved = model(Architecture { vocab, ..sizes(3) }, 1);
        saved.save(folder.path()).unwrap();
        ModelSource::open(folder.path()).unwrap().tokenizer()
    };
    let padded = tokenizer(270).unwrap();
    assert_eq!((padded.vocab_size(), padded.decode(&[72, 269, 105]).unwrap()), (264, "Hi".into()));
    assert!(padded.decode(&[270]).is_err());
    let error = tokenizer(260).unwrap_err().to_string();
    assert!(error.contains("the tokenizer has 264 tokens, but the model only 260:"), "{error}");
}

#[test]
fn float16_rounds_matrices_and_leaves_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let saved = model(sizes(3), 1);
    saved.export_gguf(&path, "small", &Tokenizer::bytes(), GgufNumbers::Float16).unwrap();
    let read = stock(&open(&path));
    for (name, tensor) in stock(&saved) {
        let expected = match tensor.dim() {
            2 => tensor.to_kind(Kind::Half).to_kind(Kind::Float),
            _ => tensor,
        };
        assert_eq!(read[&name], expected, "{name}");
    }
}

#[test]
fn what_gguf_cannot_say_is_named_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |model: &MultiTokenModel, words: &[&str]| {
        let numbers = GgufNumbers::Float16;
        let error = model.export_gguf(&path, "small", &Tokenizer::bytes(), numbers).unwrap_err();
        let error = error.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!path.exists());
    };
    let qwen = Architecture { qkv_bias: true, rope_scaling: LLAMA3, ..sizes(3) };
    refused(&model(qwen, 1), &["GGUF", "qwen2"]);
    refused(&model(Architecture { vocab: 200, ..sizes(3) }, 1), &["264", "200"]);
    let large = model(sizes(3), 1);
    let _ = large.unembedding().detach().fill_(70_000.0);
    refused(&large, &["lm_head.weight", "float16"]);
}

#[test]
fn medusa_heads_have_the_tensors_and_keys_that_vllm_reads() {
    let folder = tempfile::tempdir().unwrap();
    let model = medusa(4);
    model.export_medusa(folder.path()).unwrap();
    let tensors = read_safetensors(&folder.path().join("model.safetensors")).unwrap();
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let expected = [
        "blocks.0.layers.0.bias",
        "blocks.0.layers.0.weight",
        "blocks.1.layers.0.bias",
        "blocks.1.layers.0.weight",
        "blocks.2.layers.0.bias",
        "blocks.2.layers.0.weight",
        "lm_heads.0.weight",
    ];
    assert_eq!(names, expected);
    assert_eq!(tensors["lm_heads.0.weight"], model.unembedding().detach());
    let last = model.heads()[3].as_dense().unwrap();
    assert_eq!(tensors["blocks.2.layers.0.weight"], last.weight.detach());
    assert_eq!(tensors["blocks.2.layers.0.bias"], last.bias.unwrap().detach());

    let config = fs::read(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let expected = json!({
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": 24,
        "vocab_size": 270,
        "truncated_vocab_size": 270,
        "num_heads": 3,
        "num_hidden_layers": 1,
        "medusa_fc_bias": true,
        "original_lm_head": true,
        "torch_dtype": "float32",
    });
    assert_eq!(config, expected);
    // As vLLM reads keys: one of each, or the last one wins.
    let keys: Vec<&String> = config.as_object().unwrap().keys().collect();
    for part in ["heads", "layers"] {
        let read = keys.iter().filter(|key| key.contains("num") && key.contains(part));
        assert_eq!(read.count(), 1, "{part}");
    }
}

#[test]
fn a_draft_vocabulary_becomes_medusas_token_map() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = medusa(2);
    model.set_draft_vocabulary(Some(vec![7, 256, 3])).unwrap();
    model.export_medusa(folder.path()).unwrap();
    let tensors = read_safetensors(&folder.path().join("model.safetensors")).unwrap();
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let map = Tensor::from_slice(&[3i64, 7, 256]);
    assert_eq!(tensors["token_map"], map);
    let rows = model.unembedding().detach().index_select(0, &map);
    assert_eq!(tensors["lm_heads.0.weight"], rows);
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    assert!(config.contains("\"truncated_vocab_size\": 3"), "{config}");
    assert!(config.contains("\"vocab_size\": 270"), "{config}");
}

#[test]
fn other_heads_than_medusas_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let leaping = HeadsConfig::new("medusa", 3).with_offsets(vec![0, 1, 3]).unwrap();
    let leaping = model(sizes(3), 1).grow(&leaping, &Registry::stock(), 3).unwrap();
    for (model, word) in
        [(model(sizes(5), 3), "\"block\""), (model(sizes(3), 1), "no head"), (leaping, "[0, 1, 3]")]
    {
        let error = model.export_medusa(&out).unwrap_err().to_string();
        assert!(error.contains("Medusa") && error.contains(word), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn a_new_folder_is_whole_or_not_there_and_never_replaces_one() {
    let dir = tempfile::tempdir().unwrap();
    let names = || {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let out = dir.path().join("out");
    let failed = NewFolder::at(&out).unwrap().fill(|folder| {
        fs::write(folder.join("x"), "half").unwrap();
        medusa(1).export_medusa(folder)
    });
    assert!(failed.is_err() && names().is_empty());

    fs::create_dir(&out).unwrap();
    NewFolder::at(&out).unwrap().fill(|folder| medusa(2).export_medusa(folder)).unwrap();
    assert_eq!(names(), ["out"]);
    assert!(out.join("config.json").exists());
    fs::write(dir.path().join("file"), "").unwrap();
    for taken in ["out", "file"] {
        let error = NewFolder::at(&dir.path().join(taken)).unwrap_err().to_string();
        assert!(error.contains(taken) && error.contains("something already"), "{error}");
    }
}

/// A file with merges, special tokens and a chat template, and the length of what stands before its
/// tensors.
fn with_merges(folder: &Path) -> (Vec<u8>, usize) {
    let path = folder.join("whole.gguf");
    let vocabulary = Vocabulary {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens: ["h", "i", "hi", "o", "hio", "<s>", "</s>"].map(str::to_owned).to_vec(),
        token_types: Some(vec![1, 1, 1, 1, 1, 3, 3]),
        merges: vec!["h i".to_owned(), "hi o".to_owned()],
        bos: Some(5),
        eos: Some(6),
        add_bos: Some(true),
        chat_template: Some("{% for m in messages %}<s>{{ m.content }}{% endfor %}".to_owned()),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let model = model(Architecture { vocab: 12, ..sizes(2) }, 1);
    model.export_gguf(&path, "small", &tokenizer, GgufNumbers::Float32).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = bytes.len() - 4 * model.parameter_count();
    (bytes, header)
}

/// All that a user's command makes of a file before it decodes.
fn used(path: &Path) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
    let source = ModelSource::open(path)?;
    let tokenizer = source.tokenizer()?;
    source.model(Kind::Float, Device::Cpu)?;
    let template = tokenizer.chat_template()?;
    let text = match &template {
        Some(template) => template.render(&[Message::new("user", "hio")], true)?,
        None => "hio".to_owned(),
    };
    let ids = tokenizer.encode_chat(&text)?;
    tokenizer.decode(&ids)?;
    Ok(ids)
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test -p foretoken-heads --test exports` for a long run.
    #[test]
    fn a_damaged_file_with_a_tokenizer_ends_in_an_error_or_is_used(
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        word in prop::option::of((any::<usize>(), prop::sample::select(vec![
            u64::MAX, 1 << 63, 1 << 40, 1 << 32, 1 << 16, 12, 1, 0,
        ]))),
        cut in prop::option::weighted(0.1, any::<usize>()),
    ) {
        thread_local! {
            static WHOLE: (tempfile::TempDir, Vec<u8>, usize) = {
                let folder = tempfile::tempdir().unwrap();
                let (bytes, header) = with_merges(folder.path());
                (folder, bytes, header)
            };
        }
        WHOLE.with(|(folder, whole, header)| {
            let path = folder.path().join("damaged.gguf");
            let undamaged = changes.is_empty() && word.is_none() && cut.is_none();
            let mut bytes = whole.clone();
            for (at, value) in changes {
                bytes[at % header] = value;
            }
            if let Some((at, word)) = word {
                let at = at % (header - 8);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            if let Some(cut) = cut {
                bytes.truncate(cut % header);
            }
            fs::write(&path, &bytes).unwrap();
            match used(&path) {
                Ok(ids) => assert!(!undamaged || ids == [5, 4], "{ids:?}"),
                Err(error) => {
                    assert!(!undamaged, "{error}");
                    assert_eq!(error.to_string().lines().count(), 1, "{error}");
                }
            }
        });
    }
}
