//! The text of a recipe as token shards, and the batches that are read from them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foretoken_data::{
    BatchSampler, Batches, CorpusSource, Manifest, Mixture, Packing, PrepareOptions, Progress,
    SamplerOptions, Split, SplitFractions, TokenShard, Tokenizer, open_split, prepare,
};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::config::{DataSection, Documents, MixturePart, TrainConfig};

/// What a recipe learns from, prepared: a corpus, or several with their weights.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) tokenizer: Tokenizer,
    parts: Vec<Part>,
}

/// Batches, and how many there are until all was seen.
pub(crate) type Counted = (Arc<dyn Batches>, u64);

/// One corpus, its training split checked against the manifest.
#[derive(Debug)]
struct Part {
    manifest: Manifest,
    weight: f64,
    train: Arc<TokenShard>,
    /// None where it is shorter than a row.
    validation: Option<Arc<TokenShard>>,
}

/// Where a corpus comes from, and its part of the rows.
struct Wanted<'c> {
    path: Option<&'c Path>,
    name: &'c str,
    weight: f64,
    shards: PathBuf,
}

impl Corpus {
    /// Prepares what `config` names in `shards`, or uses what is there already.
    pub(crate) fn prepare(
        config: &TrainConfig,
        tokenizer: Tokenizer,
        shards: &Path,
        root: Option<&Path>,
    ) -> Result<Self, Error> {
        let parts = wanted(&config.data, shards)
            .into_iter()
            .map(|wanted| Part::prepare(&wanted, config.columns(), &tokenizer, root))
            .collect::<Result<_, _>>()?;
        Ok(Self { tokenizer, parts })
    }

    /// What tells this text from others: the SHA-256 of the corpus, or of those of several.
    pub(crate) fn sha256(&self) -> String {
        match self.parts.as_slice() {
            [one] => one.manifest.sha256.clone(),
            several => {
                let mut hash = Sha256::new();
                for part in several {
                    hash.update(&part.manifest.sha256);
                }
                format!("{:x}", hash.finalize())
            }
        }
    }

    /// The training splits, each with its corpus's weight.
    pub(crate) fn train(&self) -> impl Iterator<Item = (&TokenShard, f64)> {
        self.parts.iter().map(|part| (part.train.as_ref(), part.weight))
    }

    /// The batches that `config` trains on.
    pub(crate) fn batches(&self, config: &TrainConfig) -> Result<Arc<dyn Batches>, Error> {
        let samplers =
            self.parts.iter().map(|part| Ok((sampler(&part.train, config)?, part.weight)));
        mixed(samplers.collect::<Result<_, Error>>()?)
    }

    /// Batches of the validation splits, mixed as the corpora are, and how many there are in them
    /// all; corpora whose split is shorter than a row are left out, `None` where all are.
    pub(crate) fn validation(&self, config: &TrainConfig) -> Result<Option<Counted>, Error> {
        let mut samplers = Vec::new();
        let mut count = 0;
        for part in &self.parts {
            if let Some(shard) = &part.validation {
                let sampler = sampler(shard, config)?;
                count += sampler.batches_per_epoch();
                samplers.push((sampler, part.weight));
            }
        }
        if samplers.is_empty() { Ok(None) } else { Ok(Some((mixed(samplers)?, count))) }
    }
}

impl Part {
    fn prepare(
        wanted: &Wanted<'_>,
        columns: usize,
        tokenizer: &Tokenizer,
        root: Option<&Path>,
    ) -> Result<Self, Error> {
        let source = match wanted.path {
            Some(path) => CorpusSource::Path(path.to_owned()),
            None => CorpusSource::named(wanted.name, root)?,
        };
        let options = PrepareOptions {
            source,
            tokenizer: tokenizer.clone(),
            out_dir: wanted.shards.clone(),
            name: wanted.path.map_or(wanted.name, |_| "text").to_owned(),
            split: SplitFractions::default(),
        };
        let manifest = prepare(&options, &report)?;
        let train = Arc::new(open_split(&wanted.shards, Split::Train)?);
        if train.len() < columns {
            return Err(Error::TooLittleText {
                name: options.source.path().display().to_string(),
                tokens: train.len(),
                needed: columns,
            });
        }
        let validation = open_split(&wanted.shards, Split::Validation)?;
        let validation = (validation.len() >= columns).then(|| Arc::new(validation));
        Ok(Self { manifest, weight: wanted.weight, train, validation })
    }
}

/// The corpora of a recipe. Those of a mixture have a folder each below `shards`.
fn wanted<'c>(data: &'c DataSection, shards: &Path) -> Vec<Wanted<'c>> {
    if data.mixture.is_empty() {
        let (path, name, weight) = (data.path.as_deref(), data.corpus.as_str(), 1.0);
        return vec![Wanted { path, name, weight, shards: shards.to_owned() }];
    }
    let part = |(place, part): (usize, &'c MixturePart)| Wanted {
        path: part.path.as_deref(),
        name: part.corpus.as_deref().unwrap_or_default(),
        weight: part.weight,
        shards: shards.join(place.to_string()),
    };
    data.mixture.iter().enumerate().map(part).collect()
}

/// Samplers as one source.
fn mixed(mut samplers: Vec<(BatchSampler, f64)>) -> Result<Arc<dyn Batches>, Error> {
    match (samplers.pop(), samplers.is_empty()) {
        (Some((one, _)), true) => Ok(Arc::new(one)),
        (last, _) => {
            samplers.extend(last);
            Ok(Arc::new(Mixture::new(samplers)?))
        }
    }
}

/// Batches of a split in the shape that training takes. Windows begin a sequence apart, whatever
/// the number of heads: models that differ in their heads alone see almost the same text.
fn sampler(shard: &Arc<TokenShard>, config: &TrainConfig) -> Result<BatchSampler, Error> {
    // The last token of a packed row is a target alone: what stands behind it is another document's.
    let columns = match config.data.documents {
        Documents::Packed => config.train.sequence + 1,
        Documents::Joined | Documents::Apart => config.columns(),
    };
    let (batch, seed) = (config.train.batch, config.train.seed);
    let options = SamplerOptions { batch, columns, seed };
    let sampler = BatchSampler::new(Arc::clone(shard), options)?.with_stride(config.train.sequence);
    Ok(match config.data.documents {
        Documents::Joined => sampler,
        Documents::Apart => sampler.with_documents(),
        Documents::Packed => sampler.with_packing(Packing::Documents)?,
    })
}

fn report(progress: Progress) {
    match progress {
        Progress::Waiting => tracing::info!("another process prepares the same corpus; waiting"),
        Progress::Finished => tracing::info!("corpus prepared"),
        _ => {}
    }
}
