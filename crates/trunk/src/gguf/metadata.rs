//! Keys and values of a GGUF file.

use super::cursor::Cursor;
use crate::bytes::{Problem, number};
use std::collections::BTreeMap;

/// How deep arrays may lie in arrays. Real files have one level.
const DEEPEST: usize = 3;

/// A value. Arrays stay in the file until they are asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array { element: Kind, count: usize, start: usize },
}

/// The type of a value, as the file numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn new(number: u32, key: &str) -> Result<Self, Problem> {
        Ok(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return Err(format!("damaged: {key} has a value of the unknown type {number}")),
        })
    }

    /// The fewest bytes of a value.
    fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

/// The keys of a file with their values.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Reads `count` pairs.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, Problem> {
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = cursor.text(&format!("key {i} of {count}"))?.to_owned();
            let kind = Kind::new(cursor.u32(&key)?, &key)?;
            let value = read_value(cursor, kind, &key, 0)?;
            if values.contains_key(&key) {
                return Err(format!("the key {key} is there twice"));
            }
            values.insert(key, value);
        }
        Ok(Self { values })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }
}

fn read_value(
    cursor: &mut Cursor<'_>,
    kind: Kind,
    key: &str,
    depth: usize,
) -> Result<Value, Problem> {
    let mut fixed = |count| cursor.take(count, key);
    Ok(match kind {
        Kind::U8 => Value::Unsigned(u64::from(fixed(1)?[0])),
        Kind::I8 => Value::Signed(i64::from(fixed(1)?[0].cast_signed())),
        Kind::Bool => match fixed(1)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(format!("damaged: {key} is neither true nor false but {other}")),
        },
        Kind::U16 => Value::Unsigned(number(fixed(2)?)),
        Kind::I16 => Value::Signed(i64::from((number(fixed(2)?) as u16).cast_signed())),
        Kind::U32 => Value::Unsigned(number(fixed(4)?)),
        Kind::I32 => Value::Signed(i64::from((number(fixed(4)?) as u32).cast_signed())),
        Kind::F32 => Value::Float(f64::from(f32::from_bits(number(fixed(4)?) as u32))),
        Kind::U64 => Value::Unsigned(number(fixed(8)?)),
        Kind::I64 => Value::Signed(number(fixed(8)?).cast_signed()),
        Kind::F64 => Value::Float(f64::from_bits(number(fixed(8)?))),
        Kind::Text => Value::Text(cursor.text(key)?.to_owned()),
        Kind::Array => {
            if depth == DEEPEST {
                return Err(format!("{key} has arrays in arrays, {DEEPEST} deep and more"));
            }
            let element = Kind::new(cursor.u32(key)?, key)?;
            let count = cursor.count(element.least(), key)?;
            let start = cursor.position();
            match element {
                Kind::Text => (0..count).try_for_each(|_| cursor.text(key).map(|_| ()))?,
                Kind::Array => (0..count).try_for_each(|_| {
                    read_value(cursor, Kind::Array, key, depth + 1).map(|_| ())
                })?,
                _ => cursor.take(count * element.least(), key).map(|_| ())?,
            }
            Value::Array { element, count, start }
        }
    })
}

/// The values of an array, one by one.
pub(super) fn elements<'b>(
    bytes: &'b [u8],
    element: Kind,
    count: usize,
    start: usize,
    key: &'b str,
) -> impl Iterator<Item = Result<Value, Problem>> + 'b {
    let mut cursor = Cursor::new(bytes, start);
    (0..count).map(move |_| read_value(&mut cursor, element, key, 1))
}
