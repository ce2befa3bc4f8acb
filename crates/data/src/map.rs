//! Memory-mapping a file: the crate's only unsafe function, and what watches over the mapping.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use memmap2::Mmap;

use crate::files::sha256_hex;
use crate::{Error, Result};

/// A finished file of known length and content, mapped for reading.
///
/// The file stays open beside its mapping. So it stays readable when its name is removed or given
/// to another file, and [`check`](Self::check) can ask what became of it.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    file: File,
    map: Option<Mmap>,
    length: u64,
    /// When it was last written to, as far as its content is known.
    modified: Mutex<Option<SystemTime>>,
    /// Whether the log says already that it has no name any more.
    nameless: AtomicBool,
}

impl MappedFile {
    /// Maps a file that has to be `length` bytes long; an empty one maps to nothing.
    pub(crate) fn open(path: &Path, length: u64) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let found = file.metadata().map_err(Error::io("read", path))?;
        if found.len() != length {
            return Err(Error::ShardLength {
                path: path.to_path_buf(),
                expected: length,
                found: found.len(),
            });
        }
        let map = if length > 0 { Some(map_file(&file, path)?) } else { None };
        Ok(Self {
            path: path.to_path_buf(),
            file,
            map,
            length,
            modified: Mutex::new(found.modified().ok()),
            nameless: AtomicBool::new(false),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Makes sure that the file is as long as it was and that nobody wrote to it: one system call.
    /// If somebody did, `sha256` tells whether the content is still the same.
    pub(crate) fn check(&self, sha256: &str) -> Result<()> {
        let found = self.file.metadata().map_err(Error::io("read", &self.path))?;
        if found.len() != self.length {
            return Err(Error::ShardChanged {
                path: self.path.clone(),
                expected: self.length,
                found: found.len(),
            });
        }
        if has_no_name(&found) && !self.nameless.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{} was removed while it is in use: this run goes on, the next one needs it",
                self.path.display()
            );
        }
        let modified = found.modified().ok();
        let mut known = self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == modified {
            return Ok(());
        }
        if sha256_hex(self.bytes()) != sha256 {
            return Err(Error::ShardChecksum { path: self.path.clone() });
        }
        tracing::warn!("{} was touched while it is in use, not changed", self.path.display());
        *known = modified;
        Ok(())
    }
}

#[cfg(unix)]
fn has_no_name(found: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(found) == 0
}

#[cfg(not(unix))]
fn has_no_name(_: &Metadata) -> bool {
    false
}

#[allow(unsafe_code)]
fn map_file(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a mapping is sound as long as nobody changes the file's bytes or length under it.
    // This is called for finished shards alone. They are written under another name, renamed
    // once, named by their content and never opened for writing again; a new preparation makes
    // new files and unlinks old ones, which leaves existing mappings as they are. Another program
    // may break that rule: `check` says so before the next batch, and between a check and the
    // reading that follows it the system ends the process with SIGBUS rather than let it read
    // what is not there. The bytes are read as integers of any value, through slices that the
    // mapping's length bounds.
    unsafe { Mmap::map(file) }.map_err(Error::io("map", path))
}
