//! A training's state as a folder: the model's files and what a resume needs beside them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use foretoken_data::Tokenizer;
use foretoken_heads::MultiTokenModel;
use foretoken_trunk::io::{SafetensorsFiles, write_atomically, write_safetensors_in_turn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::folder::{discard, is_partial, remove, replace_folder};
use crate::{Error, Optimizer, checksums, recipe};

const TRAINING: &str = "training.json";
const OPTIMIZER: &str = "optimizer.safetensors";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The heads beyond the first, in a checkpoint of heads that are trained alone.
pub(crate) const HEADS: &str = "heads.safetensors";

/// Version of `training.json`.
const VERSION: u32 = 1;

/// Keys that may change when a training goes on.
const FREE_KEYS: [&str; 5] = [
    "train.steps",
    "train.checkpoint_every",
    "train.keep",
    "train.validate",
    "train.shard_optimizer",
];

/// `training.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingState {
    version: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Steps in which the weights moved.
    pub(crate) updates: u64,
    /// Steps up to this one, in a row, in which they didn't.
    pub(crate) skipped_in_a_row: u32,
    /// Tokens seen.
    pub(crate) tokens: u64,
    /// Seconds of training.
    pub(crate) seconds: f64,
    /// Seconds of them in which steps waited for their batches.
    #[serde(default)]
    pub(crate) data_wait_seconds: f64,
    /// Mean loss of all trained heads on the batches that the checkpoint is judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) validation_loss: Option<f64>,
    /// SHA-256 of the corpus.
    pub(crate) corpus_sha256: String,
    /// SHA-256 of the tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokenizer_sha256: Option<String>,
    /// SHA-256 of the pretrained model that heads are trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trunk_sha256: Option<String>,
    /// The recipe.
    pub(crate) config: TrainConfig,
}

impl TrainingState {
    /// Before the first step.
    pub(crate) fn new(config: &TrainConfig, corpus_sha256: &str, tokenizer: &Tokenizer) -> Self {
        Self {
            version: VERSION,
            step: 0,
            updates: 0,
            skipped_in_a_row: 0,
            tokens: 0,
            seconds: 0.0,
            data_wait_seconds: 0.0,
            validation_loss: None,
            corpus_sha256: corpus_sha256.to_owned(),
            tokenizer_sha256: Some(tokenizer.info().sha256),
            trunk_sha256: None,
            config: config.clone(),
        }
    }

    /// A number that recipes and texts that differ do not have in common.
    pub(crate) fn fingerprint(&self) -> Result<i64, Error> {
        let mut hash = Sha256::new();
        for (key, value) in recipe::flatten(&self.config)? {
            hash.update(format!("{key}={value}\n"));
        }
        hash.update(&self.corpus_sha256);
        hash.update(self.tokenizer_sha256.as_deref().unwrap_or_default());
        let bytes: [u8; 32] = hash.finalize().into();
        Ok(i64::from_le_bytes(std::array::from_fn(|place| bytes[place])))
    }

    /// Refuses to go on with another recipe or corpus than the checkpoint at `path` was made with.
    fn check_same(&self, now: &Self, path: &Path) -> Result<(), Error> {
        let changed = |key: &str, old: &str, new: &str| Error::Changed {
            key: key.to_owned(),
            old: old.to_owned(),
            new: new.to_owned(),
            path: path.to_owned(),
        };
        let (old, new) = (recipe::flatten(&self.config)?, recipe::flatten(&now.config)?);
        let value = |flat: &[(String, String)], key: &str| {
            let found = flat.iter().find(|(name, _)| name == key);
            found.map_or("not set".to_owned(), |(_, value)| value.clone())
        };
        for (key, _) in old.iter().chain(&new) {
            let (old, new) = (value(&old, key), value(&new, key));
            if old != new && !FREE_KEYS.contains(&key.as_str()) {
                return Err(changed(key, &old, &new));
            }
        }
        if self.corpus_sha256 != now.corpus_sha256 {
            let text = "the corpus with SHA-256 ";
            let (old, new) = (&self.corpus_sha256, &now.corpus_sha256);
            return Err(changed("data", &format!("{text}{old}"), &format!("{text}{new}")));
        }
        // Older checkpoints do not say.
        if let (Some(old), Some(new)) = (&self.tokenizer_sha256, &now.tokenizer_sha256)
            && old != new
        {
            let text = "a tokenizer with SHA-256 ";
            let key = match now.config.model.init_from {
                None => "data.tokenizer",
                Some(_) => "model.init_from",
            };
            return Err(changed(key, &format!("{text}{old}"), &format!("{text}{new}")));
        }
        if self.trunk_sha256 != now.trunk_sha256 {
            let text = |sha256: &Option<String>| {
                format!("a model with SHA-256 {}", sha256.as_deref().unwrap_or("unknown"))
            };
            let (old, new) = (text(&self.trunk_sha256), text(&now.trunk_sha256));
            return Err(changed("model.init_from", &old, &new));
        }
        Ok(())
    }
}

/// What a checkpoint gives back: beside the model, `M`, what a resume needs.
pub(crate) struct Loaded<M> {
    pub(crate) state: TrainingState,
    pub(crate) model: M,
    pub(crate) optimizer: SafetensorsFiles,
}

/// The checkpoints of a training, `step-N` each.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    /// Steps of those that were found damaged.
    damaged: RefCell<BTreeSet<u64>>,
}

impl Checkpoints {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, damaged: RefCell::default() }
    }

    /// Steps of all checkpoints, the newest first.
    pub(crate) fn steps(&self) -> Result<Vec<u64>, Error> {
        let mut steps: Vec<u64> = self
            .names()?
            .iter()
            .filter_map(|name| name.strip_prefix("step-").and_then(|step| step.parse().ok()))
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Writes a checkpoint whole or not at all. `write_model` puts the model's part into the folder.
    pub(crate) fn save(
        &self,
        state: &TrainingState,
        optimizer: &Optimizer,
        write_model: impl Fn(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.path(state.step);
        fs::create_dir_all(&self.folder)
            .map_err(|source| Error::Write { path: self.folder.clone(), source })?;
        replace_folder(&path, |folder| {
            write_model(folder)?;
            write_optimizer(optimizer, &folder.join(OPTIMIZER))?;
            let json = serde_json::to_vec_pretty(state).map_err(|error| Error::Write {
                path: folder.join(TRAINING),
                source: error.into(),
            })?;
            write_atomically(&folder.join(TRAINING), &json)?;
            checksums::write(folder)
        })?;
        self.damaged.borrow_mut().remove(&state.step);
        for name in self.names()?.iter().filter(|name| is_partial(name)) {
            remove(&self.folder.join(name))?;
        }
        Ok(path)
    }

    /// Steps whose checkpoints were not found damaged, the newest first.
    pub(crate) fn usable(&self) -> Result<Vec<u64>, Error> {
        let mut steps = self.steps()?;
        steps.retain(|step| !self.damaged.borrow().contains(step));
        Ok(steps)
    }

    /// Removes all checkpoints but the newest `keep` and the best. Those that were passed over as
    /// damaged do not count, and stay as they are.
    pub(crate) fn prune(&self, keep: usize) -> Result<(), Error> {
        let best = self.best()?;
        for step in self.usable()?.into_iter().skip(keep) {
            if best != Some(step) {
                discard(&self.path(step))?;
            }
        }
        Ok(())
    }

    /// The step of the checkpoint with the lowest loss on the validation split; `None` where none
    /// was judged. One that cannot be read is not the best.
    pub(crate) fn best(&self) -> Result<Option<u64>, Error> {
        let loss = |step: u64| read_state(&self.path(step)).ok()?.validation_loss;
        let judged = self.usable()?.into_iter().filter_map(|step| Some((loss(step)?, step)));
        Ok(judged.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step))
    }

    /// The newest checkpoint that is whole; `None` where there is none at all. Damaged ones are
    /// named in the log and passed over; one of another recipe or corpus is refused. `read_model`
    /// reads the model's part of a folder.
    pub(crate) fn load<M>(
        &self,
        now: &TrainingState,
        mut read_model: impl FnMut(&Path) -> Result<M, Error>,
    ) -> Result<Option<Loaded<M>>, Error> {
        let mut first_problem = None;
        for step in self.steps()? {
            let path = self.path(step);
            let loaded = match checksums::verify(&path).and_then(|()| read_state(&path)) {
                Ok(state) => {
                    state.check_same(now, &path)?;
                    read_tensors(&path, state, &mut read_model)
                }
                Err(error) => Err(error),
            };
            match loaded {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) => {
                    tracing::warn!(
                        "checkpoint {} is damaged and passed over: {error}",
                        path.display()
                    );
                    self.damaged.borrow_mut().insert(step);
                    first_problem.get_or_insert(error.to_string());
                }
            }
        }
        match first_problem {
            None => Ok(None),
            Some(message) => Err(Error::NoCheckpoint { path: self.folder.clone(), message }),
        }
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let read = |source| Error::Read { path: self.folder.clone(), source };
        match fs::read_dir(&self.folder) {
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(read(source)),
            Ok(entries) => entries
                .map(|entry| Ok(entry.map_err(read)?.file_name().to_string_lossy().into_owned()))
                .collect(),
        }
    }
}

/// Writes the files of a model folder that other tools open.
pub(crate) fn save_model(
    model: &MultiTokenModel,
    tokenizer: &Tokenizer,
    folder: &Path,
) -> Result<(), Error> {
    model.save(folder)?;
    Ok(tokenizer.save(&folder.join(TOKENIZER))?)
}

/// Writes the moments tensor by tensor: other processes may have parts of them.
fn write_optimizer(optimizer: &Optimizer, path: &Path) -> Result<(), Error> {
    let entries = optimizer.state_entries();
    Ok(write_safetensors_in_turn(path, &entries, &[], |put| {
        let mut write = |_, moments| {
            put(&moments).map_err(|source| Error::Write { path: path.to_owned(), source })
        };
        optimizer.each_moment(&mut write).map_err(|error| match error {
            Error::Write { source, .. } => source,
            other => std::io::Error::other(other.to_string()),
        })
    })?)
}

fn read_tensors<M>(
    path: &Path,
    state: TrainingState,
    read_model: &mut impl FnMut(&Path) -> Result<M, Error>,
) -> Result<Loaded<M>, Error> {
    let optimizer = SafetensorsFiles::open(&[&path.join(OPTIMIZER)])?;
    Ok(Loaded { state, model: read_model(path)?, optimizer })
}

fn read_state(path: &Path) -> Result<TrainingState, Error> {
    let file = path.join(TRAINING);
    let text = fs::read(&file).map_err(|source| Error::Read { path: file.clone(), source })?;
    let damaged = |message: String| Error::Checkpoint { path: file.clone(), message };
    let state: TrainingState =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if state.version != VERSION {
        return Err(damaged(format!("version {} where {VERSION} is known", state.version)));
    }
    Ok(state)
}
