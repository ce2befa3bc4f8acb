//! What can go wrong in this layer.

/// An error of generation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its caller wanted no more of it.
    #[error("stopped, as it was asked to")]
    Stopped,
    /// There is nothing to go on from.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Rows of text that are all prompt.
    #[error("a prompt of {prompt} tokens leaves nothing to write of rows of {columns}")]
    NothingToWrite {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of a row.
        columns: usize,
    },
    /// A prompt that the model has no positions for.
    #[error(
        "the prompt has {tokens} tokens, but the model's context is {context}: shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions that the model is made for.
        context: usize,
    },
    /// A token that the model does not know.
    #[error(
        "the prompt has token {token}, but the model's vocabulary ends at {last}: is it encoded \
         with the model's own tokenizer?"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// The model's last token.
        last: usize,
    },
    /// More heads than the model has that predict one token after the other, or none.
    #[error(
        "decoding with {asked} heads was asked for, but the model has {available} that predict one \
         token after the other: choose 1 to {available}"
    )]
    Heads {
        /// Heads asked for.
        asked: usize,
        /// Heads of the model before the first that leaps.
        available: usize,
    },
    /// A sampling option outside its range.
    #[error("{option} is {value}, it has to be {expected}")]
    Sampling {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The values that it may have.
        expected: &'static str,
    },
    /// Options that exist but not together yet.
    #[error("{what} is not built yet: {instead}")]
    NotBuilt {
        /// What was asked for.
        what: &'static str,
        /// What there is instead.
        instead: &'static str,
    },
    /// The model or one of its heads.
    #[error(transparent)]
    Model(#[from] foretoken_heads::Error),
    /// The trunk.
    #[error(transparent)]
    Trunk(#[from] foretoken_trunk::Error),
    /// A kernel.
    #[error(transparent)]
    Kernel(#[from] foretoken_kernels::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
