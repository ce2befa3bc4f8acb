//! A tokenizer read from a `tokenizer.json`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::files::sha256_hex;
use crate::{Error, Result};

/// Names that vocabularies give the token between documents, the likeliest first.
const END_OF_TEXT_NAMES: [&str; 9] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<EOT>",
    "<|EOT|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
];

/// The `tokenizers` library's tokenizer, with the file it came from.
pub(crate) struct FileTokenizer {
    plain: tokenizers::Tokenizer,
    with_specials: OnceLock<tokenizers::Tokenizer>,
    json: Vec<u8>,
    config: Option<Vec<u8>>,
    sha256: String,
    vocab_size: usize,
    end_of_text: Option<u32>,
    specials: HashSet<u32>,
}

impl std::fmt::Debug for FileTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTokenizer")
            .field("sha256", &self.sha256)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl FileTokenizer {
    pub(super) fn new(path: &Path, json: Vec<u8>) -> Result<Self> {
        let refuse = |problem: String| Error::TokenizerFile {
            path: path.to_path_buf(),
            problem: one_line(&problem),
        };
        let mut plain =
            tokenizers::Tokenizer::from_bytes(&json).map_err(|e| refuse(e.to_string()))?;
        plain
            .with_truncation(None)
            .map_err(|e| refuse(e.to_string()))?
            .with_padding(None)
            .set_encode_special_tokens(true);

        let largest = plain.get_vocab(true).into_values().max();
        let vocab_size =
            largest.ok_or_else(|| refuse("its vocabulary is empty".to_owned()))? as usize + 1;
        let specials = plain
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let config = std::fs::read(path.with_file_name("tokenizer_config.json")).ok();
        let named = config.as_deref().and_then(eos_name);
        let end_of_text = named
            .as_deref()
            .into_iter()
            .chain(END_OF_TEXT_NAMES)
            .find_map(|name| plain.token_to_id(name));
        Ok(Self {
            plain,
            with_specials: OnceLock::new(),
            sha256: sha256_hex(&json),
            json,
            config,
            vocab_size,
            end_of_text,
            specials,
        })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.plain.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.with_specials.get_or_init(|| {
            let mut tokenizer = self.plain.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        });
        let encoding = tokenizer.encode_fast(text, true).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        ids.iter().try_for_each(|&id| self.check(id))?;
        self.plain.decode(ids, true).map_err(failed)
    }

    pub(super) fn check(&self, id: u32) -> Result<()> {
        if (id as usize) < self.vocab_size {
            return Ok(());
        }
        Err(Error::UnknownToken { id, vocab_size: self.vocab_size })
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    pub(super) fn json(&self) -> &[u8] {
        &self.json
    }

    /// The `tokenizer_config.json` that lay beside the file, or one that says the least.
    pub(super) fn config_json(&self) -> Vec<u8> {
        self.config.clone().unwrap_or_else(|| {
            let mut config = json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": false,
            });
            if let Some(name) = self.end_of_text.and_then(|id| self.plain.id_to_token(id)) {
                config["eos_token"] = json!(name);
            }
            format!("{config:#}\n").into_bytes()
        })
    }
}

/// `eos_token` is a string, or an object with the string as its `content`.
fn eos_name(config: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let token = &config["eos_token"];
    let name = token.as_str().or_else(|| token["content"].as_str())?;
    Some(name.to_owned())
}

#[allow(clippy::needless_pass_by_value)] // the form that `map_err` takes
fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizing { problem: one_line(&error.to_string()) }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
