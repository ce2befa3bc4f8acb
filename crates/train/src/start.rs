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
        require(path.exists(), "model.init_from", || {
            format!("there is no {}: name a model folder or a GGUF file", path.display())
        })?;
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
            let model = MultiTokenModel::with_registry(&model, registry, kind, device, seed)?;
            check_reach(config, &model)?;
            return Ok(model);
        };
        // Heads that are there already are trained on; only others are put in their place.
        let there = source.config()?.heads;
        let mut model = if (there.kind.as_str(), there.count) == (heads.kind.as_str(), heads.count)
        {
            let (old, new) = (there.offsets(), heads.offsets());
            require(old == new, "loss.offsets", || {
                format!("the heads of model.init_from predict at {old:?}, not at {new:?}")
            })?;
            let unread = source.unread_with_registry(registry, kind, device)?;
            let tell = |problem: &str| {
                tracing::warn!("model.init_from: {problem}; they go on learning on this one");
            };
            unread.tolerate_other_trunks(tell).read()?
        } else {
            if there.count > 1 {
                tracing::warn!(
                    "model.init_from has {} heads of type {}: {} new ones of type {}, as the recipe has \
                     them, take their place",
                    there.count,
                    there.kind,
                    heads.count,
                    heads.kind
                );
            }
            let stock = source.unread_stock(registry, kind, device)?.read()?;
            stock.grow(&heads, registry, seed)?
        };
        check_reach(config, &model)?;
        if model.config().end_of_text.is_empty() {
            model.set_end_of_text(self.tokenizer.end_of_text().into_iter().collect());
        }
        if config.heads.train == HeadTraining::Alone {
            // What the model expects is not known before it was asked.
            let most = config.heads.draft_vocabulary;
            let tokens = match config.heads.targets {
                TargetKind::Text if most > 0 => Some(frequent(corpus, most)?),
                _ => None,
            };
            model.set_draft_vocabulary(tokens)?;
            model.freeze_stock(true);
        }
        Ok(model)
    }
}

/// Refuses rows that are longer than the model's context, with the tokens behind them that a pass sees.
fn check_reach(config: &TrainConfig, model: &MultiTokenModel) -> Result<(), Error> {
    let (context, sequence) = (model.config().architecture.context, config.train.sequence);
    let alone = config.heads.train == HeadTraining::Alone;
    let positions = match alone || model.told_blocks().is_some() {
        true => config.columns() - 1,
        false => sequence,
    };
    require(positions <= context, "train.sequence", || match positions - sequence {
        0 => format!("{sequence} tokens are more than the model's {context}"),
        more => format!(
            "{sequence} tokens and {more} behind them, of which heads learn too, are more than the \
             model's {context}"
        ),
    })
}
