//! What a frozen model makes of the batches that a training goes round in, kept on disk.

use std::fs;
use std::path::{Path, PathBuf};

use foretoken_data::Tokenizer;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::{FrozenStates, FrozenTrunkLoss};
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::config::TrainConfig;
use crate::written::{Read, WrittenText};

const TOKENS: &str = "tokens";
const TRUNK_OUTPUT: &str = "trunk_output";
const FINAL_HIDDEN: &str = "final_hidden";
const TOLD: &str = "told";

/// A file for each batch, its states in bfloat16: a trunk's pass costs far more than reading them
/// again.
#[derive(Debug)]
pub(crate) struct StateCache {
    /// None where each batch is seen once.
    folder: Option<PathBuf>,
    /// None where all text is the corpus's.
    written: Option<WrittenText>,
}

impl StateCache {
    /// Keeps what it computes in `folder`, unless each batch is seen once.
    pub(crate) fn new(
        config: &TrainConfig,
        tokenizer: &Tokenizer,
        folder: PathBuf,
        device: Device,
    ) -> Result<Self, Error> {
        let (batch, seed) = (config.train.batch, config.train.seed);
        let written = WrittenText::new(&config.data, tokenizer, batch, seed, device);
        let rounds = config.data.batches > 0 && config.train.steps > config.data.batches;
        if !rounds && written.is_none() {
            return Ok(Self { folder: None, written: None });
        }
        fs::create_dir_all(&folder)
            .map_err(|source| Error::Write { path: folder.clone(), source })?;
        Ok(Self { folder: Some(folder), written })
    }

    /// The tokens of batch `index` and the states of `model` for them. `corpus` reads the tokens of the
    /// corpus; the model goes on with them in its own words where the recipe wants it.
    pub(crate) fn batch(
        &self,
        model: &MultiTokenModel,
        index: u64,
        corpus: &impl Fn(u64) -> Result<Tensor, Error>,
    ) -> Result<Read, Error> {
        let Some(folder) = &self.folder else {
            let tokens = corpus(index)?;
            let states = FrozenTrunkLoss::states(model, &tokens)?;
            return Ok((tokens, states));
        };
        if let Some(batch) = read(&path(folder, index), model) {
            return Ok(batch);
        }
        let written = self.written.as_ref().filter(|written| written.is_written(index));
        let batches = if let Some(written) = written {
            written.write(model, index, corpus)?
        } else {
            let tokens = corpus(index)?;
            let states = FrozenTrunkLoss::states(model, &tokens)?;
            vec![(index, (tokens, states))]
        };
        let mut wanted = None;
        for (place, batch) in batches {
            let kept = keep(&path(folder, place), batch)?;
            if place == index {
                wanted = Some(kept);
            }
        }
        // A batch is of its own group.
        wanted.ok_or_else(|| Error::Torch(format!("batch {index} was not written")))
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

fn path(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("batch-{index}.safetensors"))
}

/// Writes a batch. What is used is what the file gives back, so that the first round is like the
/// others, and a run that goes on like one that was never interrupted.
fn keep(path: &Path, (tokens, states): Read) -> Result<Read, Error> {
    let round = |state: &Tensor| state.f_to_kind(Kind::BFloat16)?.f_contiguous();
    let states = FrozenStates {
        trunk_output: round(&states.trunk_output)?,
        final_hidden: round(&states.final_hidden)?,
        told: states.told.as_ref().map(round).transpose()?,
    };
    let tokens = tokens.f_contiguous()?;
    let mut tensors = vec![
        (TOKENS.to_owned(), tokens.shallow_clone()),
        (TRUNK_OUTPUT.to_owned(), states.trunk_output.shallow_clone()),
        (FINAL_HIDDEN.to_owned(), states.final_hidden.shallow_clone()),
    ];
    tensors.extend(states.told.iter().map(|told| (TOLD.to_owned(), told.shallow_clone())));
    write_safetensors(path, &tensors)?;
    Ok((tokens, states))
}

/// A file that is there and whole; one that is not is made again.
fn read(path: &Path, model: &MultiTokenModel) -> Option<Read> {
    if !path.exists() {
        return None;
    }
    let mut tensors = read_safetensors(path).ok()?;
    let mut take = |wanted: &str| {
        let at = tensors.iter().position(|(name, _)| name == wanted)?;
        Some(tensors.swap_remove(at).1)
    };
    let tokens = take(TOKENS)?;
    let mut state = |wanted: &str| take(wanted)?.f_to_device(model.device()).ok();
    let states = FrozenStates {
        trunk_output: state(TRUNK_OUTPUT)?,
        final_hidden: state(FINAL_HIDDEN)?,
        told: model.told_blocks().map_or(Some(None), |_| state(TOLD).map(Some))?,
    };
    Some((tokens, states))
}
