//! What a model consists of, and how `config.json` says it.

use crate::{Error, Registry, Result};
use foretoken_trunk::{Architecture, Error as TrunkError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Type and number of the heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct HeadsConfig {
    /// A name of the registry; heads beyond the first are of this type. Head 0 is always the stock
    /// model's last layer.
    #[serde(rename = "type")]
    pub kind: String,
    /// n, the tokens predicted at each position; 1 is the next-token baseline.
    pub count: usize,
    /// Where heads leap: head i predicts the token `offsets[i] + 1` after its position. None for
    /// heads that predict one token after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    offsets: Option<Vec<usize>>,
}

/// As a file has it, where nobody has checked the offsets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type", default = "default_kind")]
    kind: String,
    count: usize,
    offsets: Option<Vec<usize>>,
}

impl TryFrom<Written> for HeadsConfig {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let heads = Self::new(written.kind, written.count);
        match written.offsets {
            Some(offsets) => heads.with_offsets(offsets),
            None => Ok(heads),
        }
    }
}

impl HeadsConfig {
    /// Most heads that a recipe or a file of heads may ask for, far above any model's: a hostile file
    /// cannot ask for all memory.
    pub const MOST: usize = 1 << 10;

    /// `count` heads of type `kind`, head i of which predicts the token i + 1 after its position.
    pub fn new(kind: impl Into<String>, count: usize) -> Self {
        Self { kind: kind.into(), count, offsets: None }
    }

    /// The same heads, head i of which predicts the token `offsets[i] + 1` after its position (leap
    /// heads).
    ///
    /// # Errors
    /// When there is not an offset for each head, the first is not 0, or one is not larger than
    /// the one before.
    ///
    /// ```
    /// use foretoken_heads::HeadsConfig;
    ///
    /// let heads = HeadsConfig::new("block", 4).with_offsets(vec![0, 1, 3, 6])?;
    /// // The third predicts the fourth token: nobody drafts the third.
    /// assert_eq!(heads.drafting(), 2);
    /// assert_eq!(HeadsConfig::new("block", 4).drafting(), 4);
    /// # Ok::<(), foretoken_heads::Error>(())
    /// ```
    pub fn with_offsets(self, offsets: Vec<usize>) -> Result<Self> {
        let rising = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if offsets.len() != self.count || offsets.first() != Some(&0) || !rising {
            return Err(Error::Offsets { offsets, heads: self.count });
        }
        let leap = offsets.iter().enumerate().any(|(head, &offset)| offset != head);
        Ok(Self { offsets: leap.then_some(offsets), ..self })
    }

    /// Tokens between each head's position and its target.
    pub fn offsets(&self) -> Vec<usize> {
        self.offsets.clone().unwrap_or_else(|| (0..self.count).collect())
    }

    /// Heads that decoding can use: the first ones, as far as they predict one token after the
    /// other.
    pub fn drafting(&self) -> usize {
        let Some(offsets) = &self.offsets else { return self.count };
        offsets.iter().enumerate().take_while(|&(head, &offset)| offset == head).count()
    }
}

fn default_kind() -> String {
    crate::BlockHead::KIND.to_owned()
}

/// Sizes and heads of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Sizes; `layers` counts trunk and heads together.
    pub architecture: Architecture,
    /// Type and number of the heads.
    pub heads: HeadsConfig,
    /// The tokens that end a text: the tokenizer's, and in instruct models that of a turn.
    pub end_of_text: Vec<u32>,
}

/// Version of the `foretoken` key in `config.json`.
const VERSION: u64 = 1;

impl ModelConfig {
    /// Trunk layers under the stock head types.
    ///
    /// # Errors
    /// When the heads take up all layers, or their type is unknown.
    pub fn trunk_layers(&self) -> Result<usize> {
        let heads = &self.heads;
        Registry::stock().trunk_layers(&heads.kind, heads.count, self.architecture.layers)
    }

    /// The content of `config.json` for a trunk of `trunk_layers`.
    pub(crate) fn to_json(&self, trunk_layers: usize) -> Value {
        let stock = Architecture { layers: trunk_layers + 1, ..self.architecture.clone() };
        let mut config = stock.to_llama_config(&self.end_of_text);
        config.insert(
            "foretoken".into(),
            json!({"version": VERSION, "layers": self.architecture.layers, "heads": self.heads}),
        );
        Value::Object(config)
    }

    /// Reads `config.json`; without a `foretoken` key it is a next-token model.
    pub(crate) fn from_json(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let mut architecture = Architecture::from_llama_config(config, path)?;
        let end_of_text = ends_of_text(config);
        let mut heads = HeadsConfig::new(default_kind(), 1);
        if let Some(own) = config.get("foretoken") {
            let wrong = |problem: String| TrunkError::format(path, problem);
            let version = own.get("version").and_then(Value::as_u64);
            if version != Some(VERSION) {
                let found = version.map_or("no version".to_owned(), |v| format!("version {v}"));
                let problem =
                    format!("its foretoken key has {found}, this program reads version {VERSION}");
                return Err(wrong(problem).into());
            }
            heads = serde_json::from_value(own.get("heads").cloned().unwrap_or_default())
                .map_err(|error| wrong(format!("foretoken.heads: {error}")))?;
            let layers = own.get("layers").and_then(Value::as_u64).filter(|&n| n < 1 << 16);
            architecture.layers = layers
                .ok_or_else(|| wrong("foretoken.layers must be a number of layers".into()))?
                as usize;
        }
        Ok(Self { architecture, heads, end_of_text })
    }
}

/// The tokens that end a text, as `config.json` and `generation_config.json` say: one or a list.
pub(crate) fn ends_of_text(config: &Map<String, Value>) -> Vec<u32> {
    let ids = match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
        None => &[],
    };
    ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}
