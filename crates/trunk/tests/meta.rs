//! Meta's checkpoints, whole, damaged and hostile.

#[path = "support/torch_file.rs"]
mod torch_file;

use foretoken_trunk::io::WeightReader;
use foretoken_trunk::meta::MetaCheckpoint;
use foretoken_trunk::{Architecture, Block, Initialiser, Trunk};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use torch_file::{Spec, archive, entries, file, pickle, specs};

const DIM: i64 = 8;
const FFN: i64 = 24;
const VOCAB: i64 = 10;
/// Heads of four rows: pairs (0, 1) and (2, 3) of the file are (0, 2) and (1, 3) in the model.
const ORDER: [i64; 8] = [0, 2, 1, 3, 4, 6, 5, 7];
const FILE: &str = "consolidated.pth";

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Two query heads of width 4, one key head; four layers in all, of which two are extra heads.
fn params() -> Value {
    json!({
        "dim": DIM, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "vocab_size": -1,
        "multiple_of": 4, "ffn_dim_multiplier": null, "norm_eps": 1e-6, "rope_theta": 10000.0,
        "n_future_tokens": 3, "max_seq_len": 32,
    })
}

/// Nine tensors a layer, those of the extra heads in bfloat16, then the ends.
fn tensors() -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    for (layer, kind) in [
        ("layers.0", Kind::Float),
        ("layers.1", Kind::Half),
        ("extra_heads.0", Kind::BFloat16),
        ("extra_heads.1", Kind::BFloat16),
    ] {
        for (part, size) in [
            ("attention.wq", vec![DIM, DIM]),
            ("attention.wk", vec![DIM / 2, DIM]),
            ("attention.wv", vec![DIM / 2, DIM]),
            ("attention.wo", vec![DIM, DIM]),
            ("feed_forward.w1", vec![FFN, DIM]),
            ("feed_forward.w2", vec![DIM, FFN]),
            ("feed_forward.w3", vec![FFN, DIM]),
            ("attention_norm", vec![DIM]),
            ("ffn_norm", vec![DIM]),
        ] {
            all.push((format!("{layer}.{part}.weight"), random(&size, kind)));
        }
    }
    for (name, size) in [
        ("tok_embeddings.weight", vec![VOCAB, DIM]),
        ("norm.weight", vec![DIM]),
        ("output.weight", vec![VOCAB, DIM]),
    ] {
        all.push((name.to_owned(), random(&size, Kind::Float)));
    }
    all
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(params: &Value, weights: &[u8]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.path().join("params.json"), params.to_string()).unwrap();
        fs::write(folder.path().join(FILE), weights).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The error of reading, which is one line and names a file of the folder.
    fn refused(&self) -> String {
        let error = read(self.path()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(&*self.path().to_string_lossy()), "{error}");
        error
    }
}

#[track_caller]
fn expect(error: &str, words: &[&str]) {
    assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
}

/// Everything that opening a model does.
fn read(folder: &Path) -> foretoken_trunk::Result<Architecture> {
    let MetaCheckpoint { architecture: sizes, heads, weights } = MetaCheckpoint::open(folder)?;
    let mut reader = WeightReader::new(Box::new(weights));
    reader.check_size(sizes.numbers(sizes.layers), sizes.tensors(sizes.layers))?;
    reader.check_context(&sizes)?;
    let init = Initialiser::unset(Kind::Float, Device::Cpu);
    let trunk = Trunk::new(&sizes, sizes.layers - heads, &init)?;
    let mut parameters = trunk.parameters();
    let first = format!("model.layers.{}.", sizes.layers - heads);
    parameters.extend(Block::new(&sizes, &init)?.parameters(&first));
    for head in 1..heads {
        parameters.extend(Block::new(&sizes, &init)?.parameters(&format!("heads.{head}.")));
    }
    for parameter in &parameters {
        reader.fill(parameter)?;
    }
    let (vocab, dim) = (sizes.vocab as i64, sizes.dim as i64);
    reader.fill_view("model.norm.weight", &mut init.norm(dim)?.detach())?;
    reader.fill_view("lm_head.weight", &mut init.embedding(vocab, dim)?.detach())?;
    reader.check_all_taken()?;
    Ok(sizes)
}

fn filled(reader: &mut WeightReader, name: &str, size: &[i64]) -> Tensor {
    let mut tensor = Tensor::zeros(size, (Kind::Double, Device::Cpu));
    reader.fill_view(name, &mut tensor).unwrap();
    tensor
}

fn named(tensors: &[(String, Tensor)], name: &str) -> Tensor {
    tensors.iter().find(|(other, _)| other == name).unwrap().1.to_kind(Kind::Double)
}

#[test]
fn a_checkpoint_gives_back_its_sizes_and_numbers() {
    let tensors = tensors();
    let folder = Folder::new(&params(), &file(&tensors));
    let sizes = read(folder.path()).unwrap();
    assert_eq!((sizes.vocab, sizes.layers, sizes.kv_heads), (VOCAB as usize, 4, 1));
    assert_eq!((sizes.ffn, sizes.context, sizes.norm_eps), (FFN as usize, 32, 1e-6));

    let checkpoint = MetaCheckpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.heads, 3);
    let mut reader = WeightReader::new(Box::new(checkpoint.weights));
    for (stock, own, size) in [
        ("lm_head.weight", "output.weight", [VOCAB, DIM]),
        ("model.layers.1.mlp.down_proj.weight", "layers.1.feed_forward.w2.weight", [DIM, FFN]),
        ("heads.1.self_attn.v_proj.weight", "extra_heads.0.attention.wv.weight", [DIM / 2, DIM]),
        ("heads.2.mlp.up_proj.weight", "extra_heads.1.feed_forward.w3.weight", [FFN, DIM]),
    ] {
        assert_eq!(filled(&mut reader, stock, &size), named(&tensors, own));
    }
    for (stock, own, order) in [
        ("model.layers.1.self_attn.q_proj.weight", "layers.1.attention.wq.weight", &ORDER[..]),
        ("heads.2.self_attn.k_proj.weight", "extra_heads.1.attention.wk.weight", &ORDER[..4]),
    ] {
        let stored = named(&tensors, own).index_select(0, &Tensor::from_slice(order));
        assert_eq!(filled(&mut reader, stock, &[order.len() as i64, DIM]), stored);
    }
}

/// `support/torch_save.pth` is the state dict of a module with these names, written by PyTorch 2:
/// dim 4, ffn 4, vocabulary 3, one head of attention, one layer of the trunk, two heads. All of its
/// numbers, in order, are 0, 1, 2, …, those of the extra head in bfloat16.
#[test]
fn a_file_of_pytorch_itself_is_read() {
    let params = json!({"dim": 4, "n_layers": 3, "n_heads": 1, "vocab_size": -1, "multiple_of": 1,
        "ffn_dim_multiplier": 0.4, "n_future_tokens": 2});
    let folder = Folder::new(&params, include_bytes!("support/torch_save.pth"));
    let sizes = read(folder.path()).unwrap();
    assert_eq!((sizes.ffn, sizes.vocab, sizes.context), (4, 3, 4096));
    let weights = MetaCheckpoint::open(folder.path()).unwrap().weights;
    let mut reader = WeightReader::new(Box::new(weights));
    let block = 7 * 16 + 2 * 4;
    for (name, start, size) in [
        ("model.embed_tokens.weight", 0, vec![3, 4]),
        ("model.layers.0.self_attn.v_proj.weight", 12 + 2 * 16, vec![4, 4]),
        ("model.layers.1.mlp.down_proj.weight", 12 + block + 5 * 16, vec![4, 4]),
        ("model.norm.weight", 12 + 2 * block, vec![4]),
        ("lm_head.weight", 16 + 2 * block, vec![3, 4]),
        ("heads.1.input_layernorm.weight", 28 + 2 * block + 7 * 16, vec![4]),
    ] {
        let count: i64 = size.iter().product();
        let numbers = Tensor::arange_start(start, start + count, (Kind::Float, Device::Cpu));
        let kind = if name.starts_with("heads") { Kind::BFloat16 } else { Kind::Float };
        let expected = numbers.to_kind(kind).to_kind(Kind::Double).view(size.as_slice());
        assert_eq!(filled(&mut reader, name, &size), expected, "{name}");
    }
}

#[test]
fn what_is_missing_or_has_no_place_is_named_as_the_file_calls_it() {
    for i in 0..tensors().len() {
        let mut fewer = tensors();
        let (name, _) = fewer.remove(i);
        expect(&Folder::new(&params(), &file(&fewer)).refused(), &[&name, "is missing"]);
    }
    for unknown in [
        "layers.0.attention.wq.bias",
        "layers.2.ffn_norm.weight",
        "extra_heads.2.ffn_norm.weight",
        "model.norm.weight",
    ] {
        let mut more = tensors();
        more.push((unknown.to_owned(), random(&[DIM], Kind::Float)));
        expect(&Folder::new(&params(), &file(&more)).refused(), &[unknown, "no place"]);
    }
    let mut with_rotary = tensors();
    with_rotary.push(("rope.freqs".to_owned(), random(&[2], Kind::Float)));
    read(Folder::new(&params(), &file(&with_rotary)).path()).unwrap();
    let mut turned = tensors();
    turned[5].1 = random(&[FFN, DIM], Kind::Float);
    expect(&Folder::new(&params(), &file(&turned)).refused(), &["feed_forward.w2", "shape"]);
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_the_key_named() {
    let weights = file(&tensors());
    let with = |key: &str, value: Value| {
        let mut changed = params();
        changed[key] = value;
        Folder::new(&changed, &weights)
    };
    for key in ["dim", "n_layers", "n_heads"] {
        expect(&with(key, Value::Null).refused(), &[key, "missing", "params.json"]);
        expect(&with(key, json!(1e30)).refused(), &[key, "whole number"]);
        expect(&with(key, json!(-1)).refused(), &[key, "whole number"]);
    }
    expect(&with("n_future_tokens", json!(4)).refused(), &["n_future_tokens", "n_layers"]);
    expect(&with("n_future_tokens", json!(0)).refused(), &["n_future_tokens"]);
    expect(&with("n_future_tokens", json!(2)).refused(), &["layers.2.", "is missing"]);
    expect(&with("n_layers", json!(3)).refused(), &["n_layers"]);
    expect(&with("n_layers", json!(1 << 24)).refused(), &["layers.2.", "is missing"]);
    expect(&with("dim", json!(1 << 20)).refused(), &["holds", "numbers"]);
    expect(&with("use_scaled_rope", json!(true)).refused(), &["use_scaled_rope"]);
    expect(&with("rope_theta", json!("much")).refused(), &["rope_theta"]);
    read(with("use_scaled_rope", json!(false)).path()).unwrap();
    read(with("n_future_tokens", Value::Null).path()).unwrap();
    let folder = Folder::new(&params(), &weights);
    fs::write(folder.path().join("params.json"), "[").unwrap();
    expect(&folder.refused(), &["params.json", "not a JSON object"]);
}

#[test]
fn weights_in_one_file_are_found_and_those_in_several_refused() {
    let folder = Folder::new(&params(), &file(&tensors()));
    assert!(MetaCheckpoint::is_in(folder.path()));
    fs::rename(folder.path().join(FILE), folder.path().join("consolidated.00.pth")).unwrap();
    read(folder.path()).unwrap();
    fs::write(folder.path().join("consolidated.01.pth"), "").unwrap();
    expect(&folder.refused(), &["consolidated.01.pth", "model parallelism"]);
    fs::remove_file(folder.path().join("consolidated.00.pth")).unwrap();
    expect(&folder.refused(), &["consolidated.01.pth", "model parallelism"]);
    fs::remove_file(folder.path().join("consolidated.01.pth")).unwrap();
    expect(&folder.refused(), &["there is no consolidated.pth"]);
    assert!(!MetaCheckpoint::is_in(folder.path()));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let whole = file(&tensors());
    let folder = Folder::new(&params(), &whole);
    for len in (0..whole.len()).step_by(13) {
        fs::write(folder.path().join(FILE), &whole[..len]).unwrap();
        folder.refused();
    }
}

#[test]
fn a_pickle_that_asks_for_more_than_tensors_is_refused_by_name() {
    let deep = [b"\x80\x02)".as_slice(), &[0x85_u8; 20], b"."].concat();
    let mut many = b"\x80\x02".to_vec();
    many.resize((1 << 20) + 3, b'N');
    let cases: [(&[u8], &str); 21] = [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "os.system"),
        (b"\x80\x02c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93.", "posix.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n.", "_rebuild_parameter"),
        (b"\x80\x02ctorch\nLongStorage\n.", "torch.LongStorage"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "makes an object"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "more than tensors"),
        (b"\x80\x02}}b.", "attributes"),
        (b"\x80\x02].", "list"),
        (b"\x80\x02(0.", "0x30"),
        (b"\x80\x02X\x01\0\0\0aQ.", "storage"),
        (b"\x80\x02}X\x01\0\0\0aK\x01s.", "entry a is no tensor"),
        (b"\x80\x02}q\0X\x01\0\0\0ah\0s.", "entry a is no tensor"),
        (b"\x80\x02.", "no dictionary"),
        (b"\x80\x02}.}", "behind its end"),
        (b"\x80\x02R.", "lacks its values"),
        (b"\x80\x02t.", "group"),
        (b"\x80\x02h\0.", "not kept"),
        (b"\x80\x02X\xff\xff\xff\xff", "cut short"),
        (&deep, "deep"),
        (&many, "values"),
    ];
    for (pickle, word) in cases {
        let bytes = archive(&entries(pickle.to_vec(), &tensors()));
        expect(&Folder::new(&params(), &bytes).refused(), &["data.pkl", word]);
    }
    let whole = pickle(&specs(&tensors()));
    for len in (0..whole.len()).step_by(7) {
        let bytes = archive(&entries(whole[..len].to_vec(), &tensors()));
        expect(&Folder::new(&params(), &bytes).refused(), &["data.pkl"]);
    }
}

#[test]
fn a_tensor_that_is_not_in_its_storage_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Spec)| {
        let tensors = tensors();
        let mut specs = specs(&tensors);
        change(&mut specs[3]);
        let error = Folder::new(&params(), &archive(&entries(pickle(&specs), &tensors))).refused();
        expect(&error, &["layers.0.attention.wo.weight"]);
        error
    };
    expect(&refused(&|spec| spec.offset = 1), &["outside of its storage"]);
    expect(&refused(&|spec| spec.offset = i64::MAX), &["outside of its storage"]);
    expect(&refused(&|spec| spec.shape = vec![DIM, DIM + 1]), &["strides"]);
    expect(&refused(&|spec| spec.strides = vec![1, DIM]), &["do not lie in order"]);
    expect(&refused(&|spec| spec.shape = vec![i64::MAX, i64::MAX]), &["shape"]);
    expect(&refused(&|spec| spec.shape = vec![0, DIM]), &["shape"]);
    expect(&refused(&|spec| spec.numbers = 63), &["63 numbers"]);
    expect(&refused(&|spec| spec.numbers = i64::MAX), &["numbers"]);
    expect(&refused(&|spec| spec.class = "HalfStorage"), &["numbers"]);
    expect(&refused(&|spec| spec.storage = "../version".into()), &["not in the archive"]);
    expect(&refused(&|spec| spec.storage = "0".into()), &["shares numbers"]);

    // Before it is known whose storage it is: a name may stand for many tensors.
    let mut long = specs(&tensors());
    long[3].storage = "0".repeat(65);
    let bytes = archive(&entries(pickle(&long), &tensors()));
    expect(&Folder::new(&params(), &bytes).refused(), &["name has 65 bytes"]);
}

#[test]
fn an_archive_that_is_wrong_is_refused() {
    let tensors = tensors();
    let plain = || entries(pickle(&specs(&tensors)), &tensors);
    let refused = |bytes: &[u8], words: &[&str]| {
        expect(&Folder::new(&params(), bytes).refused(), words);
    };
    for i in 0..plain().len() {
        let mut entries = plain();
        entries[i].method = 8;
        refused(&archive(&entries), &["compressed", "torch.save"]);
    }
    let mut twice = plain();
    let last = twice.len() - 1;
    twice[last].name = twice[last - 1].name.clone();
    refused(&archive(&twice), &["twice"]);
    let mut order = plain();
    order[2].content = b"big".to_vec();
    refused(&archive(&order), &["little-endian"]);
    let mut without = plain();
    without.remove(0);
    refused(&archive(&without), &["data.pkl"]);
    refused(b"\x80\x02}.", &["zip archive", "torch.save"]);
    refused(b"", &["zip archive"]);

    let whole = archive(&plain());
    let central = whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let end = whole.len() - 22;
    let patched = |places: &[usize], value: u32| {
        let mut bytes = whole.clone();
        for &at in places {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    };
    let sizes = [central + 20, central + 24];
    refused(&patched(&[central + 42], 0xffff_fff0), &["header"]);
    refused(&patched(&[central + 42], 1), &["header"]);
    refused(&patched(&[central + 42], u32::MAX), &["zip64"]);
    refused(&patched(&sizes, u32::MAX), &["zip64"]);
    refused(&patched(&sizes, u32::MAX - 1), &["cut short or damaged"]);
    refused(&patched(&sizes[..1], 7), &["two sizes"]);
    refused(&patched(&[central + 8], 1), &["encrypted"]);
    refused(&patched(&[end + 12], 7), &["disagree"]);
    refused(&patched(&[end - 20 + 8], u32::MAX), &["zip64 end record"]);
    refused(&patched(&[end - 20 - 56 + 48 + 4], 1), &["damaged"]);
    refused(&patched(&[end - 20 - 56 + 32], u32::MAX), &["damaged"]);
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test -p foretoken-trunk --test meta` for a long run.
    #[test]
    fn damaged_files_end_in_an_error_or_a_model(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_pickle in prop::collection::vec((0usize..8000, any::<u8>()), 0..3),
        word in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(vec![
            u64::MAX, u64::MAX / 2, 1 << 63, 1 << 32, 1 << 40, (1 << 24) + 1, 0, 1,
        ]))),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static WHOLE: (Folder, Vec<u8>) = {
                let bytes = file(&tensors());
                (Folder::new(&params(), &bytes), bytes)
            };
        }
        WHOLE.with(|(folder, whole)| {
            let mut bytes = whole.clone();
            // The pickle is the first entry and the part with a structure to break.
            for (at, value) in in_pickle {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some((at, word)) = word {
                let at = at.index(bytes.len() - 8);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(folder.path().join(FILE), &bytes).unwrap();
            if let Err(error) = read(folder.path()) {
                assert_eq!(error.to_string().lines().count(), 1);
            }
        });
    }
}
