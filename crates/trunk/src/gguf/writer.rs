//! Writing GGUF files: metadata and tensors in float32 or float16.

use crate::io::{replace_file, tensor_bytes};
use crate::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::Path;
use tch::{Kind, Tensor};

const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// A number from 0 on.
    Unsigned(u32),
    /// A float32.
    Float(f32),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Whole numbers.
    Integers(Vec<i32>),
    /// Float32 numbers.
    Floats(Vec<f32>),
}

/// Writes a file of version 3, atomically. Tensors are `[rows, row_len]` or vectors; those of
/// float16 stay so, all others become float32.
///
/// # Errors
/// When the disk fails or a tensor has more than four dimensions.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: &[(String, Tensor)],
) -> Result<()> {
    if let Some((name, tensor)) = tensors.iter().find(|(_, t)| !(1..=4).contains(&t.dim())) {
        return Err(Error::Tensor {
            path: path.to_owned(),
            name: name.clone(),
            problem: format!("GGUF has one to four dimensions, not {}", tensor.dim()),
        });
    }
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut header, key);
        put(&mut header, value);
    }
    let mut offset = 0u64;
    for (name, tensor) in tensors {
        text(&mut header, name);
        let size = tensor.size();
        header.extend((size.len() as u32).to_le_bytes());
        size.iter().rev().for_each(|d| header.extend(d.to_le_bytes()));
        let (number, width) = if tensor.kind() == Kind::Half { (1u32, 2) } else { (0, 4) };
        header.extend(number.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + tensor.numel() as u64 * width).next_multiple_of(ALIGNMENT);
    }
    pad(&mut header);
    replace_file(path, |temporary| {
        let mut file = BufWriter::new(std::fs::File::create(temporary)?);
        file.write_all(&header)?;
        for (_, tensor) in tensors {
            file.write_all(&bytes(tensor).map_err(std::io::Error::other)?)?;
        }
        file.flush()
    })
}

/// A tensor's bytes, filled up to the alignment.
fn bytes(tensor: &Tensor) -> std::result::Result<Vec<u8>, tch::TchError> {
    let kind = if tensor.kind() == Kind::Half { Kind::Half } else { Kind::Float };
    let mut bytes = tensor_bytes(&tensor.f_to_kind(kind)?)?;
    pad(&mut bytes);
    Ok(bytes)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &GgufValue) {
    let number = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
    let array = |out: &mut Vec<u8>, element: u32, len: usize| {
        number(out, 9);
        number(out, element);
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        GgufValue::Unsigned(value) => {
            number(out, 4);
            number(out, *value);
        }
        GgufValue::Float(value) => {
            number(out, 6);
            out.extend(value.to_le_bytes());
        }
        GgufValue::Flag(value) => {
            number(out, 7);
            out.push(u8::from(*value));
        }
        GgufValue::Text(value) => {
            number(out, 8);
            text(out, value);
        }
        GgufValue::Texts(values) => {
            array(out, 8, values.len());
            for value in values {
                text(out, value);
            }
        }
        GgufValue::Integers(values) => {
            array(out, 5, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        GgufValue::Floats(values) => {
            array(out, 6, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}
