//! GGUF files, whole, damaged and hostile.

use foretoken_trunk::gguf::{GgufFile, GgufValue, GgufWeights, write_gguf};
use foretoken_trunk::io::WeightReader;
use foretoken_trunk::{Architecture, Initialiser, Trunk};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

const DIM: i64 = 8;
const FFN: i64 = 12;
const VOCAB: i64 = 10;

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

fn metadata() -> Vec<(String, GgufValue)> {
    let unsigned = [
        ("llama.block_count", 2),
        ("llama.embedding_length", DIM as u32),
        ("llama.feed_forward_length", FFN as u32),
        ("llama.attention.head_count", 2),
        ("llama.context_length", 32),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 4),
    ];
    let mut all: Vec<(String, GgufValue)> =
        unsigned.map(|(key, n)| (key.to_owned(), GgufValue::Unsigned(n))).to_vec();
    let text = |text: &str| GgufValue::Text(text.to_owned());
    all.push(("general.architecture".into(), text("llama")));
    all.push(("llama.attention.layer_norm_rms_epsilon".into(), GgufValue::Float(1e-5)));
    let tokens = (0..VOCAB).map(|i| format!("token {i}")).collect();
    all.push(("tokenizer.ggml.tokens".into(), GgufValue::Texts(tokens)));
    all.push(("tokenizer.ggml.add_bos_token".into(), GgufValue::Flag(true)));
    all.push(("tokenizer.ggml.token_type".into(), GgufValue::Integers(vec![1; VOCAB as usize])));
    all
}

/// Embedding and final norm, then nine tensors a block.
fn tensors() -> Vec<(String, Tensor)> {
    let mut all = vec![
        ("token_embd.weight".to_owned(), random(&[VOCAB, DIM])),
        ("output_norm.weight".to_owned(), random(&[DIM])),
    ];
    for layer in 0..2 {
        for (name, size) in [
            ("attn_norm", vec![DIM]),
            ("attn_q", vec![DIM, DIM]),
            ("attn_k", vec![DIM / 2, DIM]),
            ("attn_v", vec![DIM / 2, DIM]),
            ("attn_output", vec![DIM, DIM]),
            ("ffn_norm", vec![DIM]),
            ("ffn_gate", vec![FFN, DIM]),
            ("ffn_up", vec![FFN, DIM]),
            ("ffn_down", vec![DIM, FFN]),
        ] {
            all.push((format!("blk.{layer}.{name}.weight"), random(&size)));
        }
    }
    all
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, metadata: &[(String, GgufValue)], tensors: &[(String, Tensor)]) -> PathBuf {
        let path = self.0.path().join("model.gguf");
        write_gguf(&path, metadata, tensors).unwrap();
        path
    }
}

/// Everything that opening a model does.
fn read(path: &Path) -> foretoken_trunk::Result<Architecture> {
    let file = Arc::new(GgufFile::open(path)?);
    let sizes = file.architecture()?;
    file.texts("tokenizer.ggml.tokens")?;
    file.numbers("tokenizer.ggml.token_type")?;
    file.flag("tokenizer.ggml.add_bos_token")?;
    let mut reader = WeightReader::new(Box::new(GgufWeights::new(Arc::clone(&file), &sizes)?));
    reader.check_size(sizes.numbers(sizes.layers))?;
    let init = Initialiser::unset(Kind::Float, Device::Cpu);
    let trunk = Trunk::new(&sizes, sizes.layers, &init)?;
    for parameter in trunk.parameters() {
        reader.fill(&parameter)?;
    }
    reader.fill_view("model.norm.weight", &mut init.norm(sizes.dim as i64)?.detach())?;
    reader.finish()?;
    Ok(sizes)
}

fn named<'t>(tensors: &'t [(String, Tensor)], name: &str) -> &'t Tensor {
    &tensors.iter().find(|(other, _)| other == name).unwrap().1
}

#[test]
fn a_file_gives_back_its_sizes_and_numbers() {
    let folder = Folder::new();
    let tensors = tensors();
    let path = folder.write(&metadata(), &tensors);
    let sizes = read(&path).unwrap();
    assert_eq!((sizes.vocab, sizes.layers, sizes.kv_heads), (VOCAB as usize, 2, 1));
    assert!(sizes.tied && !sizes.qkv_bias);

    let file = Arc::new(GgufFile::open(&path).unwrap());
    assert_eq!(file.texts("tokenizer.ggml.tokens").unwrap().unwrap()[3], "token 3");
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    let mut reader = WeightReader::new(Box::new(GgufWeights::new(file, &sizes).unwrap()));
    let mut down = Tensor::zeros([DIM, FFN], (Kind::Float, Device::Cpu));
    reader.fill_view("model.layers.1.mlp.down_proj.weight", &mut down).unwrap();
    assert_eq!(&down, named(&tensors, "blk.1.ffn_down.weight"));

    // Two heads of four rows: pairs (0, 1) and (2, 3) of the file are (0, 2) and (1, 3) here.
    let mut query = Tensor::zeros([DIM, DIM], (Kind::Double, Device::Cpu));
    reader.fill_view("model.layers.0.self_attn.q_proj.weight", &mut query).unwrap();
    let order = Tensor::from_slice(&[0i64, 2, 1, 3, 4, 6, 5, 7]);
    let stored = named(&tensors, "blk.0.attn_q.weight").index_select(0, &order);
    assert_eq!(query, stored.to_kind(Kind::Double));
}

#[test]
fn what_is_missing_or_has_no_place_is_named() {
    let folder = Folder::new();
    let refused =
        |metadata: &[(String, GgufValue)], tensors: &[(String, Tensor)], words: &[&str]| {
            let error = read(&folder.write(metadata, tensors)).unwrap_err().to_string();
            assert!(error.contains("model.gguf"), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert_eq!(error.lines().count(), 1);
        };
    for i in 0..tensors().len() {
        let mut fewer = tensors();
        let (name, _) = fewer.remove(i);
        let word = if name == "token_embd.weight" { "token_embd" } else { "is missing" };
        refused(&metadata(), &fewer, &[word]);
    }
    let mut renamed = tensors();
    renamed[4].0 = "blk.0.attn_kk.weight".into();
    refused(&metadata(), &renamed, &["k_proj", "missing"]);
    let mut more = tensors();
    more.push(("blk.0.ffn_gate_inp.weight".into(), random(&[4, DIM])));
    refused(&metadata(), &more, &["blk.0.ffn_gate_inp.weight", "no place"]);
    let mut turned = tensors();
    turned[2 + 8].1 = random(&[FFN, DIM]);
    refused(&metadata(), &turned, &["down_proj", "shape"]);
    for i in 0..5 {
        let mut fewer = metadata();
        let (key, _) = fewer.remove(i);
        refused(&fewer, &tensors(), &[&key, "missing"]);
    }
    let mut other = metadata();
    other[7].1 = GgufValue::Text("gemma".into());
    refused(&other, &tensors(), &["gemma", "not supported"]);
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let folder = Folder::new();
    let path = folder.write(&metadata(), &tensors());
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..bytes.len() - 32).step_by(7) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(read(&path).is_err(), "{len} of {} bytes", bytes.len());
    }
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test -p foretoken-trunk --test gguf` for a long run.
    #[test]
    fn damaged_headers_end_in_an_error_or_a_model(
        changes in prop::collection::vec((0usize..2600, any::<u8>()), 1..6),
        word in prop::option::of((0usize..2600, prop::sample::select(vec![
            u64::MAX, u64::MAX / 2, 1 << 63, 1 << 32, 1 << 40, (1 << 24) + 1, 0, 1,
        ]))),
        cut in prop::option::of(0usize..4000),
    ) {
        thread_local! {
            static WHOLE: (Folder, PathBuf, Vec<u8>) = {
                let folder = Folder::new();
                let path = folder.write(&metadata(), &tensors());
                let bytes = std::fs::read(&path).unwrap();
                (folder, path, bytes)
            };
        }
        WHOLE.with(|(_, path, whole)| {
            let mut bytes = whole.clone();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Some((at, word)) = word {
                let at = at % (bytes.len() - 8);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            std::fs::write(path, &bytes).unwrap();
            if let Err(error) = read(path) {
                assert_eq!(error.to_string().lines().count(), 1);
            }
        });
    }
}
