//! Where things are in the repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The repository that this `xtask` was built from.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The repository root: the parent of the folder that this crate was compiled in.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask must lie in a folder of the repository")?;
        anyhow::ensure!(
            root.join("Cargo.toml").is_file(),
            "{} has no Cargo.toml: the repository was moved after xtask was built; run `cargo xtask` \
             in its new place",
            root.display()
        );
        Ok(Self { root: root.to_path_buf() })
    }

    /// The repository's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The git-ignored folder that set-up fills.
    pub(crate) fn libtorch(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Cargo's build folder.
    pub(crate) fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// The `.py` files that the corpus `python-code` is made from.
    pub(crate) fn python_code(&self) -> PathBuf {
        self.libtorch().join("corpus/python-code")
    }
}
