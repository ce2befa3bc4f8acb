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
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let dtype = dtype(kind).ok_or_else(|| Error::Tensor {
            path: path.to_owned(),
            name: name.clone(),
            problem: format!("{kind:?} cannot be stored"),
        })?;
        stored.push((name, tensor, dtype));
    }
    // Wide numbers first: each then starts at a multiple of its own width.
    stored.sort_by_key(|(name, tensor, _)| {
        (std::cmp::Reverse(tensor.kind().elt_size_in_bytes()), name.as_str())
    });
    let mut metadata = BTreeMap::from([("format", "pt")]);
    metadata.extend(more.iter().map(|(key, value)| (*key, value.as_str())));
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
    let mut end = 0;
    for (name, tensor, dtype) in &stored {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let entry = json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end]});
        entries.insert((*name).clone(), entry);
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    replace_file(path, |temporary| {
        let mut file = BufWriter::new(File::create(temporary)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor, _) in &stored {
            file.write_all(&tensor_bytes(tensor).map_err(std::io::Error::other)?)?;
        }
        file.flush()
    })
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
