//! The machine that runs pickles.
//!
//! Pickles are programs for a small stack machine. Python's own reader lets them call any function; this one knows the handful of names that
//! `torch.save` writes for tensors, and refuses every other. It never runs code, and everything it makes is counted against one budget.

use std::collections::HashMap;

use super::super::safetensors::MAX_DIMS;
use super::pickle::{Global, Id, Refused, Storage, Tensor, Value};

/// Values, memo entries and copies that one pickle may make; a checkpoint of a thousand tensors makes about 15 thousand.
const BUDGET: usize = 1 << 20;
/// Bytes of one pickle.
const MAX_BYTES: usize = 32 << 20;
/// Longest module or function name.
const MAX_NAME: usize = 512;

/// A pickle while it runs.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    cut: bool,
    /// Bytes read so far.
    pub at: usize,
    pub values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack where marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    spent: usize,
}

impl<'a> Machine<'a> {
    pub fn new(bytes: &'a [u8]) -> Machine<'a> {
        Machine {
            bytes: &bytes[..bytes.len().min(MAX_BYTES)],
            cut: bytes.len() > MAX_BYTES,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            spent: 0,
        }
    }

    /// Runs to the end; gives the result.
    pub fn run(&mut self) -> Refused<Id> {
        loop {
            let op = self.take(1)?[0];
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
    }

    /// Operations on the stack, constants and the memo; the rest is [`Machine::combine`].
    fn step(&mut self, op: u8) -> Refused<()> {
        match op {
            0x80 => match self.take(1)?[0] {
                0..=5 => Ok(()),
                version => Err(format!("pickle protocol {version} is not known")),
            },
            0x95 => self.take(8).map(drop), // FRAME: its length is a hint for buffering
            b'(' => {
                self.spend(1)?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.pop()?;
                self.stack.push(top);
                self.push_id(top)
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.int::<1>(|b| i64::from(b[0])),
            b'M' => self.int(|b| i64::from(u16::from_le_bytes(b))),
            b'J' => self.int(|b| i64::from(i32::from_le_bytes(b))),
            0x8a => {
                let length = self.length::<1>()?;
                self.long(length)
            }
            0x8b => {
                let length = self.length::<4>()?;
                self.long(length)
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))
            }
            b'X' => self.string::<4>(),
            0x8c => self.string::<1>(),
            0x8d => self.string::<8>(),
            b'U' => self.string::<1>(),
            b'T' => self.string::<4>(),
            b'C' => self.skip_bytes::<1>(),
            b'B' => self.skip_bytes::<4>(),
            0x8e | 0x96 => self.skip_bytes::<8>(),
            b'q' => self.put::<1>(),
            b'r' => self.put::<4>(),
            0x94 => self.memoize(self.memo.len() as u32),
            b'h' => self.recall::<1>(),
            b'j' => self.recall::<4>(),
            _ => self.combine(op),
        }
    }

    /// Operations that make something of what lies on the stack.
    fn combine(&mut self, op: u8) -> Refused<()> {
        match op {
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)
            }
            b'c' | b'i' => {
                // INST calls what it names; GLOBAL only fetches it.
                let (module, name) = (self.line()?, self.line()?);
                let global = Global::find(module, name)?;
                if op == b'i' {
                    return Err(format!("the pickle asks for an instance of `{module}.{name}`; nothing is run"));
                }
                self.push(Value::Global(global))
            }
            0x93 => self.stack_global(),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            _ => Err(self.refuse(op)),
        }
    }

    /// Operations that plain data and tensors never need.
    fn refuse(&self, op: u8) -> String {
        let name = match op {
            b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' | b'P' => {
                "a text operation of protocol 0, which torch.save does not write"
            }
            b'o' => "OBJ, which calls a class",
            0x81 => "NEWOBJ, which calls a class",
            0x92 => "NEWOBJ_EX, which calls a class",
            0x82..=0x84 => "EXT, which calls a registered function",
            0x8f..=0x91 => "a set",
            0x97 | 0x98 => "an out-of-band buffer",
            _ => "an operation that does not exist",
        };
        format!("the pickle holds {name} (0x{op:02x} at byte {}); nothing is run", self.at - 1)
    }

    fn take(&mut self, n: usize) -> Refused<&'a [u8]> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            return Err(if self.cut {
                format!("the pickle is longer than {MAX_BYTES} bytes")
            } else {
                format!(
                    "the pickle ends in the middle: {n} bytes needed at byte {}, {} left",
                    self.at,
                    self.bytes.len() - self.at
                )
            });
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Refused<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Refused<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|e| e.to_string())
    }

    fn spend(&mut self, n: usize) -> Refused<()> {
        self.spent += n;
        if self.spent > BUDGET {
            return Err(format!("the pickle makes more than {BUDGET} values, too many for a model"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Refused<()> {
        self.spend(1)?;
        let id = self.values.len() as Id;
        self.values.push(value);
        self.stack.push(id);
        Ok(())
    }

    /// Pushes a value that is there already.
    fn push_id(&mut self, id: Id) -> Refused<()> {
        self.spend(1)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Refused<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(format!("the pickle takes a value that is not there (byte {})", self.at - 1));
        }
        self.stack.pop().ok_or_else(|| "the pickle takes a value that is not there".to_owned())
    }

    fn pop_mark(&mut self) -> Refused<Vec<Id>> {
        let Some(mark) = self.marks.pop() else {
            return Err(format!("the pickle takes a mark that is not there (byte {})", self.at - 1));
        };
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Refused<&mut Value<'a>> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(&mut self.values[id as usize])
    }

    fn int<const N: usize>(&mut self, value: impl Fn([u8; N]) -> i64) -> Refused<()> {
        let value = value(self.array()?);
        self.push(Value::Int(value))
    }

    fn long(&mut self, length: usize) -> Refused<()> {
        if length > 16 {
            return Err(format!("the pickle holds an integer of {length} bytes, more than a model needs"));
        }
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide[..length].copy_from_slice(bytes);
        let value = i128::from_le_bytes(wide);
        self.push(i64::try_from(value).map_or(Value::BigInt(value), Value::Int))
    }

    fn string<const N: usize>(&mut self) -> Refused<()> {
        let length = self.length::<N>()?;
        let text = std::str::from_utf8(self.take(length)?)
            .map_err(|_| "the pickle holds a string that is not UTF-8".to_owned())?;
        self.push(Value::Str(text))
    }

    /// Bytes carry nothing that a model needs; training programs store random states so.
    fn skip_bytes<const N: usize>(&mut self) -> Refused<()> {
        let length = self.length::<N>()?;
        self.take(length)?;
        self.push(Value::Bytes)
    }

    fn put<const N: usize>(&mut self) -> Refused<()> {
        let key = self.length::<N>()? as u32;
        self.memoize(key)
    }

    fn memoize(&mut self, key: u32) -> Refused<()> {
        let id = self.pop()?;
        self.stack.push(id);
        self.spend(1)?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Refused<()> {
        let key = self.length::<N>()? as u32;
        let Some(&id) = self.memo.get(&key) else {
            return Err(format!("the pickle recalls entry {key}, which it never stored"));
        };
        self.push_id(id)
    }

    fn tuple(&mut self, n: usize) -> Refused<()> {
        let mut items = vec![0; n];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, items: &[Id]) -> Refused<()> {
        match self.top()? {
            Value::List(list) => list.extend_from_slice(items),
            other => return Err(format!("the pickle appends to {}", other.kind())),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Refused<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.top()? {
            Value::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|&[k, v]| (k, v))),
            Value::Dict(_) => return Err("the pickle sets a key without a value".into()),
            other => return Err(format!("the pickle sets items of {}", other.kind())),
        }
        Ok(())
    }

    fn line(&mut self) -> Refused<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().take(MAX_NAME).position(|&b| b == b'\n') else {
            return Err(format!("the pickle holds a name without end (byte {})", self.at));
        };
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| "the pickle holds a name that is not UTF-8".to_owned())
    }

    fn stack_global(&mut self) -> Refused<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.values[module as usize], &self.values[name as usize]) {
            (&Value::Str(module), &Value::Str(name)) => {
                let global = Global::find(module, name)?;
                self.push(Value::Global(global))
            }
            _ => Err("the pickle asks for a function whose name is not a string".into()),
        }
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// A persistent id stands for a storage: `("storage", class, key, location, numel[, None])`.
    fn persistent(&mut self) -> Refused<()> {
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else {
            return Err(format!("a storage is described by {}, needed a tuple", self.value(id).kind()));
        };
        let (&[tag, class, key, _location, numel], view) =
            parts.split_first_chunk::<5>().ok_or("a storage's description is too short")?;
        let &Value::Str("storage") = self.value(tag) else {
            return Err("the pickle refers to something outside that is not a storage".into());
        };
        if view.iter().any(|&v| *self.value(v) != Value::None) {
            return Err(
                "the file holds views of storages, as very old PyTorch wrote them; save it again with a newer one"
                    .into(),
            );
        }
        let (&Value::Global(Global::Storage(dtype)), &Value::Str(key), &Value::Int(numel)) =
            (self.value(class), self.value(key), self.value(numel))
        else {
            return Err("a storage's description has parts of the wrong kind".into());
        };
        let numel = u64::try_from(numel).map_err(|_| format!("storage {key} has {numel} values"))?;
        self.push(Value::Storage(Storage { dtype, key, numel }))
    }

    fn reduce(&mut self) -> Refused<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments) = self.value(arguments) else {
            return Err(format!("the pickle calls with {}, needed a tuple", self.value(arguments).kind()));
        };
        let value = match *self.value(callable) {
            Value::Global(Global::OrderedDict) => match arguments[..] {
                [] => Value::Dict(Vec::new()),
                [list] => self.pairs(list)?,
                _ => return Err("the pickle calls OrderedDict with more than one argument".into()),
            },
            Value::Global(Global::RebuildTensor) => self.tensor(arguments)?,
            Value::Global(Global::RebuildParameter) => {
                let data = arguments.first().map(|&id| self.value(id));
                match data {
                    Some(Value::Tensor(tensor)) => Value::Tensor(tensor.clone()),
                    _ => return Err("a parameter is made of something that is not a tensor".into()),
                }
            }
            Value::Global(Global::Encode) => Value::Bytes,
            ref other => return Err(format!("the pickle calls {}; nothing is run", other.kind())),
        };
        if let Value::Dict(pairs) = &value {
            self.spend(pairs.len())?;
        }
        self.push(value)
    }

    /// `OrderedDict([[key, value], …])`, as Python 2 wrote it.
    fn pairs(&self, list: Id) -> Refused<Value<'a>> {
        let Value::List(list) = self.value(list) else {
            return Err("the pickle makes an OrderedDict of something that is not a list".into());
        };
        if list.len() > BUDGET - self.spent {
            return Err(format!("the pickle makes more than {BUDGET} values, too many for a model"));
        }
        let pair = |&id: &Id| match self.value(id) {
            Value::Tuple(pair) | Value::List(pair) => match pair[..] {
                [key, value] => Ok((key, value)),
                _ => Err("the pickle makes an OrderedDict of things that are not pairs".to_owned()),
            },
            _ => Err("the pickle makes an OrderedDict of things that are not pairs".to_owned()),
        };
        Ok(Value::Dict(list.iter().map(pair).collect::<Refused<_>>()?))
    }

    /// `_rebuild_tensor[_v2](storage, offset, shape, stride, …)`; gradients and hooks do not matter here.
    fn tensor(&self, arguments: &[Id]) -> Refused<Value<'a>> {
        let Some((&[storage, offset, shape, stride], _)) = arguments.split_first_chunk::<4>() else {
            return Err("a tensor is described by too few arguments".into());
        };
        let (Value::Storage(storage), &Value::Int(offset)) = (self.value(storage), self.value(offset)) else {
            return Err("a tensor's description has parts of the wrong kind".into());
        };
        let offset = u64::try_from(offset).map_err(|_| format!("a tensor begins at {offset}"))?;
        let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
        if shape.len() != stride.len() {
            return Err(format!("a tensor has {} dimensions but {} strides", shape.len(), stride.len()));
        }
        Ok(Value::Tensor(Tensor { storage: storage.clone(), offset, shape, stride }))
    }

    fn sizes(&self, id: Id) -> Refused<Vec<u64>> {
        let (Value::Tuple(items) | Value::List(items)) = self.value(id) else {
            return Err(format!("a tensor's shape is {}, needed a tuple", self.value(id).kind()));
        };
        if items.len() > MAX_DIMS {
            return Err(format!("a tensor has {} dimensions, at most {MAX_DIMS} are read", items.len()));
        }
        let size = |&id: &Id| match *self.value(id) {
            Value::Int(n) => u64::try_from(n).map_err(|_| format!("a tensor's shape or stride holds {n}")),
            ref other => Err(format!("a tensor's shape or stride holds {}", other.kind())),
        };
        items.iter().map(size).collect()
    }

    /// BUILD hands an object its attributes. `state_dict()` hangs version numbers on its dict so; any other object is refused.
    fn build(&mut self) -> Refused<()> {
        let state = self.pop()?;
        let attributes_only = matches!(self.value(state), Value::Dict(_));
        match self.top()? {
            Value::Dict(_) if attributes_only => Ok(()),
            other => Err(format!("the pickle sets attributes of {} (BUILD); nothing is run", other.kind())),
        }
    }
}
