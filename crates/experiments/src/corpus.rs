//! The corpus of a run, and the one beside it that no model is trained on.

use std::path::PathBuf;

use anyhow::Context;
use foretoken_data::{
    CorpusSource, Manifest, PrepareOptions, Progress, SplitFractions, Tokenizer, prepare,
    python_code_root,
};
use foretoken_train::TrainConfig;

use crate::ReproduceOptions;
use crate::report::Corpus;

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

/// Prepares the corpus that `config` names, where all experiments and presets find it again.
pub(crate) fn training_corpus(
    options: &ReproduceOptions,
    config: &TrainConfig,
) -> anyhow::Result<Prepared> {
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

/// Prepares Python from another package, all of it to be tested on; `None` where it is not at
/// hand.
pub(crate) fn other_corpus(
    options: &ReproduceOptions,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<Prepared>> {
    let Some(root) = other_root(options)? else {
        return Ok(None);
    };
    prepared(
        CorpusSource::PythonCode { root },
        tokenizer.clone(),
        shards(options, OTHER),
        OTHER,
        SplitFractions::all_test(),
    )
    .map(Some)
}

/// The corpus that set-up puts beside `python-code`.
const OTHER: &str = "python-other";

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
                eprintln!("  another process prepares {}; waiting", folder.display());
            }
        },
    )
    .with_context(|| format!("preparing the corpus {name}"))?;
    Ok(Prepared { folder, manifest, tokenizer })
}
