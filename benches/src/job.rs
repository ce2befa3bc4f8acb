//! A folder with everything that a training comparison starts from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use foretoken_data::{
    BatchSampler, CorpusSource, PrepareOptions, SamplerOptions, Split, SplitFractions, Tokenizer,
    open_split, prepare,
};
use foretoken_heads::MultiTokenModel;
use foretoken_train::TrainConfig;
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use tch::{Device, Kind, Tensor};

/// Batches that training goes round in.
const TRAINING_BATCHES: u64 = 256;

/// `recipe.json` (the recipe, all defaults filled in), `model/` (the first weights) and
/// `batches.safetensors` (`train` and `held_out`, each `[batches, batch, seq + heads]`).
pub struct Job {
    folder: PathBuf,
}

/// What a job's batches are made of.
pub struct Text {
    /// The folder of the corpus `python-code`.
    pub corpus: PathBuf,
    /// Where its token shards, in bytes, are or go.
    pub shards: PathBuf,
    /// Tokens of the model; the bytes' own where there is none. A larger vocabulary reads the text
    /// two bytes at a time ([`pair_token`]).
    pub vocab: Option<usize>,
    /// Batches to evaluate on.
    pub held_out: u64,
}

impl Job {
    /// The job in this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Writes the folder: seeded weights, and batches of the corpus `python-code`.
    ///
    /// # Errors
    /// When the corpus is missing, the vocabulary holds fewer tokens than there are bytes, or the
    /// folder cannot be written.
    pub fn write(&self, config: &TrainConfig, text: &Text) -> Result<()> {
        let bytes = prepare_bytes(&text.corpus, &text.shards)?;
        let vocab = text.vocab.unwrap_or(bytes);
        ensure!(vocab >= bytes, "a vocabulary of {vocab} is too small: bytes need {bytes}");
        let model_config = config.model_config(vocab)?;
        let pairs = (vocab > bytes).then_some(vocab as i64);
        let of = |split, count| batches(config, &text.shards, split, count, pairs);
        let batches = [
            ("train".to_owned(), of(Split::Train, TRAINING_BATCHES)?),
            ("held_out".to_owned(), of(Split::Validation, text.held_out)?),
        ];
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        write_safetensors(&self.folder.join("batches.safetensors"), &batches)?;
        let path = self.folder.join("recipe.json");
        std::fs::write(&path, serde_json::to_vec_pretty(config)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let seed = config.train.seed as i64;
        let model = MultiTokenModel::new(&model_config, Kind::Float, Device::Cpu, seed)?;
        let folder = self.folder.join("model");
        if folder.exists() {
            // A former job's heads would lie beside a model that has none.
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(model.save(&folder)?)
    }

    /// The recipe.
    ///
    /// # Errors
    /// When it is missing or not a recipe.
    pub fn config(&self) -> Result<TrainConfig> {
        let path = self.folder.join("recipe.json");
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no recipe", path.display()))
    }

    /// The first weights.
    ///
    /// # Errors
    /// When the model folder is not whole.
    pub fn model(&self) -> Result<MultiTokenModel> {
        Ok(MultiTokenModel::load(&self.folder.join("model"), Kind::Float, Device::Cpu)?)
    }

    /// The batches to train on and those to evaluate on.
    ///
    /// # Errors
    /// When the file is not whole.
    pub fn read_batches(&self) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let path = self.folder.join("batches.safetensors");
        let stored = read_safetensors(&path)?;
        let take = |wanted: &str| -> Result<Vec<Tensor>> {
            let (_, tensor) = stored
                .iter()
                .find(|(name, _)| name == wanted)
                .with_context(|| format!("{} has no tensor {wanted}", path.display()))?;
            ensure!(
                tensor.size().len() == 3,
                "{}: {wanted} is not a stack of batches",
                path.display()
            );
            Ok(tensor.f_unbind(0)?)
        };
        Ok((take("train")?, take("held_out")?))
    }
}

/// Prepares the corpus `python-code` in bytes, unless it is there already; the vocabulary.
///
/// # Errors
/// When the corpus is missing or the shards cannot be written.
pub fn prepare_bytes(corpus: &Path, shards: &Path) -> Result<usize> {
    let tokenizer = Tokenizer::bytes();
    let vocab = tokenizer.vocab_size();
    prepare(
        &PrepareOptions {
            source: CorpusSource::PythonCode { root: corpus.to_path_buf() },
            tokenizer,
            out_dir: shards.to_path_buf(),
            name: "python-code".to_owned(),
            split: SplitFractions::default(),
        },
        &|_| (),
    )?;
    Ok(vocab)
}

/// One token of a vocabulary of `vocab` for two bytes of text: a stand-in for a tokenizer with as
/// many tokens, whose frequencies are those of text. Pairs of ASCII have one each where there are
/// 32,768; the others share.
pub fn pair_token(first: i64, second: i64, vocab: i64) -> i64 {
    (first * 256 + second) % vocab
}

/// The first `count` batches of a split, `[batches, batch, seq + heads]`.
fn batches(
    config: &TrainConfig,
    shards: &Path,
    split: Split,
    count: u64,
    vocab: Option<i64>,
) -> Result<Tensor> {
    let columns = config.columns();
    let options = SamplerOptions {
        batch: config.train.batch,
        columns: if vocab.is_some() { 2 * columns } else { columns },
        seed: config.train.seed,
    };
    let sampler = BatchSampler::new(Arc::new(open_split(shards, split)?), options)?;
    let mut tokens = Vec::new();
    for step in 0..count {
        let read = sampler.batch(step)?.tokens;
        match vocab {
            None => tokens.extend(read),
            Some(vocab) => {
                let pairs = read.as_chunks::<2>().0.iter();
                tokens.extend(pairs.map(|&[first, second]| pair_token(first, second, vocab)));
            }
        }
    }
    let shape = [count as i64, options.batch as i64, columns as i64];
    Ok(Tensor::from_slice(&tokens).f_view(shape)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pairs_of_ascii_have_a_token_each_and_every_pair_is_in_the_vocabulary() {
        let all = |most: i64, vocab: i64| -> BTreeSet<i64> {
            let pairs = (0..most).flat_map(|a| (0..most).map(move |b| (a, b)));
            pairs.map(|(a, b)| pair_token(a, b, vocab)).collect()
        };
        assert_eq!(all(128, 32_768).len(), 128 * 128);
        assert!(all(264, 1_000).iter().all(|token| (0..1_000).contains(token)));
    }
}
