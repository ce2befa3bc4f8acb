//! Which libtorch the build uses: the one that set-up fetches, or the user's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::wheels::TORCH;
use crate::workspace::Workspace;

/// Where libtorch comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Libtorch {
    /// Set-up's own folder.
    Fetched(PathBuf),
    /// The folder that the user's `LIBTORCH` names.
    Folder(PathBuf),
    /// The package folder of the `torch` that `python3` has (`LIBTORCH_USE_PYTORCH`).
    Python(PathBuf),
}

impl Libtorch {
    /// Reads `LIBTORCH_USE_PYTORCH` and `LIBTORCH` in the order in which the build does.
    pub(crate) fn detect(workspace: &Workspace) -> Result<Self> {
        if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
            return Ok(Self::Python(package_of_python()?));
        }
        let own = workspace.libtorch();
        // Cargo sets LIBTORCH for us from .cargo/config.toml when the user has not.
        match std::env::var_os("LIBTORCH").map(PathBuf::from) {
            Some(folder) if !same_folder(&folder, &own) => {
                if !library_folder(&folder).join("libtorch_cpu.so").is_file() {
                    bail!(
                        "LIBTORCH is {}, but there is no lib/libtorch_cpu.so in it; correct it, or unset \
                         it to have libtorch fetched",
                        folder.display()
                    );
                }
                Ok(Self::Folder(folder))
            }
            _ => {
                let supported =
                    cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"));
                if !supported {
                    bail!(
                        "set-up fetches libtorch for Linux on x86-64 with glibc only; elsewhere install \
                         libtorch {} yourself and set LIBTORCH",
                        TORCH.version
                    );
                }
                Ok(Self::Fetched(own))
            }
        }
    }

    /// One phrase for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Fetched(folder) => format!("{} in {}", TORCH.version, folder.display()),
            Self::Folder(folder) => format!("that LIBTORCH names, {}", folder.display()),
            Self::Python(package) => format!("of python3's torch, {}", package.display()),
        }
    }

    /// The folder of the shared libraries.
    pub(crate) fn libraries(&self) -> PathBuf {
        match self {
            Self::Fetched(folder) => folder.join("lib"),
            Self::Folder(folder) => library_folder(folder),
            Self::Python(package) => package.join("lib"),
        }
    }

    /// What `LD_LIBRARY_PATH` needs: the repository's rpath knows the fetched libtorch only, and that
    /// only from binaries in `target/`.
    pub(crate) fn search_path(&self) -> Option<PathBuf> {
        let reached =
            matches!(self, Self::Fetched(_)) && std::env::var_os("CARGO_TARGET_DIR").is_none();
        (!reached).then(|| self.libraries())
    }

    /// Lets a program that we start find the libraries.
    pub(crate) fn apply(&self, command: &mut Command) {
        let Some(folder) = self.search_path() else { return };
        let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = std::iter::once(folder).chain(std::env::split_paths(&before));
        if let Ok(path) =
            std::env::join_paths(folders.filter(|folder| !folder.as_os_str().is_empty()))
        {
            command.env("LD_LIBRARY_PATH", path);
        }
    }

    /// A folder with the packages `torch` and `torchgen` of the pinned version, if this libtorch is
    /// part of one.
    pub(crate) fn python_files(&self) -> Option<PathBuf> {
        let package = match self {
            Self::Fetched(_) => return None,
            Self::Folder(folder) | Self::Python(folder) => folder,
        };
        let version = std::fs::read_to_string(package.join("version.py")).ok()?;
        let same = version.contains(&format!("'{}", TORCH.version));
        (same && package.join("nn/functional.py").is_file())
            .then(|| package.parent().map(Path::to_path_buf))
            .flatten()
    }
}

fn library_folder(libtorch: &Path) -> PathBuf {
    let root =
        std::env::var_os("LIBTORCH_LIB").map_or_else(|| libtorch.to_path_buf(), PathBuf::from);
    root.join("lib")
}

fn same_folder(left: &Path, right: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    real(left) == real(right)
}

/// Asks `python3` where its `torch` is, without loading it.
fn package_of_python() -> Result<PathBuf> {
    let code = "import importlib.util as u; s = u.find_spec('torch'); \
                print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new("python3")
        .args(["-c", code])
        .stdin(Stdio::null())
        .output()
        .context("LIBTORCH_USE_PYTORCH is set, but python3 cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but python3 has no torch; install torch {}, or unset the \
             variable to have libtorch fetched",
            TORCH.version
        );
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_foreign_libtorch_needs_a_search_path() {
        assert_eq!(Libtorch::Python("/p/torch".into()).search_path(), Some("/p/torch/lib".into()));
        assert_eq!(Libtorch::Fetched("/a".into()).libraries(), Path::new("/a/lib"));
    }

    #[test]
    fn python_files_are_taken_from_the_same_version_only() -> Result<()> {
        let packages = tempfile::tempdir()?;
        let package = packages.path().join("torch");
        fs::create_dir_all(package.join("nn"))?;
        fs::write(package.join("nn/functional.py"), "")?;
        fs::write(package.join("version.py"), "__version__ = '2.11.0+cpu'\n")?;
        let own = Libtorch::Folder(package.clone());
        assert_eq!(own.python_files().as_deref(), Some(packages.path()));
        fs::write(package.join("version.py"), "__version__ = '2.10.0'\n")?;
        assert_eq!(own.python_files(), None);
        Ok(())
    }
}
