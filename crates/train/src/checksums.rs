//! The checksums of a checkpoint, as `sha256sum` writes and checks them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use foretoken_data::file_sha256;
use foretoken_trunk::io::write_atomically;

use crate::Error;

/// `sha256sum --check checksums.sha256` in the folder says the same as [`verify`].
const CHECKSUMS: &str = "checksums.sha256";

/// Writes the checksums of all files of `folder` into it.
pub(crate) fn write(folder: &Path) -> Result<(), Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut lines = String::new();
    for name in names.iter().filter(|name| name.as_str() != CHECKSUMS) {
        let sum = file_sha256(&folder.join(name))?;
        let _ = writeln!(lines, "{sum}  {name}");
    }
    Ok(write_atomically(&folder.join(CHECKSUMS), lines.as_bytes())?)
}

/// Makes sure that the files of `folder` are those whose checksums were written.
pub(crate) fn verify(folder: &Path) -> Result<(), Error> {
    let list = folder.join(CHECKSUMS);
    let text =
        fs::read_to_string(&list).map_err(|source| Error::Read { path: list.clone(), source })?;
    let damaged = |path: &Path, message: &str| Error::Checkpoint {
        path: path.to_owned(),
        message: message.to_owned(),
    };
    for line in text.lines() {
        let (expected, name) =
            line.split_once("  ").ok_or_else(|| damaged(&list, "a line is not a checksum"))?;
        // A name leads to a file of the folder and nowhere else.
        if Path::new(name).components().count() != 1 || name.starts_with('.') {
            return Err(damaged(&list, "a name is not that of a file in the folder"));
        }
        let path = folder.join(name);
        if file_sha256(&path)? != expected {
            return Err(damaged(&path, "its SHA-256 is not the one that was written with it"));
        }
    }
    match text.is_empty() {
        true => Err(damaged(&list, "it is empty")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_a_missing_and_a_strange_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::write(path.join("a"), "abc").unwrap();
        fs::write(path.join("b"), "").unwrap();
        write(path).unwrap();
        let text = fs::read_to_string(path.join(CHECKSUMS)).unwrap();
        // FIPS 180-2's example.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n";
        assert!(text.starts_with(abc) && text.lines().count() == 2);
        verify(path).unwrap();

        fs::write(path.join("a"), "abd").unwrap();
        assert!(verify(path).unwrap_err().to_string().contains("SHA-256"));
        fs::remove_file(path.join("a")).unwrap();
        assert!(verify(path).is_err());
        for list in ["", "0  ../a\n", "0  .\n", "0 a\n"] {
            fs::write(path.join(CHECKSUMS), list).unwrap();
            assert!(verify(path).unwrap_err().to_string().contains(CHECKSUMS), "{list:?}");
        }
    }
}
