//! The tokenizer of a model.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use spikelet::error::{Error, Result};

use crate::args::{Ids, Int};
use crate::errors::engine;

/// Text to token ids and back, as the model was trained with.
///
/// Example:
///     >>> tokenizer = spikelet.load().tokenizer
///     >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
///     'Once upon a time'
#[pyclass(frozen, module = "spikelet")]
pub struct Tokenizer(pub Arc<dyn spikelet::tokenizer::Tokenizer>);

#[pymethods]
impl Tokenizer {
    /// Number of token ids: all are below it.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    /// The token that ends a text, or None.
    #[getter]
    fn eos_id(&self) -> Option<u32> {
        self.0.eos_id()
    }

    /// Ids of tokens that stand for events in a text and not for a part of it.
    #[getter]
    fn special_ids(&self) -> Vec<u32> {
        self.0.special_ids().to_vec()
    }

    /// SHA-256 of what defines the tokenizer: equal fingerprints mean equal ids.
    #[getter]
    fn fingerprint(&self, py: Python<'_>) -> PyResult<String> {
        engine(py, || Ok(self.0.fingerprint()))
    }

    /// Token ids of `text`. No special tokens are added.
    ///
    /// Args:
    ///     text: what to encode.
    ///     special: whether names of special tokens in the text mean those tokens; if not, they are ordinary text.
    #[pyo3(signature = (text, *, special=true))]
    fn encode(&self, py: Python<'_>, text: &str, special: bool) -> PyResult<Vec<u32>> {
        engine(py, || if special { self.0.encode(text) } else { self.0.encode_ordinary(text) })
    }

    /// Text of token ids. Bytes that are not UTF-8 become U+FFFD, special tokens nothing.
    ///
    /// Raises:
    ///     OptionError: an id outside the vocabulary.
    fn decode(&self, py: Python<'_>, ids: Ids) -> PyResult<String> {
        engine(py, || self.0.decode(&ids.resolve("ids", self.0.vocab_size())?))
    }

    /// The bytes that a token stands for; none for special tokens.
    ///
    /// Raises:
    ///     OptionError: an id outside the vocabulary.
    fn token_bytes<'py>(&self, py: Python<'py>, id: Int) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = engine(py, || self.0.token_bytes(id.to_id("id", self.0.vocab_size())?))?;
        Ok(PyBytes::new(py, bytes))
    }

    /// A token's name in its vocabulary, also of a special one, or None. Not its text: see `token_bytes`.
    ///
    /// Raises:
    ///     OptionError: an id outside the vocabulary.
    fn id_to_token(&self, py: Python<'_>, id: Int) -> PyResult<Option<String>> {
        engine(py, || Ok(self.0.id_to_token(id.to_id("id", self.0.vocab_size())?)))
    }

    /// The id of the token with this name, or None.
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn __repr__(&self) -> String {
        format!("<spikelet.Tokenizer: {}>", self.0.describe())
    }
}

/// Stands in for the tokenizer of a model that has none: ids work, and stand for no text.
pub struct IdsOnly(pub usize);

impl IdsOnly {
    fn refuse<T>(&self) -> Result<T> {
        let (what, reason) = ("text without a tokenizer".into(), "give token ids instead".into());
        Err(Error::Unsupported { what, reason })
    }
}

impl spikelet::tokenizer::Tokenizer for IdsOnly {
    fn vocab_size(&self) -> usize {
        self.0
    }

    fn encode(&self, _: &str) -> Result<Vec<u32>> {
        self.refuse()
    }

    fn encode_ordinary(&self, _: &str) -> Result<Vec<u32>> {
        self.refuse()
    }

    fn token_bytes(&self, _: u32) -> Result<&[u8]> {
        Ok(&[])
    }

    fn eos_id(&self) -> Option<u32> {
        None
    }

    fn special_ids(&self) -> &[u32] {
        &[]
    }

    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }

    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }

    fn describe(&self) -> String {
        "none".into()
    }

    fn fingerprint(&self) -> String {
        String::new()
    }
}
