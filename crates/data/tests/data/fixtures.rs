//! Corpora and tokenizers to test with.

use std::fs;
use std::path::{Path, PathBuf};

use foretoken_data::{
    CorpusSource, Manifest, PrepareOptions, Result, Split, SplitFractions, TokenShard, Tokenizer,
    open_split, prepare,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A folder that goes when the test ends.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

pub(crate) fn options(source: CorpusSource, out_dir: &Path) -> PrepareOptions {
    PrepareOptions {
        source,
        tokenizer: Tokenizer::bytes(),
        out_dir: out_dir.to_path_buf(),
        name: "trial".to_owned(),
        split: SplitFractions::default(),
    }
}

pub(crate) fn run(options: &PrepareOptions) -> Result<Manifest> {
    prepare(options, &|_| {})
}

/// All documents of a split as text.
pub(crate) fn documents(dir: &Path, split: Split, tokenizer: &Tokenizer) -> Vec<String> {
    let shard = open_split(dir, split).unwrap();
    (0..shard.documents()).map(|index| document(&shard, index, tokenizer)).collect()
}

pub(crate) fn document(shard: &TokenShard, index: usize, tokenizer: &Tokenizer) -> String {
    let range = shard.document(index).unwrap();
    tokenizer.decode(&shard.tokens(range).unwrap()).unwrap()
}

/// Python that no filter minds; no two seeds share a telling line.
pub(crate) fn module(seed: usize, functions: usize) -> String {
    (0..functions)
        .map(|index| {
            format!(
                "def compute_value_{seed}_{index}(argument):\n    \
                 result_{seed}_{index} = argument + helper\n    \
                 return result_{seed}_{index}\n\n"
            )
        })
        .collect()
}

/// A byte-level BPE with a few merges, made by hand: ids 0 to 255 in the alphabet's order, then
/// merges, then `<|endoftext|>` (special) and `<mark>` (special).
pub(crate) fn bpe_json() -> Value {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab: Map<String, Value> = Map::new();
    for (id, character) in alphabet.iter().enumerate() {
        vocab.insert(character.to_string(), json!(id));
    }
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "©")];
    for (left, right) in merges {
        let id = vocab.len();
        vocab.insert(format!("{left}{right}"), json!(id));
    }
    let end = vocab.len();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(end, "<|endoftext|>"), special(end + 1, "<mark>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab,
                  "merges": merges.map(|(left, right)| format!("{left} {right}"))},
    })
}

/// A word-piece-free vocabulary with bytes to fall back on and `▁` for spaces, as sentence-piece
/// models have: ids 0 to 255 are `<0x00>` … `<0xFF>`, then `▁`, letters, `▁a`.
pub(crate) fn fallback_json() -> Value {
    let mut vocab: Map<String, Value> =
        (0..256).map(|byte| (format!("<0x{byte:02X}>"), json!(byte))).collect();
    for piece in ["▁", "a", "b", "c", "▁a"] {
        let id = vocab.len();
        vocab.insert(piece.to_owned(), json!(id));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "ignore_merges": false, "vocab": vocab, "merges": ["▁ a"]},
    })
}

pub(crate) fn tokenizer_of(json: &Value) -> Tokenizer {
    let folder = folder();
    let path = write(folder.path(), "tokenizer.json", json.to_string());
    Tokenizer::from_file(&path).unwrap()
}
