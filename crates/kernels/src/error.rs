//! What can go wrong in this layer.

/// An error of the kernels: each says what was wrong and with which shapes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
    /// A call into libtorch's C++ side failed.
    #[error("libtorch: {0}")]
    Native(String),
    /// Two shapes that have to fit do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The argument that does not fit.
        what: &'static str,
        /// What would fit.
        expected: String,
        /// What was given.
        found: String,
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
    /// A cache or a rotary table has fewer positions than asked for.
    #[error("{needed} positions are needed, but {what} has {capacity}")]
    Capacity {
        /// What is too short.
        what: &'static str,
        /// The positions asked for.
        needed: i64,
        /// The positions that exist.
        capacity: i64,
    },
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;

/// libtorch appends a C++ stack trace to its messages; a reader wants the sentence.
fn first_line(error: &tch::TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
