//! What can go wrong in this layer.

/// An error of the heads or of a whole model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trunk, its configuration or a file of weights.
    #[error(transparent)]
    Trunk(#[from] foretoken_trunk::Error),
    /// A tokenizer could not be read or made.
    #[error(transparent)]
    Data(#[from] foretoken_data::Error),
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] foretoken_kernels::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
    /// A head type that the registry does not know.
    #[error("heads.type: there is no head type \"{kind}\", the known ones are: {known}")]
    UnknownHead {
        /// The name asked for.
        kind: String,
        /// The names that exist.
        known: String,
    },
    /// More heads than the layers allow, or none.
    #[error(
        "heads.count: {count} heads of type \"{kind}\" need model.layers to be more than {needed}, \
         it is {layers}"
    )]
    TooManyHeads {
        /// Heads asked for.
        count: usize,
        /// Their type.
        kind: String,
        /// Layers that the heads take up.
        needed: usize,
        /// Layers in all.
        layers: usize,
    },
    /// The heads' targets do not rise from the next token.
    #[error(
        "the offsets {offsets:?} do not suit {heads} heads: give {heads}, the first 0, each larger \
         than the one before"
    )]
    Offsets {
        /// The offsets.
        offsets: Vec<usize>,
        /// Heads of the model.
        heads: usize,
    },
    /// A head that is told tokens was not.
    #[error(
        "heads of type \"{kind}\" are told the tokens before the one they predict: name the text \
         (MultiTokenModel::told, text_logits)"
    )]
    NotTold {
        /// The type.
        kind: &'static str,
    },
    /// Heads that cannot run as one.
    #[error(
        "head {head}, of type \"{kind}\", cannot run in one pass with the others: they have to be \
         blocks of one shape over the trunk's output"
    )]
    NotAlike {
        /// The head, from 0.
        head: usize,
        /// Its type.
        kind: &'static str,
    },
    /// Tokens that no draft vocabulary can be made of.
    #[error(
        "a draft vocabulary of {tokens} tokens for a model of {vocab}: name at least one, each once \
         and below {vocab}"
    )]
    DraftVocabulary {
        /// Tokens named.
        tokens: usize,
        /// Tokens of the model.
        vocab: usize,
    },
    /// A model that another format has no way to say.
    #[error("this model cannot be written as {format}: {problem}")]
    Export {
        /// The format.
        format: &'static str,
        /// What there is no way to say.
        problem: String,
    },
    /// A place for a new folder that is taken.
    #[error("{}: there is something already; name a new or an empty folder", path.display())]
    Occupied {
        /// The place.
        path: std::path::PathBuf,
    },
    /// A head's number that the model does not have.
    #[error("head {index} was asked for, but the model has heads 0 to {}", count - 1)]
    NoSuchHead {
        /// The number asked for, from 0.
        index: usize,
        /// Heads of the model.
        count: usize,
    },
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
