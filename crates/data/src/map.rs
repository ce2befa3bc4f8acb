//! Memory-mapping a file: the crate's only unsafe function.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file for reading; an empty one maps to nothing.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Option<Mmap>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    if length == 0 {
        return Ok(None);
    }
    // SAFETY: a mapping is sound as long as nobody changes the file's bytes or length under it.
    // This is called for finished shards alone. They are written under another name, renamed
    // once, named by their content and never opened for writing again; a new preparation makes
    // new files and unlinks old ones, which leaves existing mappings as they are. The bytes are
    // read as integers of any value, through slices that the mapping's length bounds.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
    Ok(Some(map))
}
