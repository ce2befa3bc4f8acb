//! Where a training starts: from seeded weights or from a pretrained model.

use std::collections::HashMap;

use foretoken_data::Tokenizer;
use foretoken_heads::{ModelConfig, ModelSource, MultiTokenModel, Registry};
use tch::{Device, Kind};

use crate::Error;
use crate::config::{HeadTraining, TrainConfig};
use crate::corpus::Corpus;
use crate::recipe::require;

/// The tokenizer of a recipe, and the pretrained model that it came with.
pub(crate) struct Start {
    pub(crate) tokenizer: Tokenizer,
    source: Option<ModelSource>,
}

impl Start {
    pub(crate) fn new(config: &TrainConfig) -> Result<Self, Error> {
        let Some(path) = &config.model.init_from else {
            return Ok(Self { tokenizer: Tokenizer::named(&config.data.tokenizer)?, source: None });
        };
        let source = ModelSource::open(path)?;
        Ok(Self { tokenizer: source.tokenizer()?, source: Some(source) })
    }

    /// The model before the first step, with its heads. By `corpus` the tokens of a draft vocabulary
    /// are chosen.
    pub(crate) fn model(
        &self,
        config: &TrainConfig,
        corpus: &Corpus,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<MultiTokenModel, Error> {
        let seed = config.train.seed as i64;
        let heads = config.heads_config()?;
        let Some(source) = &self.source else {
            let end_of_text = self.tokenizer.end_of_text();
            let sizes = config.model_config(self.tokenizer.vocab_size())?;
            let model = ModelConfig { end_of_text, ..sizes };
            return Ok(MultiTokenModel::with_registry(&model, registry, kind, device, seed)?);
        };
        let mut model = source.model_with_registry(registry, kind, device)?;
        let context = model.config().architecture.context;
        require(config.train.sequence <= context, "train.sequence", || {
            format!("{} tokens are more than the model's {context}", config.train.sequence)
        })?;
        // Heads that are there already are trained on; only others are put in their place.
        let there = &model.config().heads;
        if (there.kind.as_str(), there.count) == (heads.kind.as_str(), heads.count) {
            let (old, new) = (there.offsets(), heads.offsets());
            require(old == new, "loss.offsets", || {
                format!("the heads of model.init_from predict at {old:?}, not at {new:?}")
            })?;
        } else {
            model = model.grow(&heads, registry, seed)?;
        }
        if config.heads.train == HeadTraining::Alone {
            let most = config.heads.draft_vocabulary;
            if most > 0 {
                model.set_draft_vocabulary(Some(frequent(corpus, most)?))?;
            }
            model.freeze_stock(true);
        }
        Ok(model)
    }
}

/// The most frequent tokens of the training text, each corpus by its weight; among equally frequent
/// ones those of the lower ids.
fn frequent(corpus: &Corpus, most: usize) -> Result<Vec<u32>, Error> {
    let mut shares = HashMap::<u32, f64>::new();
    for (shard, weight) in corpus.train() {
        let mut counts = HashMap::<u32, u64>::new();
        for start in (0..shard.len()).step_by(COUNTED) {
            for token in shard.tokens(start..(start + COUNTED).min(shard.len()))? {
                *counts.entry(token).or_default() += 1;
            }
        }
        for (token, count) in counts {
            *shares.entry(token).or_default() += weight * count as f64 / shard.len() as f64;
        }
    }
    let mut shares: Vec<(u32, f64)> = shares.into_iter().collect();
    shares.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok(shares.into_iter().take(most).map(|(token, _)| token).collect())
}

/// Tokens that are read at a time.
const COUNTED: usize = 1 << 20;
