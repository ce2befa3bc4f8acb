//! Where a training starts: from seeded weights or from a pretrained model.

use foretoken_data::Tokenizer;
use foretoken_heads::{ModelConfig, ModelSource, MultiTokenModel, Registry};
use tch::{Device, Kind};

use crate::Error;
use crate::config::{HeadTraining, TargetKind, TrainConfig};
use crate::corpus::Corpus;
use crate::draft_tokens::frequent;
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
    /// are chosen, unless the model's own expectations are learned
    /// ([`expected`](crate::draft_tokens::expected)).
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
            let end_of_text = self.tokenizer.end_of_text().into_iter().collect();
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
            if most > 0 && config.heads.targets == TargetKind::Text {
                model.set_draft_vocabulary(Some(frequent(corpus, most)?))?;
            }
            model.freeze_stock(true);
        }
        Ok(model)
    }
}
