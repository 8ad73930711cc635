//! Arguments as Python gives them: text or ids, whole numbers, lists of strings.

use std::fmt;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyMapping, PySequence, PyString};
use spikelet::error::{Error, Result};

use crate::errors::bad_option;

/// A whole number of any size; those beyond 128 bits are as good as the nearest one within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int(i128);

impl FromPyObject<'_, '_> for Int {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(small) = object.extract::<i64>() {
            return Ok(Self(small.into()));
        }
        // Raises the usual TypeError for what is not a whole number.
        let number = object.call_method0("__index__").map_err(|_| needed(&object, "a whole number"))?;
        let number = number.cast::<PyInt>()?;
        Ok(Self(number.extract().unwrap_or(if number.lt(0)? { i128::MIN } else { i128::MAX })))
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            i128::MIN => f.write_str("less than -2**127"),
            i128::MAX => f.write_str("more than 2**127"),
            n => write!(f, "{n}"),
        }
    }
}

impl Int {
    pub const ZERO: Self = Self(0);

    /// The number as the engine takes it, or an error that names the option.
    pub fn to<T: TryFrom<i128>>(self, name: &str, needed: &str) -> Result<T> {
        T::try_from(self.0).map_err(|_| bad_option(name, self, needed))
    }

    /// A token id of a vocabulary.
    pub fn to_id(self, name: &str, vocab_size: usize) -> Result<u32> {
        match u32::try_from(self.0) {
            Ok(id) if (id as usize) < vocab_size => Ok(id),
            Ok(id) => Err(Error::TokenId { id: id.into(), vocab_size }),
            Err(_) => Err(bad_option(name, self, &format!("token ids from 0 to {}", vocab_size.saturating_sub(1)))),
        }
    }
}

/// The error for an object of a wrong type.
fn needed(object: &Bound<'_, PyAny>, what: &str) -> PyErr {
    let found = object.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string());
    PyTypeError::new_err(format!("{what} is needed, found {found}"))
}

/// Token ids: a list, a tuple, an array, a range: whatever can be indexed.
pub struct Ids(Vec<Int>);

impl FromPyObject<'_, '_> for Ids {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let indexable = object.cast::<PySequence>().is_ok() || object.hasattr("__array__")?;
        if !indexable || object.is_instance_of::<PyBytes>() || object.is_instance_of::<PyString>() {
            return Err(needed(&object, "a sequence of token ids"));
        }
        object.try_iter()?.map(|id| id?.extract()).collect::<PyResult<_>>().map(Self)
    }
}

impl Ids {
    /// The ids, every one of them in the vocabulary. `name` is the argument's name.
    pub fn resolve(&self, name: &str, vocab_size: usize) -> Result<Vec<u32>> {
        self.0.iter().map(|id| id.to_id(name, vocab_size)).collect()
    }
}

/// What a model is given to read.
pub enum Prompt {
    Text(String),
    Ids(Ids),
}

impl FromPyObject<'_, '_> for Prompt {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Self::Text(text.to_str()?.to_owned()));
        }
        if object.is_none() {
            return Err(needed(&object, "a str or a sequence of token ids"));
        }
        object.extract().map(Self::Ids)
    }
}

/// Several of them.
pub struct Prompts(pub Vec<Prompt>);

impl FromPyObject<'_, '_> for Prompts {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyString>() || object.cast::<PySequence>().is_err() {
            return Err(needed(&object, "a sequence of prompts"));
        }
        object.try_iter()?.map(|prompt| prompt?.extract()).collect::<PyResult<_>>().map(Self)
    }
}

/// One string or several.
pub struct Strings(pub Vec<String>);

impl FromPyObject<'_, '_> for Strings {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match object.cast::<PyString>() {
            Ok(one) => Ok(Self(vec![one.to_str()?.to_owned()])),
            Err(_) => object.extract().map(Self).map_err(|_| needed(&object, "a str or a sequence of str")),
        }
    }
}

/// One seed for all rows, or each row's own.
pub enum Seeds {
    One(Int),
    Each(Vec<Int>),
}

impl FromPyObject<'_, '_> for Seeds {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let several = object.cast::<PySequence>().is_ok() && !object.is_instance_of::<PyString>();
        if several { object.extract().map(Self::Each) } else { object.extract().map(Self::One) }
    }
}

/// Token ids and what is added to their logits.
pub struct Bias(Vec<(Int, f32)>);

impl FromPyObject<'_, '_> for Bias {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let mapping = object.cast::<PyMapping>().map_err(|_| needed(&object, "a mapping of token ids to numbers"))?;
        let items = mapping.items()?;
        let bias = items.iter().map(|item| item.extract::<(Int, f64)>());
        bias.map(|item| item.map(|(id, bias)| (id, bias as f32))).collect::<PyResult<_>>().map(Self)
    }
}

impl Bias {
    /// Ids, every one of them in the vocabulary, and their values.
    pub fn resolve(&self, name: &str, vocab_size: usize) -> Result<Vec<(u32, f32)>> {
        self.0.iter().map(|(id, bias)| Ok((id.to_id(name, vocab_size)?, *bias))).collect()
    }
}

/// The f64 that prints as the f32 does: 0.8, not 0.800000011920929.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
