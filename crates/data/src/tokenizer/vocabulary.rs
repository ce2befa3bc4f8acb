//! A tokenizer made of what a GGUF file's metadata says of it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::file::FileTokenizer;
use super::layout::{self, Cut, Mark, Model};
use super::merges::{self, Piece};
use super::problem::VocabularyProblem;

/// Bytes of a token. The longest real ones are runs of 128 spaces, of two bytes each as byte-level
/// vocabularies spell them.
const MOST_BYTES: usize = 1024;

/// Bytes of a token that is looked for in texts, or split at each character to find merges: those
/// two cost more than the token's length.
const MOST_COSTLY_BYTES: usize = 256;

/// Tokens that are looked for in texts. Gemma has 6 thousand.
const MOST_ADDED: usize = 1 << 16;

/// What a GGUF file's metadata says of its tokenizer, in plain values: the keys `tokenizer.ggml.*`
/// and `tokenizer.chat_template`.
///
/// ```
/// # fn main() -> foretoken_data::Result<()> {
/// use foretoken_data::{Tokenizer, Vocabulary};
///
/// let tokenizer = Tokenizer::from_vocabulary(&Vocabulary {
///     model: "gpt2".to_owned(),
///     pre: Some("gpt-2".to_owned()),
///     tokens: ["h", "i", "hi", "<end>"].map(str::to_owned).to_vec(),
///     token_types: Some(vec![1, 1, 1, 3]),
///     merges: vec!["h i".to_owned()],
///     eos: Some(3),
///     ..Vocabulary::default()
/// })?;
/// assert_eq!(tokenizer.encode("hi")?, [2]);
/// assert_eq!(tokenizer.end_of_text(), Some(3));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// `gpt2` for a byte-level BPE, `llama` for a sentence-piece BPE.
    pub model: String,
    /// How a byte-level model cuts text before it merges: `llama-bpe`, `smollm`, …
    pub pre: Option<String>,
    /// The tokens in the order of their ids.
    pub tokens: Vec<String>,
    /// The tokens' types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// The pieces' scores, by which a sentence-piece model without `merges` orders them.
    pub scores: Option<Vec<f32>>,
    /// Two tokens each, with a space between them, the first to be applied first.
    pub merges: Vec<String>,
    /// The begin-of-text token.
    pub bos: Option<u32>,
    /// The end-of-text token.
    pub eos: Option<u32>,
    /// What a sentence-piece model puts where it has no piece.
    pub unknown: Option<u32>,
    /// Whether a prompt begins with `bos`; where nothing is said, those of sentence-piece models and
    /// of models that cut text as Llama 3 or Tekken do, as in llama.cpp.
    pub add_bos: Option<bool>,
    /// Whether a prompt ends with `eos`; where nothing is said, it does not.
    pub add_eos: Option<bool>,
    /// Whether a sentence-piece model puts a space before the text; where nothing is said, it does.
    pub add_space_prefix: Option<bool>,
    /// The template that makes a prompt of a chat.
    pub chat_template: Option<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Comes out of merges.
    Text,
    /// Stands for a byte that no piece covers.
    Byte,
    /// Looked for in every text.
    UserDefined,
    /// Has no text of its own; looked for only where special tokens are asked for.
    Special,
}

impl Vocabulary {
    pub(super) fn tokenizer(&self) -> Result<FileTokenizer, VocabularyProblem> {
        let model = self.built_as()?;
        let ids = self.ids()?;
        let kinds = self.kinds()?;
        let merges = self.merges(model, &ids, &kinds)?;

        let mut file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(&kinds)?,
            "normalizer": model.normalizer(),
            "pre_tokenizer": model.pre_tokenizer(),
            "post_processor": self.post_processor(model),
            "decoder": model.decoder(),
            "model": model.bpe(self.name(self.unknown)),
        });
        let vocab: Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        file["model"]["vocab"] = Value::Object(vocab);
        file["model"]["merges"] = Value::Array(merges);
        let json = format!("{file}\n").into_bytes();

        FileTokenizer::from_parts(json, Some(self.config_json()), None)
            .map_err(|problem| VocabularyProblem::Refused { problem })
    }

    fn built_as(&self) -> Result<Model, VocabularyProblem> {
        match self.model.as_str() {
            "gpt2" => {
                if self.pre.is_none() {
                    tracing::warn!(
                        "the file does not say how text is cut before it is merged \
                         (tokenizer.ggml.pre), so it is cut as for GPT-2: for a model that learned on \
                         other cuts take a newer file"
                    );
                }
                Ok(Model::ByteLevel(Cut::named(self.pre.as_deref())?))
            }
            "llama" => {
                Ok(Model::SentencePiece { space_before: self.add_space_prefix.unwrap_or(true) })
            }
            other => Err(VocabularyProblem::UnknownModel { model: other.to_owned() }),
        }
    }

    fn ids(&self) -> Result<HashMap<&str, usize>, VocabularyProblem> {
        if self.tokens.is_empty() {
            return Err(VocabularyProblem::Empty);
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            check_length(id, token, MOST_BYTES)?;
            if let Some(first) = ids.insert(token.as_str(), id) {
                let token = token.clone();
                return Err(VocabularyProblem::DuplicateToken { token, first, second: id });
            }
        }
        Ok(ids)
    }

    fn kinds(&self) -> Result<Vec<Kind>, VocabularyProblem> {
        let mut kinds = match &self.token_types {
            None => vec![Kind::Text; self.tokens.len()],
            Some(types) => {
                self.check_count("token types", types.len())?;
                types
                    .iter()
                    .enumerate()
                    .map(|(id, &found)| match found {
                        0 | 1 | 5 => Ok(Kind::Text),
                        2 | 3 => Ok(Kind::Special),
                        4 => Ok(Kind::UserDefined),
                        6 => Ok(Kind::Byte),
                        _ => Err(VocabularyProblem::UnknownType { id, found }),
                    })
                    .collect::<Result<Vec<Kind>, VocabularyProblem>>()?
            }
        };
        let named =
            [("begin-of-text", self.bos), ("end-of-text", self.eos), ("unknown", self.unknown)];
        for (what, id) in named.into_iter().filter_map(|(what, id)| Some((what, id?))) {
            let tokens = kinds.len();
            let kind = kinds.get_mut(id as usize).ok_or(VocabularyProblem::IdOutOfRange {
                what,
                id,
                tokens,
            })?;
            *kind = Kind::Special;
        }
        Ok(kinds)
    }

    fn merges(
        &self,
        model: Model,
        ids: &HashMap<&str, usize>,
        kinds: &[Kind],
    ) -> Result<Vec<Value>, VocabularyProblem> {
        if let Some(scores) = &self.scores {
            self.check_count("scores", scores.len())?;
        }
        if matches!(model, Model::ByteLevel(_)) || !self.merges.is_empty() {
            return merges::listed(&self.merges, ids);
        }
        let scores = self.scores.as_ref().ok_or(VocabularyProblem::NoScores)?;
        let mut pieces = Vec::with_capacity(self.tokens.len());
        for (id, ((token, &score), kind)) in self.tokens.iter().zip(scores).zip(kinds).enumerate() {
            // Else a text that spells `</s>` would be merged into the token that ends texts.
            if matches!(kind, Kind::Text | Kind::UserDefined) {
                check_length(id, token, MOST_COSTLY_BYTES)?;
                pieces.push(Piece { text: token, score });
            }
        }
        merges::derived(&pieces)
    }

    fn added_tokens(&self, kinds: &[Kind]) -> Result<Vec<Value>, VocabularyProblem> {
        let is_added = |kind: Kind| matches!(kind, Kind::Special | Kind::UserDefined);
        let found = kinds.iter().filter(|&&kind| is_added(kind)).count();
        if found > MOST_ADDED {
            return Err(VocabularyProblem::TooManyAdded { found, most: MOST_ADDED });
        }
        self.tokens
            .iter()
            .zip(kinds)
            .enumerate()
            .filter(|(_, (_, kind))| is_added(**kind))
            .map(|(id, (token, &kind))| {
                check_length(id, token, MOST_COSTLY_BYTES)?;
                Ok(layout::added_token(id, token, kind == Kind::Special))
            })
            .collect()
    }

    fn post_processor(&self, model: Model) -> Value {
        let mark = |id: Option<u32>| Some(Mark { id: id?, name: self.name(id)? });
        let first = mark(self.bos).filter(|_| self.add_bos.unwrap_or(model.begins_with_bos()));
        let last = mark(self.eos).filter(|_| self.add_eos.unwrap_or(false));
        layout::post_processor(first, last)
    }

    fn config_json(&self) -> Vec<u8> {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        let entries = [
            ("bos_token", self.name(self.bos)),
            ("eos_token", self.name(self.eos)),
            ("chat_template", self.chat_template.as_deref()),
        ];
        for (key, value) in entries {
            if let Some(value) = value {
                config[key] = json!(value);
            }
        }
        format!("{config:#}\n").into_bytes()
    }

    fn name(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    fn check_count(&self, what: &'static str, found: usize) -> Result<(), VocabularyProblem> {
        let tokens = self.tokens.len();
        if found == tokens {
            return Ok(());
        }
        Err(VocabularyProblem::OtherLength { what, found, tokens })
    }
}

fn check_length(id: usize, token: &str, most: usize) -> Result<(), VocabularyProblem> {
    let bytes = token.len();
    if bytes <= most {
        return Ok(());
    }
    Err(VocabularyProblem::LongToken { id, bytes, most })
}
