//! Weights from files and to files, and atomic writes.

mod lend;
mod map;
mod reader;
mod safetensors_files;
mod writer;

pub use lend::tensor_bytes;
pub(crate) use lend::{byte_size, lend, strides};
pub use map::map;
pub use reader::{WeightReader, WeightSource};
pub use safetensors_files::{SafetensorsFiles, read_safetensors};
pub use writer::{
    TensorEntry, write_safetensors, write_safetensors_in_turn, write_safetensors_with,
};

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes `bytes` so that `path` holds either what it held before or all of the new content.
///
/// # Errors
/// When the disk fails; the path is named and nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(path, |temporary| {
        File::create(temporary).and_then(|mut file| file.write_all(bytes))
    })
}

/// Lets `write` make a file beside `path`, syncs it and renames it to `path`.
///
/// # Errors
/// As [`write_atomically`].
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let attempt = || {
        write(&temporary)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path.parent().unwrap_or(Path::new("")))
    };
    attempt().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, source)
    })
}

/// Makes renames inside `folder` last through a power cut.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn tensors_survive_a_file_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = vec![
            ("a".to_owned(), Tensor::randn([3, 5], (Kind::Float, Device::Cpu))),
            ("b".to_owned(), Tensor::randn([7], (Kind::Double, Device::Cpu))),
        ];
        write_safetensors(&path, &tensors).unwrap();
        let read = read_safetensors(&path).unwrap();
        assert_eq!(read.len(), 2);
        for ((name, tensor), (read_name, read_tensor)) in tensors.iter().zip(&read) {
            assert_eq!((name, tensor), (read_name, read_tensor));
        }
    }

    #[test]
    fn the_same_tensors_make_the_same_bytes_whatever_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |kind| Tensor::arange(5, (kind, Device::Cpu));
        let mut tensors = [
            ("b".to_owned(), tensor(Kind::BFloat16)),
            ("a".to_owned(), tensor(Kind::Half)),
            ("c".to_owned(), tensor(Kind::Double)),
            ("\"ü".to_owned(), tensor(Kind::Float)),
        ];
        let mut more = [("one", "1".to_owned()), ("two", "\"2\"".to_owned()), ("x", String::new())];
        let mut files = Vec::new();
        for name in ["x", "y"] {
            let path = folder.path().join(name);
            write_safetensors_with(&path, &tensors, &more).unwrap();
            files.push(fs::read(&path).unwrap());
            tensors.reverse();
            more.reverse();
        }
        assert_eq!(files[0], files[1]);
        // Another reader finds the same in it, each number where its type may lie.
        let read = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
        assert_eq!(
            read.tensor("c").unwrap().data(),
            0f64.to_le_bytes()
                .iter()
                .copied()
                .chain((1..5).flat_map(|i| f64::from(i).to_le_bytes()))
                .collect::<Vec<u8>>()
        );
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&files[0]).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        assert_eq!((metadata["format"].as_str(), metadata["two"].as_str()), ("pt", "\"2\""));
        for (name, tensor) in read_safetensors(&folder.path().join("x")).unwrap() {
            assert_eq!(tensor, tensors.iter().find(|(n, _)| *n == name).unwrap().1);
        }
    }

    #[test]
    fn tensors_that_come_in_turn_have_to_be_those_that_were_announced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensor = |length| Tensor::ones([length], (Kind::Float, Device::Cpu));
        let entries = [("b", 3), ("a", 2)]
            .map(|(name, length): (&str, i64)| (name.to_owned(), Kind::Float, vec![length]));
        for supplied in [vec![3], vec![2, 3], vec![3, 2, 2], vec![]] {
            let error = write_safetensors_in_turn(&path, &entries, &[], |put| {
                supplied.iter().try_for_each(|&length| put(&tensor(length)))
            });
            assert!(error.unwrap_err().to_string().contains("x.safetensors"));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        write_safetensors_in_turn(&path, &entries, &[], |put| {
            put(&tensor(3)).and_then(|()| put(&tensor(2)))
        })
        .unwrap();
        let read = read_safetensors(&path).unwrap();
        assert_eq!(read, [("a".to_owned(), tensor(2)), ("b".to_owned(), tensor(3))]);
    }

    #[test]
    fn a_file_cut_short_is_named_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensor = Tensor::ones([64], (Kind::Float, Device::Cpu));
        write_safetensors(&path, &[("a".into(), tensor)]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for len in [0, 4, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            let error = read_safetensors(&path).unwrap_err().to_string();
            assert!(error.contains("x.safetensors"), "{error}");
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write_atomically(&path, b"old").unwrap();
        let failed = replace_file(&path, |temporary| {
            fs::write(temporary, b"half")?;
            Err(std::io::Error::other("no space"))
        });
        assert!(failed.unwrap_err().to_string().contains("x.json"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
