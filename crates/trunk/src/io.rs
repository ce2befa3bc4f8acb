//! Safetensors files and atomic writes.

use crate::{Error, Parameter, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

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

/// A tensor on its way into a file; its bytes are copied out one tensor at a time.
struct Stored {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Stored {
    fn new(name: &str, tensor: &Tensor, path: &Path) -> Result<Self> {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::Double => Dtype::F64,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Int64 => Dtype::I64,
            kind => {
                return Err(Error::Tensor {
                    path: path.to_owned(),
                    name: name.to_owned(),
                    problem: format!("{kind:?} cannot be stored"),
                });
            }
        };
        let shape = tensor.size().iter().map(|&d| d as usize).collect();
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.contiguous();
        Ok(Self { tensor, dtype, shape })
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes tensors as one safetensors file, atomically, in a fixed order, with the metadata
/// `{"format": "pt"}` that other readers insist on.
///
/// # Errors
/// When the disk fails or a tensor's kind cannot be stored.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let stored = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), Stored::new(name, tensor, path)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    replace_file(path, |temporary| {
        safetensors::serialize_to_file(stored, Some(metadata), temporary).map_err(|error| {
            match error {
                safetensors::SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other.to_string()),
            }
        })
    })
}

/// All tensors of a safetensors file, in the order of their names.
///
/// # Errors
/// When the file cannot be read, is cut short, or holds a number format that is not supported.
pub fn read_safetensors(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut reader = WeightReader::open(&[path])?;
    let names: Vec<String> = reader.files.keys().cloned().collect();
    names
        .into_iter()
        .map(|name| {
            let tensor = reader.take_any(&name)?;
            Ok((name, tensor))
        })
        .collect()
}

/// A read-only view of a whole file.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    // SAFETY: the map is private and read-only. Files that we write are replaced by rename, never
    // changed in place; a file that another program cuts short while it is read ends the process,
    // as for every memory-mapping reader.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|source| Error::io(path, source))
}

/// Weights in one or more safetensors files, handed out by name; each exactly once.
pub struct WeightReader {
    maps: Vec<(PathBuf, memmap2::Mmap)>,
    /// Which file holds a tensor that has not been taken yet.
    files: BTreeMap<String, usize>,
}

impl WeightReader {
    /// Opens the files and reads their headers.
    ///
    /// # Errors
    /// When a file is missing, cut short or not safetensors, or two hold the same tensor.
    pub fn open(paths: &[&Path]) -> Result<Self> {
        let mut reader = Self { maps: Vec::new(), files: BTreeMap::new() };
        for &path in paths {
            let map = map(path)?;
            let names: Vec<String> =
                parse(path, &map)?.names().into_iter().map(str::to_owned).collect();
            for name in names {
                if reader.files.insert(name.clone(), reader.maps.len()).is_some() {
                    return Err(tensor_error(path, &name, "is in two files".into()));
                }
            }
            reader.maps.push((path.to_owned(), map));
        }
        Ok(reader)
    }

    /// Refuses files that together hold fewer bytes than a model needs at the very least, before
    /// memory is taken for it.
    ///
    /// # Errors
    /// When the files are too small.
    pub fn check_size(&self, least: usize) -> Result<()> {
        let bytes: usize = self.maps.iter().map(|(_, map)| map.len()).sum();
        match self.maps.first() {
            Some((path, _)) if bytes < least => Err(Error::format(
                path,
                format!("{bytes} bytes cannot hold the model that config.json describes"),
            )),
            _ => Ok(()),
        }
    }

    /// Fills a parameter's parts from the tensors of their names, converting the number format.
    ///
    /// # Errors
    /// When a tensor is missing or its shape differs.
    pub fn fill(&mut self, parameter: &Parameter) -> Result<()> {
        for (name, mut view) in parameter.named()? {
            let tensor = self.take_any(&name)?;
            if tensor.size() != view.size() {
                let problem =
                    format!("expected shape {:?}, found {:?}", view.size(), tensor.size());
                return Err(tensor_error(&self.maps[0].0, &name, problem));
            }
            view.f_copy_(&tensor)?;
        }
        Ok(())
    }

    /// Ends the reading: every tensor must have been taken.
    ///
    /// # Errors
    /// Names a tensor that the model has no place for.
    pub fn finish(self) -> Result<()> {
        match self.files.iter().next() {
            None => Ok(()),
            Some((name, &file)) => {
                let problem = format!(
                    "the model that config.json describes has no place for it ({} such in all)",
                    self.files.len()
                );
                Err(tensor_error(&self.maps[file].0, name, problem))
            }
        }
    }

    fn take_any(&mut self, name: &str) -> Result<Tensor> {
        let Some(file) = self.files.remove(name) else {
            let path = self.maps.first().map_or(Path::new(""), |(path, _)| path);
            return Err(tensor_error(path, name, "is missing".into()));
        };
        let (path, map) = &self.maps[file];
        let tensors = parse(path, map)?;
        let view = tensors.tensor(name).map_err(|e| Error::format(path, e.to_string()))?;
        to_tensor(&view).ok_or_else(|| {
            tensor_error(
                path,
                name,
                format!("the number format {:?} is not supported", view.dtype()),
            )
        })
    }
}

fn parse<'a>(path: &Path, map: &'a memmap2::Mmap) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map).map_err(|error| {
        let problem = format!(
            "not a whole safetensors file ({error}); restore it from a copy or an earlier checkpoint"
        );
        Error::format(path, problem)
    })
}

fn to_tensor(view: &TensorView<'_>) -> Option<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::I64 => Kind::Int64,
        _ => return None,
    };
    let size: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Tensor::f_from_data_size(view.data(), &size, kind).ok()
}

fn tensor_error(path: &Path, name: &str, problem: String) -> Error {
    Error::Tensor { path: path.to_owned(), name: name.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

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
