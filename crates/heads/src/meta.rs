//! Meta's released multi-token checkpoints as models.

use crate::{BlockHead, HeadsConfig, ModelConfig, MultiTokenModel, Result};
use foretoken_trunk::meta::MetaCheckpoint;
use std::path::Path;
use tch::{Device, Kind};

impl MultiTokenModel {
    /// Opens a folder of `facebook/multi-token-prediction`: `params.json` and `consolidated.pth`.
    /// The last of its `layers` is head 0, its `extra_heads` are the block heads beyond. Which
    /// token ends a text the folder does not say: the tokenizer does.
    ///
    /// # Errors
    /// When a file is missing, damaged or split into several, holds more than tensors, or holds
    /// other tensors than the model that `params.json` describes.
    pub fn from_meta(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let MetaCheckpoint { architecture, heads, weights } = MetaCheckpoint::open(folder)?;
        let heads = HeadsConfig::new(BlockHead::KIND, heads);
        let config = ModelConfig { architecture, heads, end_of_text: None };
        Self::from_source(&config, Box::new(weights), kind, device)
    }
}
