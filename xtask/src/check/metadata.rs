//! The part of `cargo metadata` that the layer check reads.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;
use crate::workspace::Workspace;

/// `cargo metadata --format-version 1`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// Every package of the build, members and others.
    pub(crate) packages: Vec<Package>,
    /// The ids of the repository's own packages.
    pub(crate) workspace_members: Vec<String>,
    /// Which package uses which.
    pub(crate) resolve: Resolve,
}

/// One package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name, as in `Cargo.toml`.
    pub(crate) name: String,
    /// Its unique id.
    pub(crate) id: String,
    /// Its declared dependencies, those of tests and build scripts among them.
    pub(crate) dependencies: Vec<Dependency>,
    /// The path of its `Cargo.toml`.
    pub(crate) manifest_path: std::path::PathBuf,
}

/// One declared dependency.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package's name.
    pub(crate) name: String,
}

/// The resolved graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    /// One node a package.
    pub(crate) nodes: Vec<Node>,
}

/// The resolved dependencies of one package.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    /// The package's id.
    pub(crate) id: String,
    /// The ids of what it uses.
    pub(crate) dependencies: Vec<String>,
}

impl Metadata {
    /// Asks Cargo.
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let text = process::stdout(process::cargo().current_dir(workspace.root()).args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ]))?;
        serde_json::from_str(&text).context("`cargo metadata` answers in an unknown form")
    }

    /// The repository's own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}
