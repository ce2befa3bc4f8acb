//! GGUF files, whole, damaged and hostile.

use foretoken_trunk::gguf::{GgufFile, GgufValue, GgufWeights, write_gguf};
use foretoken_trunk::io::WeightReader;
use foretoken_trunk::{Architecture, Initialiser, RopeScaling, Trunk};
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

/// A larger file with biases, and with matrices in blocks: a head of 16 coordinates, rows of 32
/// numbers. The numbers of a block lie where those of the same tensor in F32 would.
fn in_blocks(folder: &Folder) -> (PathBuf, Vec<u8>) {
    const WIDE: i64 = 32;
    let mut metadata = metadata();
    for (key, value) in &mut metadata {
        match key.as_str() {
            "llama.embedding_length" | "llama.feed_forward_length" => {
                *value = GgufValue::Unsigned(WIDE as u32);
            }
            "llama.rope.dimension_count" => *value = GgufValue::Unsigned(16),
            _ => {}
        }
    }
    let mut tensors: Vec<(String, Tensor)> = tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let rows = match name.as_str() {
                "token_embd.weight" => VOCAB,
                _ if name.contains("attn_k") || name.contains("attn_v") => WIDE / 2,
                _ => WIDE,
            };
            let size = if tensor.dim() == 1 { vec![WIDE] } else { vec![rows, WIDE] };
            (name, random(&size))
        })
        .collect();
    for layer in 0..2 {
        for (part, rows) in [("q", WIDE), ("k", WIDE / 2), ("v", WIDE / 2)] {
            tensors.push((format!("blk.{layer}.attn_{part}.bias"), random(&[rows])));
        }
    }
    let path = folder.write(&metadata, &tensors);
    let mut bytes = std::fs::read(&path).unwrap();
    for (name, _) in tensors.iter().filter(|(_, tensor)| tensor.dim() == 2) {
        // Q8_0 and Q4_1 by turns.
        set_format(&mut bytes, name, if name.contains("ffn") { 3 } else { 8 });
    }
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// Says that a tensor is in another format: the number after its name, and after the number and the
/// sizes of its dimensions.
fn set_format(bytes: &mut [u8], name: &str, format: u32) {
    let named = bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
    let at = named + name.len();
    let dimensions = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let at = at + 4 + 8 * dimensions;
    bytes[at..at + 4].copy_from_slice(&format.to_le_bytes());
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
    reader.check_size(sizes.numbers(sizes.layers), sizes.tensors(sizes.layers))?;
    reader.check_context(&sizes)?;
    let init = Initialiser::unset(Kind::Float, Device::Cpu);
    let trunk = Trunk::new(&sizes, sizes.layers, &init)?;
    for parameter in trunk.parameters() {
        reader.fill(&parameter)?;
    }
    reader.fill_view("model.norm.weight", &mut init.norm(sizes.dim as i64)?.detach())?;
    reader.check_all_taken()?;
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
    refused(&metadata(), &renamed, &["blk.0.attn_k.weight", "missing"]);
    let mut more = tensors();
    more.push(("blk.0.ffn_gate_inp.weight".into(), random(&[4, DIM])));
    refused(&metadata(), &more, &["blk.0.ffn_gate_inp.weight", "no place"]);
    let mut turned = tensors();
    turned[2 + 8].1 = random(&[FFN, DIM]);
    refused(&metadata(), &turned, &["ffn_down", "shape"]);
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
fn blocks_that_reach_over_rows_are_refused_where_rows_are_turned() {
    let folder = Folder::new();
    let (path, mut bytes) = in_blocks(&folder);
    read(&path).unwrap();
    set_format(&mut bytes, "blk.0.attn_q.bias", 8);
    std::fs::write(&path, &bytes).unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains("attn_q.bias") && error.contains("blocks of 32"), "{error}");
}

#[test]
fn a_name_of_hugging_face_is_not_taken_for_ggufs() {
    let folder = Folder::new();
    let mut both = tensors();
    both.push(("model.layers.0.self_attn.q_proj.weight".into(), random(&[DIM, DIM])));
    let error = read(&folder.write(&metadata(), &both)).unwrap_err().to_string();
    assert!(error.contains("self_attn.q_proj") && error.contains("blk.0.attn_q.weight"), "{error}");
}

#[test]
fn a_factor_without_a_type_scales_linearly() {
    let folder = Folder::new();
    let with = |more: &[(&str, GgufValue)]| {
        let more = more.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let metadata: Vec<_> = metadata().into_iter().chain(more).collect();
        read(&folder.write(&metadata, &tensors())).unwrap().rope_scaling
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(with(&[("llama.rope.scaling.factor", GgufValue::Float(4.0))]), linear);
    assert_eq!(with(&[("llama.rope.scale_linear", GgufValue::Float(4.0))]), linear);
    assert_eq!(with(&[("llama.rope.scale_linear", GgufValue::Float(1.0))]), RopeScaling::None);
    let none = GgufValue::Text("none".to_owned());
    let both =
        [("llama.rope.scaling.type", none), ("llama.rope.scaling.factor", GgufValue::Float(4.0))];
    assert_eq!(with(&both), RopeScaling::None);
}

#[test]
fn a_part_of_a_model_is_refused_as_that() {
    let folder = Folder::new();
    for (parts, refused) in [(0, false), (1, false), (3, true)] {
        let count = ("split.count".to_owned(), GgufValue::Unsigned(parts));
        let mut first = metadata();
        first.push(count.clone());
        // The other parts have no more metadata than that.
        let other = vec![count];
        let read = [first, other].map(|part| read(&folder.write(&part, &tensors())));
        let is_part = |error: &dyn std::fmt::Display| error.to_string().contains("one of 3 parts");
        assert_eq!(read.map(|read| read.is_err_and(|error| is_part(&error))), [refused; 2]);
    }
}

#[test]
fn a_context_out_of_all_proportion_is_refused() {
    let folder = Folder::new();
    let mut long = metadata();
    long[4].1 = GgufValue::Unsigned(1 << 24);
    let error = read(&folder.write(&long, &tensors())).unwrap_err().to_string();
    assert!(error.contains("16777216 positions"), "{error}");
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
        cut in prop::option::of(0usize..4000), blocks: bool, format in 0u32..32,
        formatted in prop::option::of(0usize..26),
    ) {
        thread_local! {
            static WHOLE: [(Folder, PathBuf, Vec<u8>); 2] = {
                let (folder, other) = (Folder::new(), Folder::new());
                let path = folder.write(&metadata(), &tensors());
                let bytes = std::fs::read(&path).unwrap();
                let (in_blocks, blocks) = in_blocks(&other);
                [(folder, path, bytes), (other, in_blocks, blocks)]
            };
        }
        WHOLE.with(|whole| {
            let (_, path, whole) = &whole[usize::from(blocks)];
            let mut bytes = whole.clone();
            if let Some(index) = formatted {
                let biases = ["blk.0.attn_q.bias", "blk.1.attn_k.bias"].map(str::to_owned);
                let names = tensors().into_iter().map(|(name, _)| name);
                let names: Vec<String> = names.chain(biases.into_iter().filter(|_| blocks)).collect();
                set_format(&mut bytes, &names[index % names.len()], format);
            }
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
