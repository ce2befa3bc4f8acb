//! What a frozen model makes of the batches that a training goes round in, kept on disk.

use std::fs;
use std::path::{Path, PathBuf};

use foretoken_heads::MultiTokenModel;
use foretoken_loss::{FrozenStates, FrozenTrunkLoss};
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use tch::{Kind, Tensor};

use crate::Error;
use crate::config::TrainConfig;
use crate::written::WrittenText;

const TRUNK_OUTPUT: &str = "trunk_output";
const FINAL_HIDDEN: &str = "final_hidden";

/// A file for each batch, in bfloat16: a trunk's pass costs far more than reading them again.
#[derive(Debug)]
pub(crate) struct StateCache {
    /// None where each batch is seen once.
    folder: Option<PathBuf>,
    /// None where all text is the corpus's.
    written: Option<WrittenText>,
}

impl StateCache {
    /// Keeps what it computes in `folder`, unless each batch is seen once.
    pub(crate) fn new(config: &TrainConfig, folder: PathBuf) -> Result<Self, Error> {
        let written = WrittenText::new(&config.data, config.train.batch, &folder);
        let rounds = config.data.batches > 0 && config.train.steps > config.data.batches;
        if !rounds && written.is_none() {
            return Ok(Self { folder: None, written: None });
        }
        fs::create_dir_all(&folder)
            .map_err(|source| Error::Write { path: folder.clone(), source })?;
        Ok(Self { folder: Some(folder), written })
    }

    /// The tokens of batch `index`, by the model itself where the recipe wants it; `corpus` reads
    /// those of the corpus.
    pub(crate) fn tokens(
        &self,
        model: &MultiTokenModel,
        index: u64,
        corpus: &impl Fn(u64) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        match &self.written {
            Some(written) => written.tokens(model, index, corpus),
            None => corpus(index),
        }
    }

    /// The states of batch `index`, whose tokens are `tokens`.
    pub(crate) fn states(
        &self,
        model: &MultiTokenModel,
        tokens: &Tensor,
        index: u64,
    ) -> Result<FrozenStates, Error> {
        let Some(folder) = &self.folder else { return Ok(FrozenTrunkLoss::states(model, tokens)?) };
        let path = folder.join(format!("batch-{index}.safetensors"));
        if let Some(states) = read(&path, model) {
            return Ok(states);
        }
        let states = FrozenTrunkLoss::states(model, tokens)?;
        // What is used is what the file gives back, so that the first round is like the others,
        // and a run that goes on like one that was never interrupted.
        let round = |state: &Tensor| state.f_to_kind(Kind::BFloat16);
        let states = FrozenStates {
            trunk_output: round(&states.trunk_output)?,
            final_hidden: round(&states.final_hidden)?,
        };
        let tensors = [
            (TRUNK_OUTPUT.to_owned(), states.trunk_output.shallow_clone()),
            (FINAL_HIDDEN.to_owned(), states.final_hidden.shallow_clone()),
        ];
        write_safetensors(&path, &tensors)?;
        Ok(states)
    }

    /// Removes the files: they take much room, and only this training has a use for them.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match &self.folder {
            Some(folder) => fs::remove_dir_all(folder)
                .map_err(|source| Error::Write { path: folder.clone(), source }),
            None => Ok(()),
        }
    }
}

/// A file that is there and whole; one that is not is made again.
fn read(path: &Path, model: &MultiTokenModel) -> Option<FrozenStates> {
    if !path.exists() {
        return None;
    }
    let mut tensors = read_safetensors(path).ok()?;
    let mut take = |wanted: &str| {
        let at = tensors.iter().position(|(name, _)| name == wanted)?;
        tensors.swap_remove(at).1.f_to_device(model.device()).ok()
    };
    Some(FrozenStates { trunk_output: take(TRUNK_OUTPUT)?, final_hidden: take(FINAL_HIDDEN)? })
}
