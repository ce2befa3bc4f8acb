//! A tokenizer read from a `tokenizer.json`.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::ChatTemplate;
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
    chat_template: Option<String>,
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
        let refused = |path: PathBuf| |problem| Error::BesideTokenizer { path, problem };
        let beside = path.with_file_name("tokenizer_config.json");
        let config = read_if_there(&beside)?;
        if let Some(config) = &config {
            serde_json::from_slice::<Map<String, Value>>(config)
                .map_err(|error| refused(beside)(format!("not a JSON object: {error}")))?;
        }
        let beside = path.with_file_name("chat_template.jinja");
        let template = read_if_there(&beside)?.map(String::from_utf8).transpose();
        let template = template.map_err(|error| refused(beside)(format!("no text: {error}")))?;
        check(&json)
            .and_then(|()| Self::from_parts(json, config, template))
            .map_err(|problem| Error::TokenizerFile { path: path.to_path_buf(), problem })
    }

    /// The tokenizer of a `tokenizer.json`, and of what may lie beside it: a
    /// `tokenizer_config.json` and a `chat_template.jinja`.
    pub(super) fn from_parts(
        json: Vec<u8>,
        config: Option<Vec<u8>>,
        chat_template: Option<String>,
    ) -> Result<Self, String> {
        let mut plain = guarded(|| tokenizers::Tokenizer::from_bytes(&json))?;
        plain
            .with_truncation(None)
            .map_err(|e| said(&e))?
            .with_padding(None)
            .set_encode_special_tokens(true);

        let largest = plain.get_vocab(true).into_values().max();
        let vocab_size = largest.ok_or("its vocabulary is empty")? as usize + 1;
        let specials = plain
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
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
            chat_template,
            vocab_size,
            end_of_text,
            specials,
        })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.plain, text, false)
    }

    pub(super) fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        ids(self.with_specials(), text, true)
    }

    pub(super) fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        ids(self.with_specials(), text, false)
    }

    fn with_specials(&self) -> &tokenizers::Tokenizer {
        self.with_specials.get_or_init(|| {
            let mut tokenizer = self.plain.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        })
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        ids.iter().try_for_each(|&id| self.check(id))?;
        guarded(|| self.plain.decode(ids, true)).map_err(|problem| Error::Tokenizing { problem })
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

    /// The library's tokenizer, which recognises no special token in a text.
    pub(super) fn library(&self) -> &tokenizers::Tokenizer {
        &self.plain
    }

    /// The id of the token that the config has under `key`.
    pub(super) fn named(&self, key: &str) -> Option<u32> {
        self.plain.token_to_id(&token_name(&self.config()[key])?)
    }

    pub(super) fn json(&self) -> &[u8] {
        &self.json
    }

    /// The `tokenizer_config.json` that lay beside the file, or one that says the least, with the
    /// template of a `chat_template.jinja` in it.
    pub(super) fn config_json(&self) -> Vec<u8> {
        if let (Some(config), None) = (&self.config, &self.chat_template) {
            return config.clone();
        }
        let mut config = match self.config() {
            Value::Object(config) => config,
            _ => self.least_config(),
        };
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".to_owned(), json!(template));
        }
        format!("{:#}\n", Value::Object(config)).into_bytes()
    }

    fn least_config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        if let Some(name) = self.end_of_text.and_then(|id| self.plain.id_to_token(id)) {
            config.insert("eos_token".to_owned(), json!(name));
        }
        config
    }

    pub(super) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.template_source() else { return Ok(None) };
        let config = self.config();
        let name = |key: &str| token_name(&config[key]);
        ChatTemplate::new(&source, name("bos_token"), name("eos_token")).map(Some)
    }

    /// A `chat_template.jinja` goes before the config's own template, as in `transformers`.
    pub(super) fn template_source(&self) -> Option<String> {
        let config = self.config();
        let source = self.chat_template.as_deref();
        source.or_else(|| default_template(&config["chat_template"])).map(str::to_owned)
    }

    /// Null where there is no config, or one that is no JSON.
    fn config(&self) -> Value {
        parsed(self.config.as_deref().unwrap_or_default())
    }
}

fn parsed(config: &[u8]) -> Value {
    serde_json::from_slice(config).unwrap_or_default()
}

fn eos_name(config: &[u8]) -> Option<String> {
    token_name(&parsed(config)["eos_token"])
}

/// A token is a string, or an object with the string as its `content`.
fn token_name(token: &Value) -> Option<String> {
    let name = token.as_str().or_else(|| token["content"].as_str())?;
    Some(name.to_owned())
}

/// A config has one template, or several that are named.
fn default_template(templates: &Value) -> Option<&str> {
    templates.as_str().or_else(|| {
        let named = templates.as_array()?.iter().find(|named| named["name"] == "default")?;
        named["template"].as_str()
    })
}

/// None where there is no such file.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str, specials: bool) -> Result<Vec<u32>> {
    let encoding = guarded(|| tokenizer.encode_fast(text, specials));
    let encoding = encoding.map_err(|problem| Error::Tokenizing { problem })?;
    Ok(encoding.get_ids().to_vec())
}

/// What a library makes of a file or a text, or what it says is wrong. Libraries index and unwrap
/// where a file contradicts itself; nothing that one left half done is used again.
pub(super) fn guarded<T, E: std::fmt::Display>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| said(&error)),
        Err(_) => Err("damaged: it contradicts itself, and the library gives up".to_owned()),
    }
}

/// The parts of a `tokenizer.json` that [`check`] looks at.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Refuses what the library would stumble over: it expects some parts to be whole, and believes
/// the length that a table of characters claims to have.
fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|error| said(&error))?;
    for normalizer in of_type(&parts.normalizer, "Precompiled") {
        check_table(normalizer["precompiled_charsmap"].as_str().unwrap_or_default())?;
    }
    for template in of_type(&parts.post_processor, "TemplateProcessing") {
        for piece in template["single"].as_array().into_iter().flatten() {
            let Some(id) = piece["SpecialToken"]["id"].as_str() else { continue };
            if template["special_tokens"].get(id).is_none() {
                return Err(format!("its template adds {id:?}, which it does not explain"));
            }
        }
    }
    Ok(())
}

/// The objects of a type in a part of a file, those of a sequence among them.
fn of_type<'v>(part: &'v Value, name: &str) -> Vec<&'v Value> {
    let mut found = Vec::new();
    let mut left = vec![part];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(object) => {
                if object.get("type").is_some_and(|kind| kind == name) {
                    found.push(value);
                }
                left.extend(object.values());
            }
            Value::Array(values) => left.extend(values),
            _ => {}
        }
    }
    found
}

/// Base64 of the bytes that a table has, little-endian in four, and of the table.
fn check_table(text: &str) -> Result<(), String> {
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let first = text.as_bytes().get(..6).and_then(|letters| {
        letters.iter().try_fold(0_u64, |bits, &letter| Some(bits << 6 | u64::from(digit(letter)?)))
    });
    // Six letters of six bits: four bytes and four bits more.
    let claimed = first.map(|bits| ((bits >> 4) as u32).swap_bytes() as usize);
    match claimed {
        Some(bytes @ 4..) if bytes <= text.len() / 4 * 3 => Ok(()),
        _ => Err("damaged: the table of its normalizer is not as long as it says".to_owned()),
    }
}

fn said(error: &dyn std::fmt::Display) -> String {
    one_line(&error.to_string())
}

pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
