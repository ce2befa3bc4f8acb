//! What can go wrong in this layer.

/// An error of the objective.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] foretoken_heads::Error),
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
    /// A batch without a single position that has all its targets.
    #[error("a batch of {columns} columns is too short: {heads} heads need at least {}", heads + 1)]
    Columns {
        /// Tokens in a row of the batch.
        columns: i64,
        /// Heads of the model.
        heads: usize,
    },
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
