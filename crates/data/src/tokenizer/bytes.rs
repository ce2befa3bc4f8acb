//! The byte-level vocabulary, and the `tokenizer.json` by which other tools read it.

use serde_json::{Map, Value, json};

use crate::files::sha256_hex;
use crate::{Error, Result};

/// 256 bytes, then the special tokens.
pub(super) struct ByteVocabulary;

const SPECIALS: [&str; 8] = [
    "<|endoftext|>",
    "<|reserved_1|>",
    "<|reserved_2|>",
    "<|reserved_3|>",
    "<|reserved_4|>",
    "<|reserved_5|>",
    "<|reserved_6|>",
    "<|reserved_7|>",
];

impl ByteVocabulary {
    pub(super) const SIZE: usize = 256 + SPECIALS.len();
    pub(super) const END_OF_TEXT: u32 = 256;

    /// The byte of an id; none for a special token.
    pub(super) fn byte(id: u32) -> Result<Option<u8>> {
        match u8::try_from(id) {
            Ok(byte) => Ok(Some(byte)),
            Err(_) if (id as usize) < Self::SIZE => Ok(None),
            Err(_) => Err(Error::UnknownToken { id, vocab_size: Self::SIZE }),
        }
    }

    pub(super) fn encode_with_specials(text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let special = SPECIALS.iter().position(|name| rest.starts_with(name));
            if let Some(index) = special {
                ids.push(256 + index as u32);
                rest = &rest[SPECIALS[index].len()..];
            } else {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                ids.push(u32::from(first));
                ids.extend(rest.bytes().take(length).skip(1).map(u32::from));
                rest = &rest[length..];
            }
        }
        ids
    }

    /// A BPE without merges over the printable stand-ins that byte-level tokenizers give the
    /// bytes, so that each byte stays a token of its own.
    pub(super) fn json() -> Vec<u8> {
        let vocab: Map<String, Value> =
            (0..=u8::MAX).map(|byte| (printable(byte).to_string(), json!(byte))).collect();
        let added: Vec<Value> = SPECIALS
            .iter()
            .enumerate()
            .map(|(index, name)| {
                json!({
                    "id": 256 + index,
                    "content": name,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": true,
                })
            })
            .collect();
        let byte_level = json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": false,
            "use_regex": false,
        });
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": [],
            },
        });
        format!("{file:#}\n").into_bytes()
    }

    pub(super) fn config_json() -> Vec<u8> {
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIALS[0],
            "clean_up_tokenization_spaces": false,
        });
        format!("{config:#}\n").into_bytes()
    }

    pub(super) fn sha256() -> String {
        sha256_hex(&Self::json())
    }

    /// Whether a `tokenizer.json` is this vocabulary, whoever wrote the file and in whatever
    /// order.
    pub(super) fn describes(raw: &[u8]) -> bool {
        let Ok(file) = serde_json::from_slice::<Value>(raw) else {
            return false;
        };
        let byte_level = |part: &Value| part["type"] == "ByteLevel";
        let vocab = file["model"]["vocab"].as_object();
        let added = file["added_tokens"].as_array();
        file["model"]["type"] == "BPE"
            && file["model"]["merges"].as_array().is_some_and(Vec::is_empty)
            && vocab.is_some_and(|vocab| {
                vocab.len() == 256
                    && (0..=u8::MAX)
                        .all(|byte| vocab.get(&printable(byte).to_string()) == Some(&json!(byte)))
            })
            && added.is_some_and(|added| {
                added.len() == SPECIALS.len()
                    && added.iter().zip(SPECIALS).enumerate().all(|(index, (token, name))| {
                        token["id"] == json!(256 + index)
                            && token["content"] == name
                            && token["special"] == true
                    })
            })
            && byte_level(&file["pre_tokenizer"])
            && file["pre_tokenizer"]["add_prefix_space"] == false
            && byte_level(&file["decoder"])
            && file["normalizer"].is_null()
            && adds_nothing(&file["post_processor"])
    }
}

/// Some tools write a template without special tokens where there was no post-processor.
fn adds_nothing(post_processor: &Value) -> bool {
    let template = post_processor["type"] == "TemplateProcessing"
        && post_processor["special_tokens"] == json!({})
        && post_processor["single"].as_array().is_some_and(|parts| parts.len() == 1);
    post_processor.is_null() || template
}

/// The character that stands for a byte in byte-level vocabularies: itself where Latin-1 prints
/// something, else the next free one from U+0100 on.
pub(super) fn printable(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if prints(byte) {
        char::from(byte)
    } else {
        let place = (0..byte).filter(|&other| !prints(other)).count() as u32;
        char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}
