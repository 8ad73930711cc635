//! What a pickle can hold here: numbers, strings, containers and descriptions of tensors, and nothing else.
//!
//! Values live in one list and refer to each other by number, so that values which hold themselves need no recursion.

use super::super::tensor::Dtype;
use super::machine::Machine;

/// Number of a value in the list of the pickle's values.
pub(super) type Id = u32;

/// Why a pickle was refused.
pub(super) type Refused<T> = Result<T, String>;

/// What a pickle can hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Beyond 64 bits; only the magic number of old files is so large.
    BigInt(i128),
    Float(f64),
    Str(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

impl Value<'_> {
    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::BigInt(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Str(_) => "a string",
            Value::Bytes => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a function or class",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// How protocol 2 writes `bytes`.
    Encode,
    Storage(Dtype),
}

impl Global {
    /// The only names known; every other is refused before anything is made of it.
    pub fn find(module: &str, name: &str) -> Refused<Global> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("_codecs", "encode") => Global::Encode,
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::Bf16),
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            ("torch", "IntStorage") => Global::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
            ("torch", "CharStorage") => Global::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
            _ => {
                let name: String = format!("{module}.{name}").chars().take(100).collect();
                return Err(format!(
                    "the pickle asks for `{}`; only tensors are read, nothing is run",
                    name.escape_debug()
                ));
            }
        })
    }
}

/// Numbers in a row, held elsewhere in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    pub dtype: Dtype,
    pub key: &'a str,
    pub numel: u64,
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
}

/// The values of a pickle.
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Bytes that it took.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Refused<Pickle<'a>> {
        let mut machine = Machine::new(bytes);
        let root = machine.run()?;
        Ok(Pickle { values: machine.values, root, length: machine.at })
    }

    pub fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    pub fn values(&self) -> impl Iterator<Item = &Value<'a>> {
        self.values.iter()
    }

    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }
}
