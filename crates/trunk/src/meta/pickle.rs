//! The pickle of a flat dictionary of tensors, read as data.
//!
//! A pickle is a program for a small stack machine. This one knows the instructions that
//! `torch.save` writes for tensors (protocols 2 to 4) and three kinds of names: `OrderedDict`, the
//! function of PyTorch that makes a tensor, and its storage classes. They become plain data; any
//! other name and any other instruction is refused.

use super::values::{
    Dict, Global, MORE_THAN_TENSORS, MOST_NAME, MOST_TENSORS, PickledTensor, Rebuilt, Storage,
    Tuple, Value, room, unknown, whole_numbers,
};
use crate::bytes::{Problem, number, place, slice};
use std::collections::BTreeMap;
use std::rc::Rc;

/// How deep tuples may lie in tuples. Tensors need two levels.
const DEEPEST: usize = 8;
/// Attribute of a module's state dict: versions of its layers.
const METADATA: &str = "_metadata";
const NO_PAIR: &str = "damaged: an instruction lacks its values";

/// The tensors of a pickled state dict.
pub(super) fn read_state_dict(bytes: &[u8]) -> Result<BTreeMap<String, PickledTensor>, Problem> {
    let mut machine = Machine { bytes, ..Machine::default() };
    machine.protocol()?;
    loop {
        let at = machine.at;
        let goes_on = machine.step().map_err(|problem| format!("byte {at}: {problem}"))?;
        if !goes_on {
            return machine.finish();
        }
    }
}

#[derive(Default)]
struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    stack: Vec<Value<'b>>,
    /// Heights of the stack at which groups began.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'b>>,
    dicts: Vec<Dict<'b>>,
    tensors: Vec<Rebuilt<'b>>,
}

impl<'b> Machine<'b> {
    fn protocol(&mut self) -> Result<(), Problem> {
        match self.take(2, "the protocol")? {
            [0x80, 2..=4] => Ok(()),
            _ => Err("it does not begin as a pickle of protocol 2 to 4".into()),
        }
    }

    /// Runs one instruction; whether there are more.
    fn step(&mut self) -> Result<bool, Problem> {
        let opcode = self.number(1)?;
        match opcode as u8 {
            b'.' => return Ok(false),
            b'(' => {
                room(self.marks.len())?;
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' => self.push_unsigned(1)?,
            b'M' => self.push_unsigned(2)?,
            b'J' => {
                let value = (self.number(4)? as u32).cast_signed();
                self.push(Value::Int(i64::from(value)))?;
            }
            0x8a => self.push_long()?,
            b'X' => self.push_text(4)?,
            0x8c => self.push_text(1)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(Global::new(module, name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.push(Value::Global(Global::new(module, name)?))?;
            }
            b')' => self.push_tuple(Vec::new())?,
            0x85 => self.push_last(1)?,
            0x86 => self.push_last(2)?,
            0x87 => self.push_last(3)?,
            b't' => {
                let items = self.pop_group()?;
                self.push_tuple(items)?;
            }
            b'}' => self.push_dict(false)?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_group()?;
                self.set(items)?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode as u8)?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            // A frame: a hint for buffered reading.
            0x95 => self.take(8, "a frame's length").map(|_| ())?,
            other => return Err(unknown(other)),
        }
        Ok(true)
    }

    /// Puts the top of the stack into the memo, or a value of the memo on the stack.
    fn memory(&mut self, opcode: u8) -> Result<(), Problem> {
        let index = match opcode {
            b'q' | b'h' => self.number(1)?,
            b'r' | b'j' => self.number(4)?,
            _ => self.memo.len() as u64,
        } as u32;
        if matches!(opcode, b'h' | b'j') {
            let value = self.memo.get(&index).cloned();
            return self.push(value.ok_or("damaged: it refers to a value that was not kept")?);
        }
        room(self.memo.len())?;
        let value = self.above_mark().last().cloned().ok_or(NO_PAIR)?;
        self.memo.insert(index, value);
        Ok(())
    }

    /// A storage, from `("storage", class, name, device, numbers)`.
    fn persistent(&mut self) -> Result<(), Problem> {
        let id = self.pop()?;
        if let Value::Tuple(id) = &id
            && let [
                Value::Text("storage"),
                Value::Global(Global::Storage(kind)),
                Value::Text(name),
                Value::Text(_),
                Value::Int(len),
            ] = id.items.as_slice()
            && let Ok(len) = u64::try_from(*len)
        {
            if name.len() > MOST_NAME {
                return Err(format!("damaged: a storage whose name has {} bytes", name.len()));
            }
            return self.push(Value::Storage(Storage { kind: *kind, name, len }));
        }
        Err("it refers to something that is no storage of PyTorch's".into())
    }

    /// A call: of an empty `OrderedDict()`, or of what makes a tensor.
    fn reduce(&mut self) -> Result<(), Problem> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments) = arguments else {
            return Err("damaged: a call's arguments are no tuple".into());
        };
        match callee {
            Value::Global(Global::OrderedDict) if arguments.items.is_empty() => {
                self.push_dict(true)
            }
            Value::Global(Global::RebuildTensor) => {
                let tensor = self.rebuild(&arguments.items)?;
                room(self.tensors.len())?;
                self.tensors.push(tensor);
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            _ => Err(format!("a call of something else: {MORE_THAN_TENSORS}")),
        }
    }

    /// A tensor, from `(storage, offset, shape, strides, requires_grad, hooks)`.
    fn rebuild(&self, arguments: &[Value<'b>]) -> Result<Rebuilt<'b>, Problem> {
        let [
            Value::Storage(storage),
            Value::Int(offset),
            Value::Tuple(shape),
            Value::Tuple(strides),
            Value::Bool,
            Value::Dict(hooks),
        ] = arguments
        else {
            return Err("a tensor of a form that is not supported".into());
        };
        if self.dicts.get(*hooks).is_none_or(|hooks| !hooks.items.is_empty()) {
            return Err(format!("a tensor with hooks: {MORE_THAN_TENSORS}"));
        }
        let (shape, strides) = (whole_numbers(&shape.items)?, whole_numbers(&strides.items)?);
        let offset = u64::try_from(*offset).ok().filter(|_| shape.len() == strides.len());
        let offset = offset.ok_or("damaged: a tensor of an impossible form")?;
        Ok(Rebuilt { storage: *storage, offset, shape, strides })
    }

    /// Attributes: an `OrderedDict` may have the versions of a module's layers, which are let go.
    fn build(&mut self) -> Result<(), Problem> {
        let state = match self.pop()? {
            Value::Dict(id) => self.dicts.get(id),
            _ => None,
        };
        let plain = state.is_some_and(|state| state.items.iter().all(|(key, _)| *key == METADATA));
        if plain && self.top_dict()?.ordered {
            return Ok(());
        }
        Err(format!("an object is given attributes: {MORE_THAN_TENSORS}"))
    }

    /// Keys and values, in turn, into the dictionary on top of the stack.
    fn set(&mut self, items: Vec<Value<'b>>) -> Result<(), Problem> {
        if !items.len().is_multiple_of(2) {
            return Err(NO_PAIR.into());
        }
        let dict = self.top_dict()?;
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            let Value::Text(key) = key else {
                return Err("a dictionary with a key that is no text".into());
            };
            room(dict.items.len())?;
            dict.items.push((key, value));
        }
        Ok(())
    }

    /// The dictionary that is left in the end, which has to be one of tensors.
    fn finish(mut self) -> Result<BTreeMap<String, PickledTensor>, Problem> {
        if self.at != self.bytes.len() {
            return Err(format!("byte {}: damaged: it goes on behind its end", self.at));
        }
        let (Some(Value::Dict(id)), true) = (self.stack.pop(), self.stack.is_empty()) else {
            return Err("it is no dictionary of tensors: save a state dict by itself".into());
        };
        let items = self.dicts.into_iter().nth(id).map(|dict| dict.items).unwrap_or_default();
        if items.len() > MOST_TENSORS {
            return Err(format!(
                "{} tensors, and a model may have {MOST_TENSORS} at most",
                items.len()
            ));
        }
        let mut tensors = BTreeMap::new();
        for (name, value) in items {
            if name.chars().any(char::is_control) {
                return Err(format!("damaged: the name {name:?}"));
            }
            let tensor = match value {
                Value::Tensor(id) => self.tensors.get(id),
                _ => None,
            };
            let Some(tensor) = tensor else {
                return Err(format!(
                    "the entry {name} is no tensor: save a flat state dict, with nothing beside it"
                ));
            };
            if tensors.insert(name.to_owned(), tensor.to_owned_tensor()).is_some() {
                return Err(format!("damaged: the tensor {name} is there twice"));
            }
        }
        Ok(tensors)
    }

    fn push(&mut self, value: Value<'b>) -> Result<(), Problem> {
        room(self.stack.len())?;
        self.stack.push(value);
        Ok(())
    }

    fn push_unsigned(&mut self, width: usize) -> Result<(), Problem> {
        let value = self.number(width)?;
        self.push(Value::Int(value as i64))
    }

    /// A number of as many bytes as it needs, in two's complement.
    fn push_long(&mut self) -> Result<(), Problem> {
        let width = self.number(1)? as u32;
        if width > 8 {
            return Err(format!("damaged: a number of {width} bytes"));
        }
        let unused = 64 - 8 * width;
        let value = self.number(width as usize)?;
        // A shift by all 64 bits has no value: the number of no bytes is 0.
        let value = value.checked_shl(unused).unwrap_or(0).cast_signed();
        self.push(Value::Int(value.checked_shr(unused).unwrap_or(0)))
    }

    fn push_text(&mut self, width: usize) -> Result<(), Problem> {
        let len = self.number(width)?;
        let bytes = self.take(place(len), "a text")?;
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("damaged: a text is no UTF-8: {error}"))?;
        self.push(Value::Text(text))
    }

    fn push_tuple(&mut self, items: Vec<Value<'b>>) -> Result<(), Problem> {
        let depth_of = |item: &Value<'_>| match item {
            Value::Tuple(tuple) => tuple.depth,
            _ => 0,
        };
        let depth = 1 + items.iter().map(depth_of).max().unwrap_or(0);
        if depth > DEEPEST {
            return Err(format!("tuples lie in tuples, more than {DEEPEST} deep"));
        }
        self.push(Value::Tuple(Rc::new(Tuple { items, depth })))
    }

    /// A tuple of the last `count` values.
    fn push_last(&mut self, count: usize) -> Result<(), Problem> {
        let start = self.above_mark().len().checked_sub(count).ok_or(NO_PAIR)? + self.floor();
        let items = self.stack.split_off(start);
        self.push_tuple(items)
    }

    fn push_dict(&mut self, ordered: bool) -> Result<(), Problem> {
        room(self.dicts.len())?;
        self.dicts.push(Dict { ordered, items: Vec::new() });
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn pop(&mut self) -> Result<Value<'b>, Problem> {
        if self.above_mark().is_empty() {
            return Err(NO_PAIR.into());
        }
        self.stack.pop().ok_or_else(|| NO_PAIR.to_owned())
    }

    fn pop_text(&mut self) -> Result<&'b str, Problem> {
        match self.pop()? {
            Value::Text(text) => Ok(text),
            _ => Err("damaged: a name that is no text".into()),
        }
    }

    fn pop_group(&mut self) -> Result<Vec<Value<'b>>, Problem> {
        let start = self.marks.pop().ok_or("damaged: a group ends that has not begun")?;
        Ok(self.stack.split_off(start))
    }

    fn top_dict(&mut self) -> Result<&mut Dict<'b>, Problem> {
        let Some(&Value::Dict(id)) = self.above_mark().last() else {
            return Err("damaged: items are set in what is no dictionary".into());
        };
        self.dicts.get_mut(id).ok_or_else(|| NO_PAIR.to_owned())
    }

    /// The stack's height where the innermost group began.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn above_mark(&self) -> &[Value<'b>] {
        self.stack.get(self.floor()..).unwrap_or_default()
    }

    fn number(&mut self, width: usize) -> Result<u64, Problem> {
        self.take(width, "an instruction").map(number)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'b [u8], Problem> {
        let taken = slice(self.bytes, self.at, count, what)?;
        self.at += count;
        Ok(taken)
    }

    /// Text up to the end of a line.
    fn line(&mut self) -> Result<&'b str, Problem> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("cut short in a name")?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| "damaged: a name is no UTF-8".to_owned())
    }
}
