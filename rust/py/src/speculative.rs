//! Speculative decoding as Python asks for it.

use pyo3::prelude::*;
use pyo3::types::PyString;
use spikelet::draft::{Method, SpeculativeConfig as Engine, Verify};
use spikelet::error::Result;

use crate::args::Int;
use crate::errors::{bad_option, exception};
use crate::model::Model;

/// How tokens are guessed ahead and verified, for the `speculative` argument of the ways of generating.
///
/// With `verify="coupled"` (and with temperature 0) no setting changes a text: drafts only change how fast it comes.
///
/// Args:
///     method: where guesses come from. `"auto"`: whatever the model brings along, and repetitions of the text;
///         `"prophet"`: the network in the model's folder; `"ngram"`: repetitions of prompt and output; `"table"`: the table
///         of the training text in the model's folder; `"prophet+ngram"`: repetitions where there are any, else the prophet;
///         `"draft_model"`: a second model; `"off"`: one token per pass.
///     num_speculative_tokens: guesses per pass, 1 to 16, or `"auto"`: as many as pay, none where none does.
///     verify: `"coupled"`: a guess stays if it is the token that would be drawn anyway; `"token"` (Leviathan et al. 2023) and
///         `"block"` (Sun et al. 2024) accept more guesses and keep the model's distribution, but give other texts than
///         decoding without drafts. `"auto"`: coupled.
///     prompt_lookup_min: the shortest repetition, in tokens, that `"ngram"` goes on from.
///     prompt_lookup_max: the longest that it looks for.
///     draft_model: the model of `"draft_model"`, of the same vocabulary.
///     forced_acceptance: accepts each guess with this probability, whatever the model says: to measure a machine apart from
///         a draft. The text is then not the model's.
///
/// Raises:
///     OptionError: a value that an option cannot have.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> config = spikelet.SpeculativeConfig(method="ngram", num_speculative_tokens=4)
///     >>> drafted = model.generate([1, 2, 3] * 4, max_new_tokens=20, seed=1, speculative=config).run()
///     >>> plain = model.generate([1, 2, 3] * 4, max_new_tokens=20, seed=1, speculative="off").run()
///     >>> drafted.ids == plain.ids
///     True
#[pyclass(frozen, module = "spikelet")]
pub struct SpeculativeConfig {
    config: Engine,
    draft_model: Option<Py<Model>>,
}

/// A number or `"auto"`.
enum AutoOr {
    Number(Int),
    Word(String),
}

impl FromPyObject<'_, '_> for AutoOr {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match object.cast::<PyString>() {
            Ok(word) => Ok(Self::Word(word.to_str()?.to_owned())),
            Err(_) => object.extract().map(Self::Number),
        }
    }
}

#[pymethods]
impl SpeculativeConfig {
    #[new]
    #[pyo3(signature = (
        method="auto", *, num_speculative_tokens=None, verify="auto", prompt_lookup_min=None, prompt_lookup_max=None,
        draft_model=None, forced_acceptance=None,
    ))]
    fn new(
        method: &str,
        num_speculative_tokens: Option<AutoOr>,
        verify: &str,
        prompt_lookup_min: Option<Int>,
        prompt_lookup_max: Option<Int>,
        draft_model: Option<Py<Model>>,
        forced_acceptance: Option<f64>,
    ) -> PyResult<Self> {
        let config = || -> Result<Engine> {
            const COUNT: &str = "a whole number, 1 or more";
            let defaults = Engine::default();
            let config = Engine {
                method: method.parse()?,
                num_tokens: match num_speculative_tokens {
                    None => None,
                    Some(AutoOr::Word(word)) if word == "auto" => None,
                    Some(AutoOr::Word(word)) => {
                        return Err(bad_option("num_speculative_tokens", format!("{word:?}"), "a number or \"auto\""));
                    }
                    Some(AutoOr::Number(n)) => Some(n.to("num_speculative_tokens", COUNT)?),
                },
                verify: if verify == "auto" { Verify::Coupled } else { verify.parse()? },
                lookup_min: prompt_lookup_min.map_or(Ok(defaults.lookup_min), |n| n.to("prompt_lookup_min", COUNT))?,
                lookup_max: prompt_lookup_max.map_or(Ok(defaults.lookup_max), |n| n.to("prompt_lookup_max", COUNT))?,
                draft_model: draft_model.as_ref().map(|model| model.get().shared.model.clone()),
                forced_acceptance,
            };
            config.validate()?;
            Ok(config)
        };
        let config = config().map_err(|error| exception(&error))?;
        Ok(Self { config, draft_model })
    }

    /// Where guesses come from.
    #[getter]
    fn method(&self) -> &'static str {
        self.config.method.name()
    }

    /// Guesses per pass, or `"auto"`.
    #[getter]
    fn num_speculative_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.config.num_tokens {
            Some(n) => Ok(n.into_pyobject(py)?.into_any()),
            None => Ok(PyString::new(py, "auto").into_any()),
        }
    }

    /// How guesses are accepted.
    #[getter]
    fn verify(&self) -> &'static str {
        self.config.verify.name()
    }

    /// The shortest repetition that `"ngram"` goes on from, in tokens.
    #[getter]
    fn prompt_lookup_min(&self) -> usize {
        self.config.lookup_min
    }

    /// The longest repetition that `"ngram"` looks for, in tokens.
    #[getter]
    fn prompt_lookup_max(&self) -> usize {
        self.config.lookup_max
    }

    /// The second model, if there is one.
    #[getter]
    fn draft_model(&self, py: Python<'_>) -> Option<Py<Model>> {
        self.draft_model.as_ref().map(|model| model.clone_ref(py))
    }

    /// The probability with which each guess is accepted, if that is forced.
    #[getter]
    fn forced_acceptance(&self) -> Option<f64> {
        self.config.forced_acceptance
    }

    fn __repr__(&self) -> String {
        let tokens = self.config.num_tokens.map_or_else(|| "'auto'".into(), |n| n.to_string());
        format!("SpeculativeConfig('{}', num_speculative_tokens={tokens}, verify='{}')", self.method(), self.verify())
    }
}

/// The `speculative` argument: a configuration, or the name of a method.
pub enum Speculative {
    Method(String),
    Config(Engine),
}

impl FromPyObject<'_, '_> for Speculative {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(name) = object.cast::<PyString>() {
            return Ok(Self::Method(name.to_str()?.to_owned()));
        }
        match object.cast::<SpeculativeConfig>() {
            Ok(config) => Ok(Self::Config(config.get().config.clone())),
            Err(_) => Err(pyo3::exceptions::PyTypeError::new_err(format!(
                "speculative is {}; a SpeculativeConfig or the name of a method is needed",
                object.get_type().name()?
            ))),
        }
    }
}

impl Speculative {
    /// What the engine is asked for; `"auto"` where nothing is said.
    pub fn resolve(this: Option<&Self>) -> Result<Engine> {
        let method = match this {
            None => Method::Auto,
            Some(Self::Config(config)) => return Ok(config.clone()),
            Some(Self::Method(name)) => {
                let method = name.parse().map_err(|_| {
                    let names = Method::ALL.map(Method::name).join(", ");
                    bad_option("speculative", format!("{name:?}"), &format!("a SpeculativeConfig or one of {names}"))
                })?;
                match method {
                    Method::DraftModel => {
                        let needed = "SpeculativeConfig(\"draft_model\", draft_model=..)";
                        return Err(bad_option("speculative", "\"draft_model\"", needed));
                    }
                    method => method,
                }
            }
        };
        Ok(Engine { method, ..Engine::default() })
    }
}
