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
const HELD_OUT_BATCHES: u64 = 16;

/// `recipe.json` (the recipe, all defaults filled in), `model/` (the first weights) and
/// `batches.safetensors` (`train` and `held_out`, each `[batches, batch, seq + heads]`).
pub struct Job {
    folder: PathBuf,
}

impl Job {
    /// The job in this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Writes the folder: seeded weights, and batches of the corpus `python-code` in bytes.
    ///
    /// # Errors
    /// When the corpus is missing or the folder cannot be written.
    pub fn write(&self, config: &TrainConfig, corpus: &Path, shards: &Path) -> Result<()> {
        let tokenizer = Tokenizer::bytes();
        let model_config = config.model_config(tokenizer.vocab_size());
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
        let batches = [
            ("train".to_owned(), batches(config, shards, Split::Train, TRAINING_BATCHES)?),
            ("held_out".to_owned(), batches(config, shards, Split::Validation, HELD_OUT_BATCHES)?),
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

/// The first `count` batches of a split, `[batches, batch, seq + heads]`.
fn batches(config: &TrainConfig, shards: &Path, split: Split, count: u64) -> Result<Tensor> {
    let options = SamplerOptions {
        batch: config.train.batch,
        columns: config.train.sequence + config.heads.count,
        seed: config.train.seed,
    };
    let sampler = BatchSampler::new(Arc::new(open_split(shards, split)?), options)?;
    let mut tokens = Vec::new();
    for step in 0..count {
        tokens.extend(sampler.batch(step)?.tokens);
    }
    let shape = [count as i64, options.batch as i64, options.columns as i64];
    Ok(Tensor::from_slice(&tokens).f_view(shape)?)
}
