//! The corpus of a run, and the one beside it that no model is trained on.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use foretoken_data::{
    CorpusSource, Manifest, PrepareOptions, Progress, SplitFractions, Tokenizer, prepare,
    python_code_root,
};
use foretoken_train::TrainConfig;

use crate::ReproduceOptions;
use crate::report::Corpus;
use crate::say::progress;

/// A prepared corpus.
pub(crate) struct Prepared {
    /// The shard folder.
    pub(crate) folder: PathBuf,
    /// What is in it.
    pub(crate) manifest: Manifest,
    /// What made tokens of it.
    pub(crate) tokenizer: Tokenizer,
}

impl Prepared {
    /// The corpus as a report names it.
    pub(crate) fn row(&self) -> Corpus {
        let splits = &self.manifest.splits;
        Corpus {
            name: self.manifest.name.clone(),
            sha256: self.manifest.sha256.clone(),
            train_tokens: splits.train.tokens,
            validation_tokens: splits.validation.tokens,
            test_tokens: splits.test.tokens,
        }
    }
}

/// Models of an experiment are judged by the corpus that they learned from.
fn one_corpus(config: &TrainConfig) -> anyhow::Result<()> {
    ensure!(
        config.data.mixture.is_empty(),
        "config.data.mixture: an experiment is judged by one corpus; name it in config.data.corpus"
    );
    Ok(())
}

/// Prepares the corpus that `config` names, where all experiments and presets find it again.
pub(crate) fn training_corpus(
    options: &ReproduceOptions,
    config: &TrainConfig,
) -> anyhow::Result<Prepared> {
    one_corpus(config)?;
    let source = match &config.data.path {
        Some(path) => CorpusSource::Path(path.clone()),
        None => CorpusSource::named(&config.data.corpus, options.corpus.as_deref())?,
    };
    let name = match &config.data.path {
        Some(_) => "text",
        None => config.data.corpus.as_str(),
    };
    prepared(
        source,
        Tokenizer::named(&config.data.tokenizer)?,
        shards(options, name),
        name,
        SplitFractions::default(),
    )
}

/// Prepares the corpus that `config` names for a tokenizer that came with a model, `model` being
/// that model's name.
pub(crate) fn corpus_for(
    options: &ReproduceOptions,
    config: &TrainConfig,
    tokenizer: Tokenizer,
    model: &str,
) -> anyhow::Result<Prepared> {
    one_corpus(config)?;
    let source = CorpusSource::named(&config.data.corpus, options.corpus.as_deref())?;
    let name = config.data.corpus.as_str();
    let folder = shards(options, &format!("{name}-{model}"));
    prepared(source, tokenizer, folder, name, SplitFractions::default())
}

/// Prepares Python from another package, all of it to be tested on; `None` where it is not at
/// hand. `model` is the name of the model that the tokenizer came with, if it came with one.
pub(crate) fn other_corpus(
    options: &ReproduceOptions,
    tokenizer: &Tokenizer,
    model: &str,
) -> anyhow::Result<Option<Prepared>> {
    let Some(root) = other_root(options)? else {
        return Ok(None);
    };
    let folder = if model.is_empty() { OTHER.to_owned() } else { format!("{OTHER}-{model}") };
    prepared(
        CorpusSource::PythonCode { root },
        tokenizer.clone(),
        shards(options, &folder),
        OTHER,
        SplitFractions::all_test(),
    )
    .map(Some)
}

/// The corpus that set-up puts beside `python-code`.
const OTHER: &str = "python-other";

/// A file or folder below the one that set-up fills: beside the corpus, or upwards from here.
pub(crate) fn set_up_place(options: &ReproduceOptions, below: &str) -> Option<PathBuf> {
    let corpus = python_code_root(options.corpus.as_deref()).ok();
    let beside = corpus.and_then(|root| Some(root.parent()?.parent()?.join(below)));
    let upwards = std::env::current_dir().ok().into_iter().flat_map(|start| {
        let places = start.ancestors().map(|folder| folder.join(".libtorch").join(below));
        places.collect::<Vec<_>>()
    });
    beside.into_iter().chain(upwards).find(|place| place.exists())
}

/// Where another package's Python is: as asked, beside the corpus, or where set-up unpacks it.
fn other_root(options: &ReproduceOptions) -> anyhow::Result<Option<PathBuf>> {
    if let Some(root) = &options.other_corpus {
        anyhow::ensure!(
            root.is_dir(),
            "{} is no folder: name one that has another package's .py files",
            root.display()
        );
        return Ok(Some(root.clone()));
    }
    let beside = python_code_root(options.corpus.as_deref()).ok();
    let beside = beside.map(|root| root.with_file_name(OTHER));
    let set_up = std::env::current_dir().ok().into_iter().flat_map(|start| {
        let folders = start.ancestors().map(|folder| folder.join(".libtorch/corpus").join(OTHER));
        folders.collect::<Vec<_>>()
    });
    Ok(beside.into_iter().chain(set_up).find(|root| root.is_dir()))
}

/// The shard folder of a corpus.
fn shards(options: &ReproduceOptions, name: &str) -> PathBuf {
    options.out.join("shards").join(name)
}

fn prepared(
    source: CorpusSource,
    tokenizer: Tokenizer,
    folder: PathBuf,
    name: &str,
    split: SplitFractions,
) -> anyhow::Result<Prepared> {
    let manifest = prepare(
        &PrepareOptions {
            source,
            tokenizer: tokenizer.clone(),
            out_dir: folder.clone(),
            name: name.to_owned(),
            split,
        },
        &|progress| {
            if matches!(progress, Progress::Waiting) {
                progress!("  another process prepares {}; waiting", folder.display());
            }
        },
    )
    .with_context(|| format!("preparing the corpus {name}"))?;
    Ok(Prepared { folder, manifest, tokenizer })
}
