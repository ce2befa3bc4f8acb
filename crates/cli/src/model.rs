//! Opening a model folder and its tokenizer.

use std::path::Path;

use anyhow::{Context, ensure};
use foretoken_data::Tokenizer;
use foretoken_heads::MultiTokenModel;
use tch::{Device, Kind};

use crate::failure::usage;

/// A model with what turns text into its tokens.
pub(crate) struct Opened {
    pub(crate) model: MultiTokenModel,
    pub(crate) tokenizer: Tokenizer,
}

impl Opened {
    /// Opens the folder `path` in float32.
    pub(crate) fn new(path: &Path, device: Device) -> anyhow::Result<Self> {
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
            return usage(format!(
                "--model {}: GGUF files are not read yet; name a model folder",
                path.display()
            ));
        }
        ensure!(path.exists(), "--model {}: there is no such folder", path.display());
        ensure!(path.is_dir(), "--model {}: this is no folder", path.display());
        let model =
            MultiTokenModel::load(path, Kind::Float, device).context("cannot open the model")?;
        let tokenizer = Tokenizer::from_file(&path.join("tokenizer.json"))
            .context("cannot open the model's tokenizer")?;
        let (ids, rows) = (tokenizer.vocab_size(), model.config().architecture.vocab);
        ensure!(
            ids <= rows,
            "{}: tokenizer.json has {ids} tokens, but the model only {rows}: it is not the model's own",
            path.display()
        );
        Ok(Self { model, tokenizer })
    }

    /// The tokens of a prompt, refused where they don't fit the model's context.
    pub(crate) fn encode(&self, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let tokens = self.tokenizer.encode_with_specials(prompt)?;
        let context = self.model.config().architecture.context;
        ensure!(!tokens.is_empty(), foretoken_decode::Error::EmptyPrompt);
        ensure!(
            tokens.len() <= context,
            foretoken_decode::Error::PromptTooLong { tokens: tokens.len(), context }
        );
        Ok(tokens)
    }
}
