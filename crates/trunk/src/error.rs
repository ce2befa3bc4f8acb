//! What can go wrong in this layer.

use std::path::{Path, PathBuf};

/// An error of the trunk, its configuration or its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] foretoken_kernels::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
    /// Sizes that cannot be combined.
    #[error("{key}: {problem}")]
    Config {
        /// The key that is wrong.
        key: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A file or folder could not be read or written.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file's content is not what its format promises.
    #[error("{}: {}", shown(path), one_line(problem))]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor is missing, unknown, or of the wrong shape.
    #[error("{}: tensor {}: {}", shown(path), name.escape_debug(), one_line(problem))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the file system, with the path that it happened at.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// An error of a file's content.
    pub fn format(path: &Path, problem: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), problem: problem.into() }
    }

    /// An error of a tensor in a file.
    pub fn tensor(path: &Path, name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), name: name.to_owned(), problem: problem.into() }
    }

    /// An error of a configuration key.
    pub fn config(key: &str, problem: impl Into<String>) -> Self {
        Self::Config { key: key.to_owned(), problem: problem.into() }
    }
}

/// A path in one line: an index names files too.
fn shown(path: &Path) -> String {
    one_line(&path.display().to_string())
}

/// A text from a file in one line: a damaged file's names may have line ends in them.
fn one_line(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}
