//! What a pickle of tensors may hold, as plain data.

use crate::bytes::Problem;
use std::rc::Rc;
use tch::Kind;

/// The most values of a kind. A state dict has some tens for each of a few hundred tensors.
const MOST: usize = 1 << 20;
const MOST_DIMENSIONS: usize = 8;
/// The most tensors: what is kept of each is longer than its entry may be.
pub(super) const MOST_TENSORS: usize = 1 << 16;
/// Bytes of a storage's name. PyTorch numbers them.
pub(super) const MOST_NAME: usize = 64;
/// Why something is refused.
pub(super) const MORE_THAN_TENSORS: &str =
    "this file holds more than tensors, and nothing else is loaded";

/// A tensor as the pickle describes it; nothing of it has been compared with the storage yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PickledTensor {
    pub(super) kind: Kind,
    /// Name of the storage in the archive.
    pub(super) storage: String,
    /// Numbers of the whole storage.
    pub(super) storage_len: u64,
    /// Numbers of the storage before the tensor's first.
    pub(super) offset: u64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// Names that a pickle may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Kind),
}

impl Global {
    pub(super) fn new(module: &str, name: &str) -> Result<Self, Problem> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch", "FloatStorage") => Self::Storage(Kind::Float),
            ("torch", "HalfStorage") => Self::Storage(Kind::Half),
            ("torch", "BFloat16Storage") => Self::Storage(Kind::BFloat16),
            ("torch", "DoubleStorage") => Self::Storage(Kind::Double),
            _ => {
                let shown: String = format!("{module}.{name}").escape_debug().take(100).collect();
                return Err(format!(
                    "it asks for {shown}, which makes no tensor of floating-point numbers: \
                     {MORE_THAN_TENSORS}"
                ));
            }
        })
    }
}

#[derive(Clone)]
pub(super) enum Value<'b> {
    None,
    Bool,
    Int(i64),
    Text(&'b str),
    Tuple(Rc<Tuple<'b>>),
    /// An index of the machine's dictionaries: they may hold themselves.
    Dict(usize),
    Global(Global),
    Storage(Storage<'b>),
    /// An index of the machine's tensors.
    Tensor(usize),
}

pub(super) struct Tuple<'b> {
    pub(super) items: Vec<Value<'b>>,
    pub(super) depth: usize,
}

pub(super) struct Dict<'b> {
    pub(super) ordered: bool,
    pub(super) items: Vec<(&'b str, Value<'b>)>,
}

#[derive(Clone, Copy)]
pub(super) struct Storage<'b> {
    pub(super) kind: Kind,
    pub(super) name: &'b str,
    pub(super) len: u64,
}

pub(super) struct Rebuilt<'b> {
    pub(super) storage: Storage<'b>,
    pub(super) offset: u64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

impl Rebuilt<'_> {
    pub(super) fn to_owned_tensor(&self) -> PickledTensor {
        PickledTensor {
            kind: self.storage.kind,
            storage: self.storage.name.to_owned(),
            storage_len: self.storage.len,
            offset: self.offset,
            shape: self.shape.clone(),
            strides: self.strides.clone(),
        }
    }
}

/// Refuses what would grow past every real file.
pub(super) fn room(len: usize) -> Result<(), Problem> {
    if len >= MOST {
        return Err(format!("it has more than {MOST} values, far more than any model's tensors"));
    }
    Ok(())
}

pub(super) fn whole_numbers(items: &[Value<'_>]) -> Result<Vec<i64>, Problem> {
    if items.len() > MOST_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", items.len()));
    }
    let whole = items.iter().map(|item| match item {
        Value::Int(value) if *value >= 0 => Some(*value),
        _ => None,
    });
    whole
        .collect::<Option<Vec<i64>>>()
        .ok_or_else(|| "damaged: a tensor's sizes are no whole numbers".to_owned())
}

pub(super) fn unknown(opcode: u8) -> Problem {
    let name = match opcode {
        b'i' => "INST, which makes an object",
        b'o' => "OBJ, which makes an object",
        0x81 | 0x92 => "NEWOBJ, which makes an object",
        0x82..=0x84 => "EXT, which stands for a name",
        b'P' => "PERSID, which stands for an object",
        b']' | b'l' | b'a' | b'e' => "of a list",
        0x8f..=0x91 => "of a set",
        b'G' | b'F' => "of a floating-point number",
        b'B' | b'C' | 0x8e | 0x96 => "of raw bytes",
        _ => "unknown here",
    };
    format!("the instruction 0x{opcode:02x} is {name}: {MORE_THAN_TENSORS}")
}
