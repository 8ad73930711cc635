//! Arguments as Python gives them: text or ids, whole numbers, and the options of generation.

use std::fmt;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyMapping, PySequence, PyString};
use spikelet::decode::StopRules;
use spikelet::error::{Error, Result};
use spikelet::generation_config::GenerationConfig;
use spikelet::sampler::SamplingParams;

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
        let number = object.call_method0("__index__").map_err(|_| not_an_integer(&object))?;
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

fn not_an_integer(object: &Bound<'_, PyAny>) -> PyErr {
    let found = object.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string());
    PyTypeError::new_err(format!("a whole number is needed, found {found}"))
}

/// Token ids: a list, a tuple, an array, a range: whatever can be indexed.
pub struct Ids(Vec<Int>);

impl FromPyObject<'_, '_> for Ids {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let indexable = object.cast::<PySequence>().is_ok() || object.hasattr("__array__")?;
        if !indexable || object.is_instance_of::<PyBytes>() || object.is_instance_of::<PyString>() {
            let found = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!("a sequence of token ids is needed, found {found}")));
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
        object.extract().map(Self::Ids).map_err(|error| {
            if !error.is_instance_of::<PyTypeError>(object.py()) {
                return error;
            }
            PyTypeError::new_err(format!("a prompt is a str or a sequence of token ids: {}", error.value(object.py())))
        })
    }
}

/// One string or several.
pub struct Strings(pub Vec<String>);

impl FromPyObject<'_, '_> for Strings {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match object.cast::<PyString>() {
            Ok(one) => Ok(Self(vec![one.to_str()?.to_owned()])),
            Err(_) => object.extract().map(Self),
        }
    }
}

/// One seed for all rows, or each row's own.
#[derive(FromPyObject)]
pub enum Seeds {
    One(Int),
    Each(Vec<Int>),
}

/// Token ids and what is added to their logits.
pub struct Bias(Vec<(Int, f32)>);

impl FromPyObject<'_, '_> for Bias {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let items = object.cast::<PyMapping>()?.items()?;
        items.iter().map(|item| item.extract::<(Int, f64)>()).map(|item| item.map(|(id, bias)| (id, bias as f32))).collect::<PyResult<_>>().map(Self)
    }
}

/// The options that every way of generating shares. What is `None` is left to the model, then to the engine.
#[derive(Default)]
pub struct Options {
    pub max_new_tokens: Option<Int>,
    pub temperature: Option<f64>,
    pub top_k: Option<Int>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub penalty_decay: Option<f64>,
    pub logit_bias: Option<Bias>,
    pub stop: Option<Strings>,
    pub stop_ids: Option<Ids>,
    pub ignore_eos: Option<bool>,
    pub include_stop: Option<bool>,
    pub logprobs: Option<Int>,
    pub preset: Option<String>,
}

const COUNT: &str = "a whole number, 0 or more";

impl Options {
    /// What the engine is told, but for the seed: these options over the model's own over the engine's.
    pub fn resolve(self, model: &GenerationConfig, vocab_size: usize) -> Result<(SamplingParams, StopRules)> {
        let (mut sampling, mut stop) = (SamplingParams::default(), StopRules::default());
        model.apply(&mut sampling, &mut stop)?;
        if let Some(name) = self.preset {
            sampling.preset = name.parse()?;
        }
        let numbers = [
            (&mut sampling.temperature, self.temperature),
            (&mut sampling.top_p, self.top_p),
            (&mut sampling.min_p, self.min_p),
            (&mut sampling.typical_p, self.typical_p),
            (&mut sampling.repetition_penalty, self.repetition_penalty),
            (&mut sampling.presence_penalty, self.presence_penalty),
            (&mut sampling.frequency_penalty, self.frequency_penalty),
            (&mut sampling.penalty_decay, self.penalty_decay),
        ];
        for (place, value) in numbers {
            *place = value.map_or(*place, |value| value as f32);
        }
        let counts = [
            ("max_new_tokens", &mut stop.max_new_tokens, self.max_new_tokens),
            ("top_k", &mut sampling.top_k, self.top_k),
            ("logprobs", &mut sampling.logprobs, self.logprobs),
        ];
        for (name, place, value) in counts {
            if let Some(value) = value {
                *place = value.to(name, COUNT)?;
            }
        }
        if let Some(Bias(bias)) = self.logit_bias {
            let resolve = |(id, bias): (Int, f32)| Ok((id.to_id("logit_bias", vocab_size)?, bias));
            sampling.logit_bias = bias.into_iter().map(resolve).collect::<Result<_>>()?;
        }
        if let Some(Strings(strings)) = self.stop {
            stop.strings = strings;
        }
        if let Some(ids) = self.stop_ids {
            stop.ids = ids.resolve("stop_ids", vocab_size)?;
        }
        stop.ignore_eos = self.ignore_eos.unwrap_or(stop.ignore_eos);
        stop.include_stop = self.include_stop.unwrap_or(stop.include_stop);
        sampling.validate(vocab_size)?;
        stop.validate(vocab_size)?;
        Ok((sampling, stop))
    }
}

/// A given seed, or a random one.
pub fn seed(given: Option<Int>) -> Result<u64> {
    given.map_or_else(|| Ok(random_seed()), |seed| seed.to("seed", "a whole number from 0 to 2**64 - 1"))
}

/// Few enough digits to be written down and typed again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed") >> 32
}

/// The engine's own value of every option, by the option's name in Python.
pub fn default_options(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    options_dict(py, &SamplingParams::default(), &StopRules::default())
}

/// Options by their names in Python.
fn options_dict<'py>(py: Python<'py>, sampling: &SamplingParams, stop: &StopRules) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("max_new_tokens", stop.max_new_tokens)?;
    dict.set_item("temperature", shortest(sampling.temperature))?;
    dict.set_item("top_k", sampling.top_k)?;
    dict.set_item("top_p", shortest(sampling.top_p))?;
    dict.set_item("min_p", shortest(sampling.min_p))?;
    dict.set_item("typical_p", shortest(sampling.typical_p))?;
    dict.set_item("repetition_penalty", shortest(sampling.repetition_penalty))?;
    dict.set_item("presence_penalty", shortest(sampling.presence_penalty))?;
    dict.set_item("frequency_penalty", shortest(sampling.frequency_penalty))?;
    dict.set_item("penalty_decay", shortest(sampling.penalty_decay))?;
    dict.set_item("logit_bias", PyDict::new(py))?;
    dict.set_item("stop", &stop.strings)?;
    dict.set_item("stop_ids", &stop.ids)?;
    dict.set_item("ignore_eos", stop.ignore_eos)?;
    dict.set_item("include_stop", stop.include_stop)?;
    dict.set_item("seed", py.None())?;
    dict.set_item("row", 0)?;
    dict.set_item("logprobs", sampling.logprobs)?;
    dict.set_item("preset", sampling.preset.name())?;
    Ok(dict)
}

/// The f64 that prints as the f32 does: 0.8, not 0.800000011920929.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
