//! Folders that appear whole or not at all.

use crate::{Error, Result};
use foretoken_trunk::Error as TrunkError;
use foretoken_trunk::io::sync_folder;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A place where a folder will be: nothing yet, or an empty folder.
///
/// ```
/// use foretoken_heads::NewFolder;
///
/// let somewhere = tempfile::tempdir().unwrap();
/// let out = somewhere.path().join("out");
/// NewFolder::at(&out)?.fill(|folder| {
///     std::fs::write(folder.join("x"), "whole").unwrap();
///     Ok(())
/// })?;
/// assert_eq!(std::fs::read_to_string(out.join("x")).unwrap(), "whole");
/// assert!(NewFolder::at(&out).is_err());
/// # Ok::<(), foretoken_heads::Error>(())
/// ```
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    /// Where the folder is until it is whole: hidden, beside its place.
    partial: PathBuf,
}

impl NewFolder {
    /// Looks whether the place is free.
    ///
    /// # Errors
    /// When there is a file, or a folder with something in it.
    pub fn at(path: &Path) -> Result<Self> {
        let occupied = || Error::Occupied { path: path.to_owned() };
        let taken = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) if error.kind() == ErrorKind::NotADirectory => true,
            Err(error) => return Err(TrunkError::io(path, error).into()),
        };
        if taken {
            return Err(occupied());
        }
        let name = path.file_name().ok_or_else(occupied)?.to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        Ok(Self { path: path.to_owned(), partial })
    }

    /// Lets `fill` write into a folder beside the place, and then puts it there.
    ///
    /// # Errors
    /// When `fill` or the disk fails; nothing is left behind.
    pub fn fill(self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        // What a process of the same number left behind.
        let _ = fs::remove_dir_all(&self.partial);
        let filled = self.make(fill);
        if filled.is_err() {
            // Best effort: the error that led here is the one to report.
            let _ = fs::remove_dir_all(&self.partial);
        }
        filled
    }

    fn make(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let Self { path, partial } = self;
        fs::create_dir_all(partial).map_err(|source| TrunkError::io(path, source))?;
        fill(partial)?;
        let put = || {
            sync_folder(partial)?;
            if path.exists() {
                // Fails where it has come to hold something.
                fs::remove_dir(path)?;
            }
            fs::rename(partial, path)?;
            sync_folder(path.parent().unwrap_or(Path::new("")))
        };
        Ok(put().map_err(|source| TrunkError::io(path, source))?)
    }
}
