//! Files as memory.

use crate::{Error, Result};
use std::fs::File;
use std::path::Path;

/// A read-only view of a whole file.
///
/// # Errors
/// When the file cannot be opened or mapped.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    let metadata = file.metadata().map_err(|source| Error::io(path, source))?;
    if !metadata.is_file() {
        return Err(Error::format(path, "this is no file"));
    }
    // SAFETY: the map is private and read-only. Files that we write are replaced by rename, never
    // changed in place; a file that another program cuts short while it is read ends the process,
    // as for every memory-mapping reader.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|source| Error::io(path, source))
}
