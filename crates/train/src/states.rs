//! What a frozen model makes of the batches that a training goes round in, kept on disk.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foretoken_data::Tokenizer;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::{FrozenStates, FrozenTrunkLoss};
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::checkpoint::TrainingState;
use crate::folder::remove;
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
    /// The folder of all such folders of this training.
    root: PathBuf,
    /// None where all text is the corpus's.
    written: Option<WrittenText>,
    /// Batches in all.
    batches: u64,
    /// Whether there is room for them is known.
    has_room: Cell<bool>,
    /// Whether to make no more of them.
    stop: Arc<AtomicBool>,
}

impl StateCache {
    /// Keeps what it computes below `root`, unless each batch is seen once: in a folder of the text
    /// and the model that `state` tells of, so that a training which was started otherwise, and
    /// ended before its first checkpoint, leaves nothing that another one would take for its own.
    pub(crate) fn new(
        state: &TrainingState,
        tokenizer: &Tokenizer,
        root: PathBuf,
        device: Device,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let config = &state.config;
        let (batch, seed) = (config.train.batch, config.train.seed);
        let written = WrittenText::new(&config.data, tokenizer, batch, seed, device);
        let rounds = config.data.batches > 0 && config.train.steps > config.data.batches;
        if !rounds && written.is_none() {
            return Ok(Self {
                folder: None,
                root,
                written: None,
                batches: 0,
                has_room: true.into(),
                stop,
            });
        }
        let folder = root.join(name(state)?);
        fs::create_dir_all(&folder)
            .map_err(|source| Error::Write { path: folder.clone(), source })?;
        let batches = match rounds {
            true => config.data.batches,
            false => config.train.steps,
        };
        Ok(Self { folder: Some(folder), root, written, batches, has_room: false.into(), stop })
    }

    /// The tokens of batch `index` and the states of `model` for them. `corpus` reads the tokens of the
    /// corpus; the model goes on with them in its own words where the recipe wants it. What was there
    /// before is had even where no more is to be made.
    pub(crate) fn batch(
        &self,
        model: &MultiTokenModel,
        index: u64,
        corpus: &impl Fn(u64) -> Result<Tensor, Error>,
    ) -> Result<Read, Error> {
        let stopped = || self.stop.load(Ordering::Relaxed);
        let Some(folder) = &self.folder else {
            if stopped() {
                return Err(Error::Stopped);
            }
            let tokens = corpus(index)?;
            let states = FrozenTrunkLoss::states(model, &tokens)?;
            return Ok((tokens, states));
        };
        if let Some(batch) = read(&path(folder, index), model) {
            return Ok(batch);
        }
        if stopped() {
            return Err(Error::Stopped);
        }
        let written = self.written.as_ref().filter(|written| written.is_written(index));
        let batches = if let Some(written) = written {
            written.write(model, index, corpus, &self.stop)?
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
        self.find_room(folder, &path(folder, index))?;
        // A batch is of its own group.
        wanted.ok_or_else(|| Error::Torch(format!("batch {index} was not written")))
    }

    /// Says how much room all batches take, and refuses to go on where there is less: the first file
    /// shows how large one is.
    fn find_room(&self, folder: &Path, first: &Path) -> Result<(), Error> {
        if self.has_room.get() {
            return Ok(());
        }
        let failed = |source| Error::Read { path: folder.to_owned(), source };
        let size = fs::metadata(first).map_err(failed)?.len();
        let kept = fs::read_dir(folder).map_err(failed)?.count() as u64;
        let system = rustix::fs::statvfs(folder).map_err(|error| failed(error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        let needed = size.saturating_mul(self.batches.saturating_sub(kept));
        if needed > free {
            return Err(Error::Space { path: folder.to_owned(), needed, free });
        }
        self.has_room.set(true);
        tracing::info!(
            "what the model makes of {} batches takes {:.1} GB in {} until the training ends",
            self.batches,
            size.saturating_mul(self.batches) as f64 / 1e9,
            folder.display()
        );
        Ok(())
    }

    /// Removes the files, those that this training had before a resume among them: they take much
    /// room, and nobody else has a use for them.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove(&self.root)
    }
}

/// A name for all that batches and their states depend on.
fn name(state: &TrainingState) -> Result<String, Error> {
    let config = &state.config;
    let train = &config.train;
    let text = serde_json::to_string(&(
        (&state.trunk_sha256, &state.corpus_sha256, &state.tokenizer_sha256, &config.data),
        (train.batch, config.columns(), train.seed, train.precision, &config.heads.kind),
    ));
    let text =
        text.map_err(|error| Error::Torch(format!("cannot describe the batches: {error}")))?;
    Ok(format!("{:.16}", format!("{:x}", Sha256::digest(text))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;

    fn state(sets: &[&str], corpus: &str, trunk: &str) -> TrainingState {
        const RECIPE: &str = "[model]\ninit_from = \"m\"\n\
            [heads]\ncount = 2\ntype = \"medusa\"\ntrain = \"alone\"\n\
            [data]\nbatches = 4\nprompt_tokens = 4\n\
            [train]\nsteps = 9\nbatch = 2\nsequence = 8\nseed = 1\n";
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let config = TrainConfig::from_toml(RECIPE, &sets).unwrap();
        let mut state = TrainingState::new(&config, corpus, &Tokenizer::bytes());
        state.trunk_sha256 = Some(trunk.to_owned());
        state
    }

    #[test]
    fn batches_that_the_disk_has_no_room_for_are_refused_once_the_first_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let first = path(folder.path(), 0);
        fs::write(&first, [0; 100]).unwrap();
        let cache = |batches| StateCache {
            folder: Some(folder.path().to_owned()),
            root: folder.path().to_owned(),
            written: None,
            batches,
            has_room: false.into(),
            stop: Arc::default(),
        };
        cache(1000).find_room(folder.path(), &first).unwrap();
        let full = cache(u64::MAX / 200);
        let error = full.find_room(folder.path(), &first).unwrap_err().to_string();
        assert!(error.contains("MB") && error.contains("data.batches"), "{error}");
        assert!(full.find_room(folder.path(), &first).is_err());
    }

    #[test]
    fn states_of_another_text_or_model_lie_elsewhere() {
        let own = name(&state(&[], "a", "m")).unwrap();
        assert_eq!(own.len(), 16);
        // How long and how fast heads learn from them does not matter.
        for set in ["train.steps=99", "optimizer.learning_rate=0.5", "train.checkpoint_every=3"] {
            assert_eq!(name(&state(&[set], "a", "m")).unwrap(), own, "{set}");
        }
        for set in [
            "train.seed=2",
            "train.batch=3",
            "train.sequence=9",
            "data.generated=0.5",
            "data.batches=5",
            "heads.count=3",
        ] {
            assert_ne!(name(&state(&[set], "a", "m")).unwrap(), own, "{set}");
        }
        assert_ne!(name(&state(&[], "b", "m")).unwrap(), own);
        assert_ne!(name(&state(&[], "a", "n")).unwrap(), own);
    }
}
