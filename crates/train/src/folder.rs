//! Folders that appear whole or not at all.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use foretoken_trunk::io::sync_folder;

use crate::Error;

/// Ends the names of folders that are being written or replaced.
const PARTIAL: &str = ".partial";

/// Keeps other trainings out of `out` until the file is dropped or the process ends, however it
/// ends. Some network file systems have no locks: there it is the user who must not start two.
pub(crate) fn lock(out: &Path) -> Result<File, Error> {
    let path = out.join(".lock");
    let file = File::create(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: out.to_owned() }),
        Err(TryLockError::Error(error)) => {
            tracing::warn!("{} cannot be locked: {error}", path.display());
        }
    }
    Ok(file)
}

/// Lets `fill` write a folder beside `path`, then puts it in `path`'s place.
pub(crate) fn replace_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |reason: String| Error::Save { path: path.to_owned(), reason };
    let new = sibling(path, "new");
    let old = sibling(path, "old");
    let attempt = || {
        remove(&new)?;
        fs::create_dir_all(&new).map_err(|source| failed(source.to_string()))?;
        fill(&new).map_err(|error| failed(error.to_string()))?;
        let swap = || {
            sync_folder(&new)?;
            if path.exists() {
                if old.exists() {
                    fs::remove_dir_all(&old)?;
                }
                fs::rename(path, &old)?;
            }
            fs::rename(&new, path)?;
            sync_folder(path.parent().unwrap_or(Path::new("")))
        };
        swap().map_err(|source: std::io::Error| failed(source.to_string()))?;
        remove(&old)
    };
    attempt().inspect_err(|_| {
        // Best effort: the error that led here is the one to report.
        let _ = remove(&new);
        if !path.exists() && old.exists() {
            let _ = fs::rename(&old, path);
        }
    })
}

/// Puts back what an interruption between the two renames of [`replace_folder`] set aside, and
/// removes what it left unfinished.
pub(crate) fn recover(path: &Path) -> Result<(), Error> {
    let old = sibling(path, "old");
    if old.exists() && !path.exists() {
        fs::rename(&old, path).map_err(|source| Error::Write { path: path.to_owned(), source })?;
    }
    remove(&old)?;
    remove(&sibling(path, "new"))
}

/// Whether a name is that of a folder in the making.
pub(crate) fn is_partial(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(PARTIAL)
}

/// Removes a folder that was whole: an interruption never leaves a part of it under its name.
pub(crate) fn discard(path: &Path) -> Result<(), Error> {
    let old = sibling(path, "old");
    remove(&old)?;
    fs::rename(path, &old).map_err(|source| Error::Write { path: path.to_owned(), source })?;
    remove(&old)
}

/// Removes a folder with all in it, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}{PARTIAL}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_is_replaced_whole_and_a_failure_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let write = |text: &'static str| {
            move |folder: &Path| {
                fs::write(folder.join("x"), text).unwrap();
                Ok(())
            }
        };
        replace_folder(&path, write("one")).unwrap();
        replace_folder(&path, write("two")).unwrap();
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "two");
        let error = replace_folder(&path, |folder| {
            fs::write(folder.join("x"), "half").unwrap();
            Err(Error::Torch("out of paper".to_owned()))
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("model") && message.contains("out of paper"), "{message}");
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "two");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn what_an_interruption_set_aside_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        fs::create_dir(sibling(&path, "old")).unwrap();
        fs::create_dir(sibling(&path, "new")).unwrap();
        recover(&path).unwrap();
        assert_eq!(names(dir.path()), ["model"]);
        recover(&path).unwrap();
        assert_eq!(names(dir.path()), ["model"]);
    }
}
