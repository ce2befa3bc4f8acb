//! The container: metadata and a directory of tensors, checked against the file's length.

use super::cursor::Cursor;
use super::metadata::{Kind, Metadata, Value, elements};
use crate::bytes::Problem;
use crate::io::map;
use crate::{Error, Result};
use foretoken_kernels::BlockFormat;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"GGUF";
/// Versions that are laid out alike: lengths of 64 bits, little-endian.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions that the format has.
const MOST_DIMENSIONS: u32 = 4;
/// The fewest bytes of a pair: a key's length, a type, a value.
const LEAST_PAIR: usize = 8 + 4 + 1;
/// The fewest bytes of a directory entry: a name's length, dimensions, a type, an offset.
const LEAST_ENTRY: usize = 8 + 4 + 4 + 8;

/// A GGUF file, mapped into memory, with its directory read and checked.
///
/// Whatever a file says of lengths and places is believed only as far as the file is long.
pub struct GgufFile {
    path: PathBuf,
    map: memmap2::Mmap,
    metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

/// An entry of the directory.
#[derive(Clone, Debug)]
pub(super) struct GgufTensor {
    /// `[…, rows, row_len]`: the last dimension is the one that lies in order, as in libtorch and
    /// the other way round than in the file.
    pub(super) shape: Vec<i64>,
    pub(super) format: BlockFormat,
    bytes: Range<usize>,
}

impl GgufFile {
    /// Opens a file and reads its metadata and directory.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a whole GGUF file with number formats that are
    /// supported.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let (metadata, tensors) =
            read(&map).map_err(|problem| Error::format(path, format!("GGUF: {problem}")))?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the metadata has this key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.get(key).is_some()
    }

    /// The text under a key; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is something else than a text.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.value(key, "a text", |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// The whole number under a key; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is something else than a number from 0 on.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.value(key, "a whole number", unsigned)
    }

    /// The number under a key; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is no number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// The truth value under a key; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.value(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// The texts of an array; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is no array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.list(key, "a list of texts", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// The numbers of an array; `None` where the key is missing.
    ///
    /// # Errors
    /// When it is no array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "a list of numbers", |value| match value {
            Value::Float(number) => Some(number),
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            _ => None,
        })
    }

    /// An error of this file.
    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::format(&self.path, problem)
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// A tensor's bytes: whole blocks.
    pub(super) fn data(&self, tensor: &GgufTensor) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    fn value<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(format!("GGUF: {key} must be {expected}")))
    }

    fn list<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let wrong = || self.error(format!("GGUF: {key} must be {expected}"));
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Array { element, count, start }) if element != Kind::Array => {
                elements(&self.map, element, count, start, key)
                    .map(|value| read(value.ok()?))
                    .collect::<Option<Vec<T>>>()
                    .map(Some)
                    .ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(number) => Some(*number),
        Value::Signed(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn read(bytes: &[u8]) -> std::result::Result<(Metadata, BTreeMap<String, GgufTensor>), Problem> {
    let mut cursor = Cursor::new(bytes, 0);
    if cursor.take(4, "the magic")? != MAGIC {
        return Err("the file does not begin with GGUF: it is of another format".into());
    }
    let version = cursor.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err("big-endian files are not supported".into());
    }
    if !VERSIONS.contains(&version) {
        return Err(format!("version {version} is not supported, versions 2 and 3 are"));
    }
    let tensors = cursor.count(LEAST_ENTRY, "the number of tensors")?;
    let pairs = cursor.count(LEAST_PAIR, "the number of keys")?;
    let metadata = Metadata::read(&mut cursor, pairs)?;
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(value) => unsigned(value)
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or(format!("{ALIGNMENT_KEY} must be a power of two"))?,
    };
    let entries = directory(&mut cursor, tensors)?;
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    Ok((metadata, place(entries, data, alignment, bytes.len())?))
}

/// An entry as it is written: name, shape, format, offset.
type Entry = (String, Vec<u64>, BlockFormat, u64);

fn directory(cursor: &mut Cursor<'_>, count: usize) -> std::result::Result<Vec<Entry>, Problem> {
    let mut entries = Vec::with_capacity(count);
    for i in 0..count {
        let name = cursor.text(&format!("the name of tensor {i} of {count}"))?.to_owned();
        let dimensions = cursor.u32(&name)?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(format!("tensor {name} has {dimensions} dimensions, not 1 to 4"));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(cursor.u64(&name)?);
        }
        let format = format(cursor.u32(&name)?)
            .map_err(|format| format!("tensor {name} is in the format {format}"))?;
        entries.push((name, shape, format, cursor.u64("a tensor's place")?));
    }
    Ok(entries)
}

fn place(
    entries: Vec<Entry>,
    data: u64,
    alignment: u64,
    len: usize,
) -> std::result::Result<BTreeMap<String, GgufTensor>, Problem> {
    let mut tensors = BTreeMap::new();
    for (name, shape, format, offset) in entries {
        let row = shape.first().and_then(|&row| usize::try_from(row).ok()).unwrap_or(0);
        let numbers =
            shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        let size = numbers.filter(|&n| n > 0 && i64::try_from(n).is_ok()).and_then(|n| {
            row.is_multiple_of(format.block_len()).then(|| format.bytes(n)).flatten()
        });
        let Some(size) = size else {
            return Err(format!(
                "tensor {name} of shape {shape:?} cannot be in the format {format}"
            ));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name} is not at a multiple of {alignment} bytes"));
        }
        let start = data.checked_add(offset).and_then(|at| usize::try_from(at).ok());
        let bytes = start
            .and_then(|start| Some(start..start.checked_add(size)?))
            .filter(|bytes| bytes.end <= len)
            .ok_or(format!("tensor {name} lies outside of the file; is it cut short?"))?;
        let shape = shape.iter().rev().map(|&d| d as i64).collect();
        if tensors.insert(name.clone(), GgufTensor { shape, format, bytes }).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    let mut places: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, tensor)| (&tensor.bytes, name)).collect();
    places.sort_by_key(|(bytes, _)| bytes.start);
    for pair in places.windows(2) {
        if pair[0].0.end > pair[1].0.start {
            return Err(format!("tensors {} and {} overlap", pair[0].1, pair[1].1));
        }
    }
    Ok(tensors)
}

/// The format that a file's number stands for.
fn format(number: u32) -> std::result::Result<BlockFormat, Problem> {
    Ok(match number {
        0 => BlockFormat::F32,
        1 => BlockFormat::F16,
        2 => BlockFormat::Q4_0,
        3 => BlockFormat::Q4_1,
        6 => BlockFormat::Q5_0,
        7 => BlockFormat::Q5_1,
        8 => BlockFormat::Q8_0,
        12 => BlockFormat::Q4_K,
        13 => BlockFormat::Q5_K,
        14 => BlockFormat::Q6_K,
        30 => BlockFormat::BF16,
        _ => {
            let name = match number {
                10 => "Q2_K",
                11 => "Q3_K",
                15 => "Q8_K",
                16..=23 | 29 => "IQ",
                24..=28 => "of whole numbers or float64",
                _ => "unknown",
            };
            let known: Vec<String> = BlockFormat::ALL.iter().map(ToString::to_string).collect();
            return Err(format!("{number} ({name}), supported are {}", known.join(", ")));
        }
    })
}
