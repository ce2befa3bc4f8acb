//! The text of a recipe as token shards.

use std::path::Path;
use std::sync::Arc;

use foretoken_data::{
    BatchSampler, CorpusSource, Manifest, PrepareOptions, Progress, SamplerOptions, Split,
    SplitFractions, TokenShard, Tokenizer, open_split, prepare,
};

use crate::Error;
use crate::config::TrainConfig;

/// A prepared corpus, its training split checked against the manifest.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) manifest: Manifest,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) train: Arc<TokenShard>,
    pub(crate) validation: Option<Arc<TokenShard>>,
}

impl Corpus {
    /// Prepares what `config` names in `shards`, or uses what is there already.
    pub(crate) fn prepare(
        config: &TrainConfig,
        tokenizer: Tokenizer,
        shards: &Path,
        root: Option<&Path>,
    ) -> Result<Self, Error> {
        let (source, name) = match &config.data.path {
            Some(path) => (CorpusSource::Path(path.clone()), "text"),
            None => (CorpusSource::named(&config.data.corpus, root)?, config.data.corpus.as_str()),
        };
        let options = PrepareOptions {
            source,
            tokenizer: tokenizer.clone(),
            out_dir: shards.to_owned(),
            name: name.to_owned(),
            split: SplitFractions::default(),
        };
        let manifest = prepare(&options, &report)?;
        let train = Arc::new(open_split(shards, Split::Train)?);
        let columns = config.columns();
        if train.len() < columns {
            return Err(Error::TooLittleText {
                name: options.source.path().display().to_string(),
                tokens: train.len(),
                needed: columns,
            });
        }
        let validation = open_split(shards, Split::Validation)?;
        let validation = (validation.len() >= columns).then(|| Arc::new(validation));
        Ok(Self { manifest, tokenizer, train, validation })
    }

    /// The batches that `config` trains on.
    pub(crate) fn batches(&self, config: &TrainConfig) -> Result<BatchSampler, Error> {
        sampler(&self.train, config)
    }
}

/// Batches of a split in the shape that training takes. Windows begin a sequence apart, whatever
/// the number of heads: models that differ in their heads alone see almost the same text.
pub(crate) fn sampler(
    shard: &Arc<TokenShard>,
    config: &TrainConfig,
) -> Result<BatchSampler, Error> {
    let options = SamplerOptions {
        batch: config.train.batch,
        columns: config.columns(),
        seed: config.train.seed,
    };
    Ok(BatchSampler::new(Arc::clone(shard), options)?.with_stride(config.train.sequence))
}

fn report(progress: Progress) {
    match progress {
        Progress::Waiting => tracing::info!("another process prepares the same corpus; waiting"),
        Progress::Finished => tracing::info!("corpus prepared"),
        _ => {}
    }
}
