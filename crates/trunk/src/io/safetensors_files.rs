//! Safetensors files, one or the shards of one model.

use super::reader::WeightSource;
use super::{byte_size, lend, map};
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Bytes of the number at the start of a file that says how long its header is.
const PREFIX: usize = 8;

/// Tensors of one or more safetensors files.
pub struct SafetensorsFiles {
    maps: Vec<(PathBuf, memmap2::Mmap)>,
    tensors: BTreeMap<String, Place>,
    metadata: HashMap<String, String>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<i64>,
}

impl SafetensorsFiles {
    /// Opens the files and reads their headers.
    ///
    /// # Errors
    /// When a file is missing, cut short or not safetensors, or two hold the same tensor.
    pub fn open(paths: &[&Path]) -> Result<Self> {
        let mut files =
            Self { maps: Vec::new(), tensors: BTreeMap::new(), metadata: HashMap::new() };
        for &path in paths {
            files.add(path)?;
        }
        Ok(files)
    }

    /// Opens the shards that a `model.safetensors.index.json` names, and checks that each tensor is
    /// in the file where the index says it is.
    ///
    /// # Errors
    /// When the index is no such file, names a file outside its folder, or disagrees with a shard.
    pub fn open_index(index: &Path) -> Result<Self> {
        let text = std::fs::read(index).map_err(|source| Error::io(index, source))?;
        let json: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::format(index, format!("not JSON: {error}")))?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            return Err(Error::format(index, "the key weight_map, an object, is missing"));
        };
        let mut names = BTreeSet::new();
        for (tensor, file) in map {
            let plain = file.as_str().filter(|name| is_plain_name(name));
            let problem = "weight_map must name a file of the same folder";
            names.insert(plain.ok_or_else(|| Error::tensor(index, tensor, problem))?);
        }
        if names.is_empty() {
            return Err(Error::format(index, "weight_map names no file"));
        }
        let folder = index.parent().unwrap_or(Path::new(""));
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let files = Self::open(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        for (tensor, file) in map {
            let found = files.tensors.get(tensor).map(|place| &files.maps[place.file].0);
            if found.and_then(|path| path.file_name()).and_then(|name| name.to_str())
                != file.as_str()
            {
                let problem = format!("is not in {file}, where the index says it is");
                return Err(Error::tensor(index, tensor, problem));
            }
        }
        Ok(files)
    }

    /// What the files' metadata say under a key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let map = map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let problem = format!(
                "not a whole safetensors file ({error}); restore it from a copy or an earlier \
                 checkpoint"
            );
            Error::format(path, problem)
        })?;
        self.metadata.extend(metadata.metadata().clone().unwrap_or_default());
        let file = self.maps.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let place = Place {
                file,
                bytes: PREFIX + header + start..PREFIX + header + end,
                dtype: info.dtype,
                shape: info.shape.iter().map(|&d| d as i64).collect(),
            };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(Error::tensor(path, &name, "is in two files"));
            }
        }
        self.maps.push((path.to_owned(), map));
        Ok(())
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path(name), name, "is missing"))
    }

    /// A tensor of its own.
    fn read(&self, name: &str) -> Result<Tensor> {
        self.with(name, |tensor| Ok(tensor.copy()))
    }

    /// Hands the tensor as it lies in the file, without a copy, to `use_it`.
    ///
    /// # Errors
    /// When there is no such tensor, its number format is not supported, or `use_it` fails.
    pub fn with<R>(&self, name: &str, use_it: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        let place = self.place(name)?;
        let (path, map) = &self.maps[place.file];
        let Some(kind) = kind(place.dtype) else {
            let problem = format!("the number format {:?} is not supported", place.dtype);
            return Err(Error::tensor(path, name, problem));
        };
        map.get(place.bytes.clone())
            .and_then(|bytes| lend(bytes, &place.shape, kind, use_it))
            .ok_or_else(|| Error::tensor(path, name, "lies outside of the file"))?
    }
}

impl WeightSource for SafetensorsFiles {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        let file = self.tensors.get(name).map_or(0, |place| place.file);
        self.maps.get(file).map_or_else(PathBuf::new, |(path, _)| path.clone())
    }

    fn numbers(&self) -> usize {
        let numbers = |place: &Place| byte_size(&place.shape, Kind::Int8).unwrap_or(0);
        self.tensors.values().map(numbers).fold(0, usize::saturating_add)
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.place(name)?.shape.clone())
    }

    fn copy_to(&self, name: &str, view: &mut Tensor) -> Result<()> {
        self.with(name, |tensor| {
            view.f_copy_(tensor)?;
            Ok(())
        })
    }
}

/// All tensors of a safetensors file, in the order of their names.
///
/// # Errors
/// When the file cannot be read, is cut short, or holds a number format that is not supported.
pub fn read_safetensors(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let files = SafetensorsFiles::open(&[path])?;
    files.names().into_iter().map(|name| Ok((name.clone(), files.read(&name)?))).collect()
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        Dtype::I64 => Some(Kind::Int64),
        _ => None,
    }
}

/// Whether a name from a file is that of a file beside it and leads nowhere else.
fn is_plain_name(name: &str) -> bool {
    let path = Path::new(name);
    path.file_name().is_some_and(|file| file == path.as_os_str())
}
