//! The parts of a `tokenizer.json` around its vocabulary, as the Hugging Face converters lay them
//! out.

use serde_json::{Map, Value, json};

use super::problem::VocabularyProblem;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The last is Chinese, all that lies between Samaritan and Chinese, and Korean.
const DEEPSEEK_CODER: [&str; 4] = [
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+",
];

/// How a byte-level model cuts text before it merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// GPT-2's pattern: words, numbers, signs, spaces.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    Digits,
    /// Llama 3's pattern.
    Llama3,
    /// Qwen 2's pattern.
    Qwen2,
    /// The pattern of Mistral's Tekken.
    Tekken,
    /// The patterns of the first `deepseek` code models.
    DeepSeekCoder,
}

/// The names that GGUF files give the ways to cut.
///
/// `smollm` cuts digits off in llama.cpp and in the models' own `tokenizer.json`; `transformers`
/// does not do so when it reads a GGUF file. The ids here are the same as those of `transformers`.
/// llama.cpp's differ where spaces or line ends stand before a digit, or one space before a digit that
/// is none of ASCII's.
const CUTS: [(&str, Cut); 14] = [
    ("gpt-2", Cut::Gpt2),
    ("phi-2", Cut::Gpt2),
    ("smollm", Cut::Gpt2),
    ("starcoder", Cut::Digits),
    ("refact", Cut::Digits),
    ("llama-bpe", Cut::Llama3),
    ("llama3", Cut::Llama3),
    ("llama-v3", Cut::Llama3),
    ("falcon3", Cut::Llama3),
    ("pixtral", Cut::Llama3),
    ("qwen2", Cut::Qwen2),
    ("deepseek-r1-qwen", Cut::Qwen2),
    ("tekken", Cut::Tekken),
    ("deepseek-coder", Cut::DeepSeekCoder),
];

/// What a tokenizer is built as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    ByteLevel(Cut),
    /// With whether a space is put before the text.
    SentencePiece {
        space_before: bool,
    },
}

/// A token that goes around every text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    pub(super) id: u32,
    pub(super) name: &'a str,
}

impl Cut {
    /// Files older than the names have none, and are GPT-2's as `transformers` reads them.
    pub(super) fn named(name: Option<&str>) -> Result<Self, VocabularyProblem> {
        let name = name.unwrap_or("gpt-2");
        let found = CUTS.iter().find(|(known, _)| *known == name);
        found.map(|&(_, cut)| cut).ok_or_else(|| VocabularyProblem::UnknownPreTokenizer {
            name: name.to_owned(),
            known: CUTS.map(|(known, _)| format!("`{known}`")).join(", "),
        })
    }

    /// The name to write: one by which llama.cpp cuts the same way.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Digits => "starcoder",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
            Self::Tekken => "tekken",
            Self::DeepSeekCoder => "deepseek-coder",
        }
    }

    fn steps(self) -> Vec<Value> {
        let digits = json!({"type": "Digits", "individual_digits": true});
        match self {
            Self::Gpt2 => vec![byte_level(false, true)],
            Self::Digits => vec![digits, byte_level(false, true)],
            Self::Llama3 => vec![split(LLAMA3), byte_level(false, false)],
            Self::Qwen2 => vec![split(QWEN2), byte_level(false, false)],
            Self::Tekken => vec![split(TEKKEN), byte_level(false, false)],
            Self::DeepSeekCoder => {
                let patterns = DEEPSEEK_CODER.into_iter().map(split);
                patterns.chain([digits, byte_level(false, false)]).collect()
            }
        }
    }
}

impl Model {
    pub(super) const ALL: [Self; 8] = [
        Self::ByteLevel(Cut::Gpt2),
        Self::ByteLevel(Cut::Digits),
        Self::ByteLevel(Cut::Llama3),
        Self::ByteLevel(Cut::Qwen2),
        Self::ByteLevel(Cut::Tekken),
        Self::ByteLevel(Cut::DeepSeekCoder),
        Self::SentencePiece { space_before: true },
        Self::SentencePiece { space_before: false },
    ];

    /// Whether a prompt begins with a begin-of-text where a file does not say.
    pub(super) fn begins_with_bos(self) -> bool {
        matches!(self, Self::SentencePiece { .. } | Self::ByteLevel(Cut::Llama3 | Cut::Tekken))
    }

    pub(super) fn normalizer(self) -> Value {
        match self {
            Self::ByteLevel(Cut::Qwen2) => json!({"type": "NFC"}),
            Self::ByteLevel(_) => Value::Null,
            Self::SentencePiece { space_before } => {
                let before = space_before.then(|| json!({"type": "Prepend", "prepend": "▁"}));
                let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
                let steps: Vec<Value> = before.into_iter().chain([spaces]).collect();
                json!({"type": "Sequence", "normalizers": steps})
            }
        }
    }

    pub(super) fn pre_tokenizer(self) -> Value {
        match self {
            Self::ByteLevel(Cut::Gpt2) => byte_level(false, true),
            Self::ByteLevel(cut) => json!({"type": "Sequence", "pretokenizers": cut.steps()}),
            Self::SentencePiece { .. } => Value::Null,
        }
    }

    pub(super) fn decoder(self) -> Value {
        match self {
            Self::ByteLevel(_) => byte_level(true, true),
            Self::SentencePiece { space_before } => {
                let mut steps = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if space_before {
                    steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                json!({"type": "Sequence", "decoders": steps})
            }
        }
    }

    /// The model without its vocabulary and merges.
    pub(super) fn bpe(self, unknown: Option<&str>) -> Value {
        let pieces = matches!(self, Self::SentencePiece { .. });
        let affix = if pieces { Value::Null } else { json!("") };
        // Tokens that their own merges do not reach are taken whole.
        let ignores_merges = matches!(self, Self::ByteLevel(Cut::Llama3 | Cut::Tekken));
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": if pieces { unknown } else { None },
            "continuing_subword_prefix": affix,
            "end_of_word_suffix": affix,
            "fuse_unk": pieces,
            "byte_fallback": pieces,
            "ignore_merges": ignores_merges,
        })
    }
}

/// Puts `first` and `last` around a text, and around each one of a pair.
pub(super) fn post_processor(first: Option<Mark<'_>>, last: Option<Mark<'_>>) -> Value {
    let around = |sequence: &str, type_id: u32| -> Vec<Value> {
        let special =
            |mark: Mark<'_>| json!({"SpecialToken": {"id": mark.name, "type_id": type_id}});
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        let parts = [first.map(special), Some(text), last.map(special)];
        parts.into_iter().flatten().collect()
    };
    let single = around("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(around("B", 1)).collect();
    let specials: Map<String, Value> = [first, last]
        .into_iter()
        .flatten()
        .map(|Mark { id, name }| {
            (name.to_owned(), json!({"id": name, "ids": [id], "tokens": [name]}))
        })
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": specials,
    })
}

pub(super) fn added_token(id: usize, name: &str, special: bool) -> Value {
    json!({
        "id": id,
        "content": name,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": special,
    })
}

pub(super) fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": false,
    })
}
