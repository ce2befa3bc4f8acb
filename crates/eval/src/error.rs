//! What can go wrong in an evaluation.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of heads that the model (or the drafts) does not have.
    #[error("{used} heads were asked for, but there are {available}: use 1 to {available}")]
    HeadsUsed {
        /// Heads asked for.
        used: usize,
        /// Heads that exist.
        available: usize,
    },
    /// The heads' drafts cover different numbers of positions.
    #[error("head {head} has drafts for {found} positions, the first head for {expected}")]
    UnevenDrafts {
        /// The head (from 0) that differs.
        head: usize,
        /// Positions of the first head.
        expected: usize,
        /// Positions of this head.
        found: usize,
    },
    /// Too little text for what was asked.
    #[error("the text has {found} tokens where at least {needed} are needed: use a longer text")]
    TextTooShort {
        /// Tokens needed.
        needed: usize,
        /// Tokens there are.
        found: usize,
    },
    /// An option that has to be at least 1 is 0.
    #[error("{option} is 0: it has to be at least 1")]
    Zero {
        /// The option's name.
        option: &'static str,
    },
    /// A window of which the prompt leaves nothing.
    #[error("a prompt of {prompt} positions leaves nothing of a window of {window}")]
    PromptFillsWindow {
        /// Positions of the prompt.
        prompt: usize,
        /// Positions of the window.
        window: usize,
    },
    /// A token id that the model's vocabulary does not have.
    #[error("token {token} is outside of the model's vocabulary of {vocab}")]
    OutsideVocabulary {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// Reading the shard failed.
    #[error(transparent)]
    Data(#[from] foretoken_data::Error),
    /// The model's forward pass failed.
    #[error(transparent)]
    Model(#[from] foretoken_heads::Error),
    /// The loss failed.
    #[error(transparent)]
    Loss(#[from] foretoken_loss::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
}
