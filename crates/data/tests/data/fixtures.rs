//! Corpora and tokenizers to test with.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foretoken_data::{
    CorpusSource, Manifest, PrepareOptions, Result, Split, SplitFractions, TokenShard, Tokenizer,
    Vocabulary, open_split, prepare,
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

/// A shard of texts, each a document, all for training. It stays mapped when its folder is gone.
pub(crate) fn shard_of(texts: &[String], tokenizer: Tokenizer) -> Arc<TokenShard> {
    let root = folder();
    let records: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
    let path = write(root.path(), "records.jsonl", records);
    let out = root.path().join("shards");
    let mut options = options(CorpusSource::Path(path), &out);
    options.tokenizer = tokenizer;
    options.split = SplitFractions::all_train();
    run(&options).unwrap();
    Arc::new(open_split(&out, Split::Train).unwrap())
}

/// Texts of the given lengths, rounded up to whole numbers, in which every [`TELLING`] bytes occur
/// once: they begin with `mark` and count on.
pub(crate) fn counted(mark: char, lengths: &[usize]) -> Vec<String> {
    let mut numbers = 0..;
    let text = |&length: &usize| -> String {
        let words = length.div_ceil(WORD);
        numbers.by_ref().take(words).map(|number: usize| format!("{mark}{number:05} ")).collect()
    };
    lengths.iter().map(text).collect()
}

/// Bytes of a number in [`counted`] texts.
pub(crate) const WORD: usize = 7;
/// The fewest tokens that tell their place in [`counted`] texts.
pub(crate) const TELLING: usize = 16;

/// The place of each window of `columns` tokens, found by looking.
pub(crate) fn places(shard: &TokenShard, columns: usize) -> HashMap<Vec<i64>, usize> {
    let mut tokens = Vec::new();
    shard.extend_indices(0..shard.len(), &mut tokens).unwrap();
    let windows = tokens.windows(columns).map(<[i64]>::to_vec);
    let places: HashMap<_, _> = windows.zip(0..).collect();
    assert_eq!(places.len(), tokens.len() - columns + 1, "windows repeat");
    places
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

/// The vocabulary of [`bpe_json`] as a GGUF file has it, with `SmolLM`'s special tokens: after the
/// merges come `<|endoftext|>`, `<|im_start|>` and `<|im_end|>` (control), and `<mark>`
/// (user-defined).
pub(crate) fn byte_level_vocabulary() -> Vocabulary {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©"];
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let first_special = tokens.len();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<mark>"].map(str::to_owned));
    let mut token_types = vec![1; first_special];
    token_types.extend([3, 3, 3, 4]);
    let special = first_special as u32;
    Vocabulary {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        token_types: Some(token_types),
        merges: merges.map(str::to_owned).to_vec(),
        bos: Some(special + 1),
        eos: Some(special + 2),
        unknown: Some(special),
        ..Vocabulary::default()
    }
}

/// A vocabulary of pieces with scores: `<unk>`, `<s>` and `</s>`, 256 bytes from 3 on, and from
/// 259 on pieces that make `▁hello`, and two that would make `</s>`.
pub(crate) fn piece_vocabulary() -> Vocabulary {
    let pieces = [
        ("▁", -10.0),
        ("h", -11.0),
        ("e", -12.0),
        ("l", -13.0),
        ("o", -14.0),
        ("he", -1.0),
        ("ll", -2.0),
        ("hell", -3.0),
        ("hello", -4.0),
        ("▁hello", -5.0),
        ("<", -20.0),
        ("/", -21.0),
        ("s", -22.0),
        (">", -23.0),
        ("</", -6.0),
        ("s>", -7.0),
    ];
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend(bytes);
    tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
    let mut token_types = vec![2, 3, 3];
    token_types.resize(259, 6);
    token_types.resize(tokens.len(), 1);
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.iter().map(|(_, score)| *score));
    Vocabulary {
        model: "llama".to_owned(),
        tokens,
        token_types: Some(token_types),
        scores: Some(scores),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..Vocabulary::default()
    }
}
