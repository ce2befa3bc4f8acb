//! Safetensors files whose bytes follow from their content alone.

use super::{replace_file, tensor_bytes};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use tch::{Kind, Tensor};

/// The header ends on such a boundary, so that numbers lie where their type may.
const ALIGNMENT: usize = 8;

/// A tensor that a file is to hold: its name, kind and shape.
pub type TensorEntry = (String, Kind, Vec<i64>);

/// Writes tensors as one safetensors file, atomically, in a fixed order, with the metadata
/// `{"format": "pt"}` that other readers insist on.
///
/// # Errors
/// When the disk fails or a tensor's kind cannot be stored.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    write_safetensors_with(path, tensors, &[])
}

/// As [`write_safetensors`], with more metadata.
///
/// The library's own writer takes metadata in a hash map and writes them in its random order; the
/// same model has to make the same bytes, by which it is recognised.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    more: &[(&str, String)],
) -> Result<()> {
    let mut stored: Vec<&(String, Tensor)> = tensors.iter().collect();
    // Wide numbers first: each then starts at a multiple of its own width.
    stored.sort_by_key(|(name, tensor)| {
        (std::cmp::Reverse(tensor.kind().elt_size_in_bytes()), name.as_str())
    });
    let entry = |(name, tensor): &&(String, Tensor)| (name.clone(), tensor.kind(), tensor.size());
    let entries: Vec<TensorEntry> = stored.iter().map(entry).collect();
    write_safetensors_in_turn(path, &entries, more, |put| {
        stored.iter().try_for_each(|(_, tensor)| put(tensor))
    })
}

/// As [`write_safetensors_with`], for tensors that are not all in memory at once: `supply` gets a
/// function and calls it with each of those that `entries` names, in their order, which is that of
/// the file. Wide numbers have to come first.
///
/// # Errors
/// As [`write_safetensors`], when `supply` fails, and when its tensors are not those of `entries`.
pub fn write_safetensors_in_turn(
    path: &Path,
    entries: &[TensorEntry],
    more: &[(&str, String)],
    supply: impl FnOnce(&mut dyn FnMut(&Tensor) -> std::io::Result<()>) -> std::io::Result<()>,
) -> Result<()> {
    let header = header(path, entries, more)?;
    replace_file(path, |temporary| {
        let mut file = BufWriter::new(File::create(temporary)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut left = entries.iter();
        supply(&mut |tensor| {
            let due = left
                .next()
                .is_some_and(|(_, kind, shape)| tensor.kind() == *kind && tensor.size() == *shape);
            if !due {
                return Err(std::io::Error::other("a tensor is not the one that is due"));
            }
            file.write_all(&tensor_bytes(tensor).map_err(std::io::Error::other)?)
        })?;
        if let Some((name, ..)) = left.next() {
            return Err(std::io::Error::other(format!("the tensor {name} did not come")));
        }
        file.flush()
    })
}

/// What stands before the numbers, but for its length.
fn header(path: &Path, entries: &[TensorEntry], more: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut metadata = BTreeMap::from([("format", "pt")]);
    metadata.extend(more.iter().map(|(key, value)| (*key, value.as_str())));
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
    let mut end = 0;
    for (name, kind, shape) in entries {
        let dtype = dtype(*kind)
            .ok_or_else(|| Error::tensor(path, name, format!("{kind:?} cannot be stored")))?;
        let start = end;
        end += shape.iter().product::<i64>() * kind.elt_size_in_bytes() as i64;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}

fn dtype(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Float => Some("F32"),
        Kind::Double => Some("F64"),
        Kind::BFloat16 => Some("BF16"),
        Kind::Half => Some("F16"),
        Kind::Int64 => Some("I64"),
        _ => None,
    }
}
