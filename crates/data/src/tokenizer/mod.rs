//! Text to token ids and back.

mod bytes;
mod chat;
mod describe;
mod file;
mod layout;
mod merges;
mod problem;
mod stream;
mod vocabulary;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::bytes::ByteVocabulary;
pub use self::chat::{ChatTemplate, Message};
use self::file::FileTokenizer;
pub use self::problem::VocabularyProblem;
pub use self::stream::StreamDecoder;
pub use self::vocabulary::Vocabulary;
use crate::files::write_atomically;
use crate::{Error, Result};

/// Turns text into token ids and back: one id a byte, or whatever a `tokenizer.json` says.
///
/// Cheap to clone. Two tokenizers are the same, but for [their models'
/// rows](Tokenizer::with_rows), where their [`TokenizerInfo`]s are equal.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    /// Rows of its model's embedding; 0 where there is no telling.
    rows: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    Bytes,
    File(Arc<FileTokenizer>),
}

impl From<Kind> for Tokenizer {
    fn from(kind: Kind) -> Self {
        Self { kind, rows: 0 }
    }
}

/// What a manifest and a checkpoint remember of a tokenizer, to recognise it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// `bytes` or `file`.
    pub kind: String,
    /// SHA-256 of the `tokenizer.json`, in hexadecimal.
    pub sha256: String,
    /// One more than the largest id.
    pub vocab_size: usize,
    /// The id between documents, if there is one.
    pub end_of_text: Option<u32>,
}

impl std::fmt::Display for TokenizerInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = self.sha256.get(..12).unwrap_or(&self.sha256);
        write!(f, "the `{}` tokenizer {short} ({} tokens)", self.kind, self.vocab_size)
    }
}

impl Tokenizer {
    /// The byte-level tokenizer: ids 0 to 255 are the bytes of UTF-8, 256 is `<|endoftext|>`,
    /// 257 to 263 are reserved special tokens.
    pub fn bytes() -> Self {
        Kind::Bytes.into()
    }

    /// Reads any `tokenizer.json` of the `tokenizers` library.
    ///
    /// A byte-level one as [`save`](Self::save) writes it is recognised and costs nothing to run.
    /// The end-of-text token is the `eos_token` of a `tokenizer_config.json` beside it, else the
    /// first of the usual names (`<|endoftext|>`, `</s>`, …) that the vocabulary has.
    ///
    /// # Errors
    /// When the file is missing or is not a tokenizer, or a `tokenizer_config.json` or
    /// `chat_template.jinja` beside it is damaged.
    pub fn from_file(path: &Path) -> Result<Self> {
        let raw = std::fs::read(path).map_err(Error::io("read", path))?;
        if ByteVocabulary::describes(&raw) {
            return Ok(Self::bytes());
        }
        let file = FileTokenizer::new(path, raw)?;
        Ok(Kind::File(Arc::new(file)).into())
    }

    /// Makes the tokenizer that a GGUF file's metadata describes. [`save`](Self::save) then writes
    /// it as a `tokenizer.json`.
    ///
    /// # Errors
    /// When the vocabulary contradicts itself, or is of a kind that is not known.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Self> {
        let file = vocabulary.tokenizer()?;
        Ok(Kind::File(Arc::new(file)).into())
    }

    /// What a GGUF file's metadata says of this tokenizer: the way back from
    /// [`from_vocabulary`](Self::from_vocabulary), which makes a tokenizer with the same ids of it.
    ///
    /// Byte-level BPEs can be told whose way to cut texts has a name among GGUF files, and
    /// sentence-piece BPEs that fall back on bytes. A vocabulary of pieces has merges, and scores
    /// in their order, since llama.cpp merges by score alone.
    ///
    /// # Errors
    /// When it is a tokenizer of another kind; what differs is named.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        match &self.kind {
            Kind::Bytes => {
                let (json, config) = (ByteVocabulary::json(), ByteVocabulary::config_json());
                FileTokenizer::from_parts(json, Some(config), None)
                    .map_err(|problem| Error::NoVocabulary { problem })?
                    .vocabulary()
            }
            Kind::File(file) => file.vocabulary(),
        }
    }

    /// The tokenizer that a config's `tokenizer` key names: `bytes`, or the path of a
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "bytes" => Ok(Self::bytes()),
            path => Self::from_file(Path::new(path)),
        }
    }

    /// The tokenizer of a model whose embedding has so many rows: those behind the vocabulary, by
    /// which publishers round it up, are tokens without text from now on, and no longer unknown.
    ///
    /// ```
    /// # fn main() -> foretoken_data::Result<()> {
    /// let bytes = foretoken_data::Tokenizer::bytes();
    /// assert!(bytes.decode(&[72, 300, 105]).is_err());
    /// assert_eq!(bytes.with_rows(320).decode(&[72, 300, 105])?, "Hi");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// Ids without text behind the vocabulary.
    fn silent(&self) -> Range<usize> {
        self.vocab_size()..self.rows
    }

    /// The ids of a text, taken as plain text: no special token is added, and one that is spelt
    /// out in the text is not recognised. What corpora and plain prompts are made of.
    ///
    /// # Errors
    /// When a `tokenizer.json`'s model fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::File(file) => file.encode(text),
        }
    }

    /// The ids of a prompt in which special tokens may be spelt out (`<|endoftext|>`, the marks of
    /// a chat), with those around it that a `tokenizer.json` asks for, such as a begin-of-text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(ByteVocabulary::encode_with_specials(text)),
            Kind::File(file) => file.encode_with_specials(text),
        }
    }

    /// The ids of a prompt that a [`ChatTemplate`] made: the special tokens spelt out in it are
    /// recognised, and none is added, since the template has put a begin-of-text where it wants one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(ByteVocabulary::encode_with_specials(text)),
            Kind::File(file) => file.encode_chat(text),
        }
    }

    /// The text of some ids. Special tokens have no text; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// For an id outside the vocabulary, unless [its model has it](Self::with_rows).
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let silent = self.silent();
        let spoken: Vec<u32> =
            ids.iter().copied().filter(|&id| !silent.contains(&(id as usize))).collect();
        let ids = spoken.as_slice();
        match &self.kind {
            Kind::Bytes => {
                let bytes = ids
                    .iter()
                    .filter_map(|&id| ByteVocabulary::byte(id).transpose())
                    .collect::<Result<Vec<u8>>>()?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::File(file) => file.decode(ids),
        }
    }

    /// A decoder for ids that go on from `text`: where words begin with a space that the beginning of a
    /// text does not have, theirs keep it.
    ///
    /// # Errors
    /// For an id outside the vocabulary, unless its model has it.
    pub fn stream_after(&self, text: &[u32]) -> Result<StreamDecoder> {
        let mut stream = self.stream();
        if let Some(&last) = text.last() {
            stream.follow(last)?;
        }
        Ok(stream)
    }

    /// A decoder for ids that come one after the other.
    pub fn stream(&self) -> StreamDecoder {
        match &self.kind {
            Kind::Bytes => StreamDecoder::bytes(self.silent()),
            Kind::File(file) => StreamDecoder::file(Arc::clone(file), self.silent()),
        }
    }

    /// One more than the largest id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Bytes => ByteVocabulary::SIZE,
            Kind::File(file) => file.vocab_size(),
        }
    }

    /// The id that stands between documents and ends a generation.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => Some(ByteVocabulary::END_OF_TEXT),
            Kind::File(file) => file.end_of_text(),
        }
    }

    /// The template that makes prompts of chats: a `chat_template.jinja` beside the
    /// `tokenizer.json`, else the `chat_template` of the `tokenizer_config.json`.
    ///
    /// # Errors
    /// When there is a template and it is none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.kind {
            Kind::Bytes => Ok(None),
            Kind::File(file) => file.chat_template(),
        }
    }

    /// What to recognise this tokenizer by.
    pub fn info(&self) -> TokenizerInfo {
        let (kind, sha256) = match &self.kind {
            Kind::Bytes => ("bytes", ByteVocabulary::sha256()),
            Kind::File(file) => ("file", file.sha256().to_owned()),
        };
        TokenizerInfo {
            kind: kind.to_owned(),
            sha256,
            vocab_size: self.vocab_size(),
            end_of_text: self.end_of_text(),
        }
    }

    /// Writes the `tokenizer.json` to `path`, and beside it the `tokenizer_config.json` by which
    /// `transformers` takes the file as it is instead of guessing from the model's type. Each is
    /// written whole or not at all.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (json, config) = match &self.kind {
            Kind::Bytes => (ByteVocabulary::json(), ByteVocabulary::config_json()),
            Kind::File(file) => (file.json().to_vec(), file.config_json()),
        };
        write_atomically(path, &json)?;
        write_atomically(&path.with_file_name("tokenizer_config.json"), &config)
    }
}
