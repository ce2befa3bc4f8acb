//! A place for large files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A folder that is empty at first and gone with this value. Its name is always the same, so that
/// runs that were stopped don't pile up.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                bail!("cannot empty {}: {error}", path.display())
            }
            _ => {}
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// A place in the folder.
    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: the next run empties it.
        fs::remove_dir_all(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_empty_at_first_and_gone_at_last() -> Result<()> {
        let place = tempfile::tempdir()?;
        let path = place.path().join("scratch");
        fs::create_dir(&path)?;
        fs::write(path.join("left"), "from a run that was stopped")?;
        let scratch = Scratch::new(path.clone())?;
        assert_eq!(fs::read_dir(&path)?.count(), 0);
        fs::write(scratch.join("x"), "")?;
        drop(scratch);
        assert!(!path.exists());
        Ok(())
    }
}
