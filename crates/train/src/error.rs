//! What can go wrong in training, each with what to do about it.

use std::path::PathBuf;

/// An error of this crate; each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("cannot write {}: {source}; what was there before is untouched", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too little free space for what a training keeps beside its checkpoints.
    #[error(
        "{}: what the model makes of data.batches takes {} MB more there, of which {} MB are free; make \
         room and resume, or set data.batches lower",
        path.display(), needed.div_ceil(1_000_000), free / 1_000_000
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A recipe isn't TOML, or a value has the wrong type.
    #[error("{name}: {message}")]
    Config {
        /// The recipe's file.
        name: String,
        /// What is wrong in it.
        message: String,
    },
    /// A `--set` isn't `section.key=value`.
    #[error("`--set {set}`: write section.key=value, for example train.steps=40")]
    Set {
        /// What was written.
        set: String,
    },
    /// A key that doesn't exist.
    #[error("{name}: there is no key `{key}`{hint}")]
    UnknownKey {
        /// The recipe's file.
        name: String,
        /// The key as written.
        key: String,
        /// The nearest known one, if one is near.
        hint: String,
    },
    /// A value that can't be, alone or beside another.
    #[error("`{key}`: {message}")]
    Value {
        /// The key.
        key: String,
        /// Why it can't be.
        message: String,
    },
    /// A checkpoint that can't be used.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// None of the checkpoints can be used.
    #[error("no usable checkpoint in {}: {message}; start again without --resume, in another --out", path.display())]
    NoCheckpoint {
        /// The folder of checkpoints.
        path: PathBuf,
        /// What is wrong with the newest.
        message: String,
    },
    /// A run can't go on with another recipe than it began with.
    #[error(
        "`{key}` is {new} now, but the checkpoint {} was trained with {old}; set it back, or train into another --out", path.display()
    )]
    Changed {
        /// The key.
        key: String,
        /// Its value in the checkpoint.
        old: String,
        /// Its value now.
        new: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A run that would overwrite another.
    #[error("{} already holds a training run; add --resume to go on with it, or choose another --out", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A run that another process is at.
    #[error("another training writes to {} at this moment; wait for its end, or choose another --out", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that couldn't be saved.
    #[error("cannot save {}: {reason}; nothing that was there before is lost: free some space or choose another --out, then go on with --resume", path.display())]
    Save {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The text has too few tokens.
    #[error(
        "the training split of {name} has {tokens} tokens, fewer than one window of {needed}; give it more text or lower train.sequence"
    )]
    TooLittleText {
        /// The corpus.
        name: String,
        /// Its tokens.
        tokens: usize,
        /// The tokens of one window.
        needed: usize,
    },
    /// Training fell apart.
    #[error(
        "the gradient was not finite in {steps} steps in a row, up to step {step}; lower optimizer.learning_rate and optimizer.muon_learning_rate, or raise optimizer.warmup, and train into another --out{}",
        before.as_ref().map_or(String::new(), |path| format!(
            ", from the first step or from {}, which is from before them: name it in model.init_from \
             and leave out the sizes in [model] and data.tokenizer",
            path.display()
        ))
    )]
    Diverged {
        /// The last of them.
        step: u64,
        /// How many in a row.
        steps: u32,
        /// The newest checkpoint whose weights had a finite gradient, if it is of a whole model.
        before: Option<PathBuf>,
    },
    /// [`TrainOptions::stop`](crate::TrainOptions::stop), while what heads learn from was made.
    #[error("stopped, as it was asked to")]
    Stopped,
    /// Processes that would not train the same.
    #[error(
        "rank {rank} {message}: start all processes with one recipe, and let all see the same --out \
         and text"
    )]
    Apart {
        /// The process that differs.
        rank: usize,
        /// In what.
        message: String,
    },
    /// Optimiser state that doesn't fit the model.
    #[error("optimizer state of `{name}`: {message}")]
    State {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// From the data layer.
    #[error(transparent)]
    Data(#[from] foretoken_data::Error),
    /// From the trunk layer.
    #[error(transparent)]
    Trunk(#[from] foretoken_trunk::Error),
    /// From the head layer.
    #[error(transparent)]
    Heads(#[from] foretoken_heads::Error),
    /// From the loss layer.
    #[error(transparent)]
    Loss(#[from] foretoken_loss::Error),
    /// From another process of the training.
    #[error(transparent)]
    Dist(#[from] foretoken_dist::Error),
    /// From the decoding layer.
    #[error(transparent)]
    Decode(#[from] foretoken_decode::Error),
    /// From the kernels.
    #[error(transparent)]
    Kernel(#[from] foretoken_kernels::Error),
    /// From libtorch.
    #[error("libtorch: {0}")]
    Torch(String),
}

impl From<tch::TchError> for Error {
    /// Keeps the first line: the rest is a trace of libtorch's own functions.
    fn from(error: tch::TchError) -> Self {
        let text = match error {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Self::Torch(text.lines().next().unwrap_or_default().to_owned())
    }
}
