//! What can go wrong in this layer.

/// An error of the objective.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] foretoken_heads::Error),
    /// The trunk refused its input.
    #[error(transparent)]
    Trunk(#[from] foretoken_trunk::Error),
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] foretoken_kernels::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
    /// The model's heads are not as many as the weights.
    #[error("the loss has {weights} weights, but the model has {heads} heads")]
    Heads {
        /// Weights of the loss.
        weights: usize,
        /// Heads of the model.
        heads: usize,
    },
    /// Heads are to be trained where there are none.
    #[error("the model has no head beyond the first: there is nothing to train on a frozen trunk")]
    NoHeads,
    /// A head's weight is no weight.
    #[error("the weight of head {head} is {weight}: give a finite number, 0 or more")]
    Weight {
        /// The head, from 0.
        head: usize,
        /// Its weight.
        weight: f64,
    },
    /// A number that is set is outside its range.
    #[error("{name} is {found}: give {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// Documents that are not those of the tokens.
    #[error(
        "tokens of shape {expected:?} with documents of shape {found:?}: give each token its document"
    )]
    Documents {
        /// Shape of the tokens.
        expected: Vec<i64>,
        /// Shape of the documents.
        found: Vec<i64>,
    },
    /// A batch without a single position that has all its targets.
    #[error("a batch of {columns} columns is too short: the heads' targets need at least {needed}")]
    Columns {
        /// Tokens in a row of the batch.
        columns: i64,
        /// Tokens of a row with one position.
        needed: usize,
    },
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
