//! Files that are written whole or not at all, and their checksums.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What the names of unfinished files end in; a folder's next preparation removes them.
pub(crate) const PARTIAL: &str = ".partial";

/// The name under which a file is written until it is whole: hidden, beside the final one.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{serial}{PARTIAL}", std::process::id()))
}

/// Writes a small file beside its place, syncs it and renames it into place.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let partial = partial_path(path);
    let written = File::create(&partial)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .map_err(Error::io("write", path))
        .and_then(|()| rename_into_place(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Renames a synced file and syncs its folder, so that the name survives a power cut too.
pub(crate) fn rename_into_place(partial: &Path, path: &Path) -> Result<()> {
    fs::rename(partial, path).map_err(Error::io("rename a finished file to", path))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_hex(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// SHA-256 of a file, however long.
pub(crate) fn sha256_of(path: &Path) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .map_err(Error::io("read", path))?;
    Ok(hash.finalize().into())
}

/// SHA-256 of a file in hexadecimal.
///
/// # Errors
/// When the file cannot be read; it is named.
pub fn file_sha256(path: &Path) -> Result<String> {
    Ok(hex(&sha256_of(path)?))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
