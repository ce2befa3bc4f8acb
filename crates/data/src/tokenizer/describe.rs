//! A tokenizer as a GGUF file's metadata has it: the way back from a [`Vocabulary`].

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::bytes::printable;
use super::file::{FileTokenizer, one_line};
use super::layout::{self, Model};
use super::merges::halves;
use super::vocabulary::Vocabulary;
use crate::{Error, Result};

/// Ids that a vocabulary may reach: keeps a hostile file from asking for all memory.
const MOST_TOKENS: usize = 1 << 22;

/// The types that GGUF files give tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A part of a `tokenizer.json` as a model has it.
type Part = fn(Model) -> Value;

/// The parts that tell models apart, and what they call their steps.
const PARTS: [(&str, &str, Part); 2] = [
    ("pre_tokenizer", "pretokenizers", Model::pre_tokenizer),
    ("normalizer", "normalizers", Model::normalizer),
];

impl FileTokenizer {
    pub(super) fn vocabulary(&self) -> Result<Vocabulary> {
        describe(self).map_err(|problem| Error::NoVocabulary { problem })
    }
}

impl Vocabulary {
    /// Adds tokens that no text has until there are `tokens` of them: llama.cpp wants one for
    /// each row of the embedding.
    pub fn pad_to(&mut self, tokens: usize) {
        let have = self.tokens.len();
        self.tokens.extend((have..tokens).map(padding));
        let tokens = self.tokens.len();
        if let Some(types) = &mut self.token_types {
            types.resize(tokens, UNUSED);
        }
        if let Some(scores) = &mut self.scores {
            let lowest = scores.iter().copied().fold(0.0, f32::min);
            scores.resize(tokens, lowest);
        }
    }
}

/// The spelling of an id without a token, as llama.cpp's converters have it.
fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

fn describe(tokenizer: &FileTokenizer) -> Result<Vocabulary, String> {
    let library = tokenizer.library();
    // The library's own form: defaults are filled in, and merges are pairs.
    let file = serde_json::to_value(library).map_err(|error| one_line(&error.to_string()))?;
    let model = built_as(&file)?;
    let pairs = pairs(&file["model"])?;
    let spelt = spelt(library)?;
    let (pieces, pre, add_space_prefix) = match model {
        Model::ByteLevel(cut) => (false, Some(cut.name().to_owned()), None),
        Model::SentencePiece { space_before } => (true, None, Some(space_before)),
    };
    let unknown = file["model"]["unk_token"].as_str().filter(|_| pieces);
    let unknown = unknown.and_then(|name| library.token_to_id(name));
    let bytes = match pieces {
        true => byte_pieces(library)?,
        false => check_alphabet(library, &file["model"]).map(|()| HashSet::new())?,
    };
    let token_types = token_types(library, &spelt, unknown, &bytes)?;
    let (first, last) = marks(&file["post_processor"])?;
    let eos = tokenizer.end_of_text().or(last);
    if last.is_some() && last != eos {
        return Err("it ends texts with another token than its end-of-text token".to_owned());
    }
    let tokens: Vec<String> = spelt
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| padding(id)))
        .collect();
    let scores = match pieces {
        true if pairs.is_empty() => return Err("its pieces have no merges".to_owned()),
        true => Some(scores(&tokens, &pairs)),
        false => None,
    };
    Ok(Vocabulary {
        model: if pieces { "llama" } else { "gpt2" }.to_owned(),
        pre,
        tokens,
        token_types: Some(token_types),
        scores,
        merges: pairs.iter().map(|(left, right)| format!("{left} {right}")).collect(),
        bos: first.or_else(|| tokenizer.named("bos_token")),
        eos,
        unknown,
        add_bos: Some(first.is_some()),
        add_eos: Some(last.is_some()),
        add_space_prefix,
        chat_template: tokenizer.template_source(),
    })
}

/// Which of the models that a vocabulary can name has the parts of this file.
fn built_as(file: &Value) -> Result<Model, String> {
    let bpe = &file["model"];
    if bpe["type"] != "BPE" {
        return Err(format!("its model is {}, and only a BPE has a name there", bpe["type"]));
    }
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        let value = &bpe[key];
        if !(value.is_null() || value == "" || value.as_f64() == Some(0.0)) {
            return Err(format!("its model has a {key}, {value}"));
        }
    }
    let mut models = Model::ALL.to_vec();
    for (part, list, expected) in PARTS {
        let mut found = steps(&file[part], list);
        // Where nothing is merged, it does not matter how texts are cut.
        let merges = bpe["merges"].as_array().is_some_and(|merges| !merges.is_empty());
        if !merges && found == [layout::byte_level(false, false)] {
            found = vec![layout::byte_level(false, true)];
        }
        models.retain(|&model| steps(&expected(model), list) == found);
        if models.is_empty() {
            return Err(format!("its {part} is none of those that have a name there"));
        }
    }
    let flags = |bpe: &Value| ["byte_fallback", "ignore_merges"].map(|key| bpe[key] == true);
    let found = flags(bpe);
    let model = models.into_iter().find(|model| flags(&model.bpe(None)) == found);
    model.ok_or_else(|| {
        let [byte_fallback, ignore_merges] = found;
        format!(
            "its model has byte_fallback {byte_fallback} and ignore_merges {ignore_merges}, other \
             than those of its pre_tokenizer"
        )
    })
}

/// The steps of a part that is missing, one step, or several in a sequence.
fn steps(part: &Value, list: &str) -> Vec<Value> {
    if part.is_null() {
        return Vec::new();
    }
    if let Some(parts) = part[list].as_array() {
        return parts.iter().flat_map(|part| steps(part, list)).collect();
    }
    let mut step = part.clone();
    // Ids do not depend on where the library says that tokens begin.
    if step.get("trim_offsets").is_some() {
        step["trim_offsets"] = json!(true);
    }
    vec![step]
}

/// The spellings by id; none where an id has no token.
fn spelt(library: &tokenizers::Tokenizer) -> Result<Vec<Option<String>>, String> {
    let mut spelt: Vec<Option<String>> = Vec::new();
    for (token, id) in library.get_vocab(true) {
        let at = id as usize;
        if at >= MOST_TOKENS {
            return Err(format!("its token `{token}` has the id {id}, {MOST_TOKENS} or more"));
        }
        if spelt.len() <= at {
            spelt.resize(at + 1, None);
        }
        if let Some(other) = spelt[at].replace(token) {
            return Err(format!("its id {id} has two spellings, one of them `{other}`"));
        }
    }
    Ok(spelt)
}

/// The ids of the pieces that stand for bytes.
fn byte_pieces(library: &tokenizers::Tokenizer) -> Result<HashSet<u32>, String> {
    (0..=u8::MAX)
        .map(|byte| {
            let piece = format!("<0x{byte:02X}>");
            library.token_to_id(&piece).ok_or_else(|| format!("it has no token `{piece}`"))
        })
        .collect()
}

/// A byte-level vocabulary is told without its unknown token, which it must not need.
fn check_alphabet(library: &tokenizers::Tokenizer, bpe: &Value) -> Result<(), String> {
    let lacks = |byte: u8| library.token_to_id(&printable(byte).to_string()).is_none();
    match (0..=u8::MAX).find(|&byte| lacks(byte)) {
        Some(byte) if !bpe["unk_token"].is_null() => {
            Err(format!("it has an unknown token, and no token for the byte {byte:#04x}"))
        }
        _ => Ok(()),
    }
}

fn token_types(
    library: &tokenizers::Tokenizer,
    spelt: &[Option<String>],
    unknown: Option<u32>,
    bytes: &HashSet<u32>,
) -> Result<Vec<i32>, String> {
    let added = library.get_added_tokens_decoder();
    let types = spelt.iter().enumerate().map(|(id, token)| {
        let id = id as u32;
        let Some(added) = added.get(&id) else {
            return Ok(match token {
                None => UNUSED,
                Some(_) if unknown == Some(id) => UNKNOWN,
                Some(_) if bytes.contains(&id) => BYTE,
                Some(_) => NORMAL,
            });
        };
        if added.lstrip || added.rstrip || added.single_word {
            let problem = "takes the spaces around it, or stands for whole words only";
            return Err(format!("its added token `{}` {problem}", added.content));
        }
        Ok(match added.special {
            _ if unknown == Some(id) => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        })
    });
    types.collect()
}

/// The merges in their order.
fn pairs(bpe: &Value) -> Result<Vec<(&str, &str)>, String> {
    let merges = bpe["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = merges.iter().map(|merge| {
        let (Some(left), Some(right)) = (merge[0].as_str(), merge[1].as_str()) else {
            return Err(format!("its merge {merge} is not of two tokens"));
        };
        let merge = format!("{left} {right}");
        match halves(&merge) == Some((left, right)) {
            true => Ok((left, right)),
            false => Err(format!("its merge `{merge}` has a space within a token")),
        }
    });
    pairs.collect()
}

/// Scores by which pieces are merged in the order of `pairs`; what no merge makes has the lowest.
fn scores(tokens: &[String], pairs: &[(&str, &str)]) -> Vec<f32> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut scores = vec![-1.0 - pairs.len() as f32; tokens.len()];
    // Backwards: the first of several merges to the same piece has the last word.
    for (rank, (left, right)) in pairs.iter().enumerate().rev() {
        if let Some(&id) = ids.get(format!("{left}{right}").as_str()) {
            scores[id] = -1.0 - rank as f32;
        }
    }
    scores
}

/// The tokens that are put before and after every text.
fn marks(post_processor: &Value) -> Result<(Option<u32>, Option<u32>), String> {
    let steps = steps(post_processor, "processors");
    let mut templates = steps.iter().filter(|step| step["type"] != "ByteLevel");
    let Some(template) = templates.next() else { return Ok((None, None)) };
    let refused =
        || "its post_processor does more than put a token before and after texts".to_owned();
    if template["type"] != "TemplateProcessing" || templates.next().is_some() {
        return Err(refused());
    }
    let parts = template["single"].as_array().ok_or_else(refused)?;
    let text = parts.iter().position(|part| !part["Sequence"].is_null()).ok_or_else(refused)?;
    let mark = |parts: &[Value]| match parts {
        [] => Ok(None),
        [one] => mark_id(template, one).map(Some).ok_or_else(refused),
        _ => Err(refused()),
    };
    Ok((mark(&parts[..text])?, mark(&parts[text + 1..])?))
}

fn mark_id(template: &Value, part: &Value) -> Option<u32> {
    let name = part["SpecialToken"]["id"].as_str()?;
    match template["special_tokens"][name]["ids"].as_array()?.as_slice() {
        [id] => u32::try_from(id.as_u64()?).ok(),
        _ => None,
    }
}
