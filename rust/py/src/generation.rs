//! Generation as Python sees it: an iterator of tokens, and what has come of it.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyTuple, PyType};
use spikelet::error::Result;

use crate::errors::{engine, lock};
use crate::stats::GenerationStats;
use crate::stream::{Made, Outcome, Stream};

/// The Python object of a token: a `spikelet.Token`.
fn token<'py>(py: Python<'py>, made: &Made) -> PyResult<Bound<'py, PyAny>> {
    static TOKEN: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static TOKEN_LOGPROB: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = TOKEN_LOGPROB.import(py, "spikelet._token", "TokenLogprob")?;
    let top = made.top_logprobs.iter().map(|top| class.call1((top.id, top.logprob))).collect::<PyResult<Vec<_>>>()?;
    let class = TOKEN.import(py, "spikelet._token", "Token")?;
    class.call1((&*made.text, made.id, made.logprob, PyTuple::new(py, top)?, made.drafted))
}

fn tokens<'py>(py: Python<'py>, made: &[Made]) -> PyResult<Bound<'py, PyList>> {
    let tokens = made.iter().map(|made| token(py, made)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, tokens)
}

fn ids(made: &[Made]) -> Vec<u32> {
    made.iter().map(|made| made.id).collect()
}

/// Text in the making: an iterator, for `for` and `async for`, of `Token`.
///
/// Tokens are made as they are asked for. `text`, `ids`, `tokens` and `stats` tell of those made so far and make none;
/// `run` makes the rest. It is a context manager that closes itself.
///
/// Ctrl-C raises KeyboardInterrupt between two passes of the model; what was made stays readable, and the generation may
/// go on or be closed.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> with model.generate([1, 2, 3], max_new_tokens=4, temperature=0) as generation:
///     ...     ids = [token.id for token in generation]
///     >>> ids == generation.ids, generation.finish_reason
///     (True, 'length')
#[pyclass(frozen, module = "spikelet")]
pub struct Generation {
    pub stream: Arc<Mutex<Stream>>,
    pub seed: u64,
}

impl Generation {
    pub fn new(stream: Stream, seed: u64) -> Self {
        Self { stream: Arc::new(Mutex::new(stream)), seed }
    }

    /// Runs passes until a token waits or the row has ended, looking for Ctrl-C after each. What was made waits if there
    /// was one.
    pub fn advance(py: Python<'_>, stream: &Mutex<Stream>) -> PyResult<()> {
        loop {
            let ready = engine(py, || {
                let mut stream = lock(stream)?;
                if !stream.is_ready() {
                    stream.step()?;
                }
                Ok(stream.is_ready())
            })?;
            py.check_signals()?;
            if ready {
                return Ok(());
            }
        }
    }

    /// Does `read` on the stream, without the GIL.
    fn look<T: Send>(&self, py: Python<'_>, read: impl FnOnce(&mut Stream) -> Result<T> + Send) -> PyResult<T> {
        engine(py, || read(&mut *lock(&self.stream)?))
    }

    fn next_made(&self, py: Python<'_>) -> PyResult<Option<Made>> {
        Self::advance(py, &self.stream)?;
        self.take_made(py)
    }

    fn take_made(&self, py: Python<'_>) -> PyResult<Option<Made>> {
        let (made, failure) = self.look(py, |stream| {
            let made = stream.next_made();
            let failure = if made.is_none() { stream.take_failure() } else { None };
            Ok((made, failure))
        })?;
        failure.map_or(Ok(made), Err)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // Its session, if any, gets its state back. Nothing is left to be told if that fails.
        let _ = lock(&self.stream).and_then(|mut stream| stream.close());
    }
}

#[pymethods]
impl Generation {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.next_made(py)?.map(|made| token(py, &made)).transpose()
    }

    fn __aiter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// A coroutine that runs passes in asyncio's thread pool, so that the event loop goes on.
    fn __anext__<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static NEXT_TOKEN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        NEXT_TOKEN
            .import(this.py(), "spikelet._token", "next_token")?
            .call1((this.getattr("_advance")?, this.getattr("_take")?))
    }

    /// Runs passes until `_take` gives something other than None, or the end.
    fn _advance(&self, py: Python<'_>) -> PyResult<()> {
        Self::advance(py, &self.stream)
    }

    /// The next token that is made already, or None.
    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.take_made(py)?.map(|made| token(py, &made)).transpose()
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (exc_type, exc, traceback))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: &Bound<'_, PyAny>,
        exc: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc, traceback);
        self.close(py)
    }

    /// The text made so far.
    #[getter]
    fn text(&self, py: Python<'_>) -> PyResult<String> {
        self.look(py, |stream| Ok(stream.outcome.text.clone()))
    }

    /// Ids of the tokens made so far, with the one that stopped it.
    #[getter]
    fn ids(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.look(py, |stream| Ok(ids(&stream.outcome.made)))
    }

    /// The tokens made so far.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        tokens(py, &self.look(py, |stream| Ok(stream.outcome.made.clone()))?)
    }

    /// Counts and times so far.
    #[getter]
    fn stats(&self, py: Python<'_>) -> PyResult<GenerationStats> {
        self.look(py, |stream| Ok(GenerationStats { stats: stream.outcome.stats, seed: self.seed }))
    }

    /// The seed of its random numbers: as given, else the one that was drawn.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    /// Why it ended, or None while it has not: `"eos"`, `"stop_id"`, `"stop_string"`, `"length"`, `"cancelled"`, `"error"`.
    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        self.look(py, |stream| Ok(stream.outcome.finish.map(|reason| reason.name())))
    }

    /// Makes all that is left and returns the whole.
    fn run(&self, py: Python<'_>) -> PyResult<Completion> {
        while self.next_made(py)?.is_some() {}
        let outcome = self.look(py, |stream| Ok(stream.outcome.clone()))?;
        Ok(Completion { outcome, seed: self.seed })
    }

    /// Ends it, once a pass that is being run in another thread is over. It can be closed twice; iterating over it then
    /// ends after the tokens that were made.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.look(py, Stream::close)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (tokens, finish) = self.look(py, |stream| Ok((stream.outcome.made.len(), stream.outcome.finish)))?;
        let state = finish.map_or("running", |reason| reason.name());
        Ok(format!("<spikelet.Generation: {tokens} tokens, {state}>"))
    }
}

/// A text that was generated to its end.
#[pyclass(frozen, module = "spikelet")]
pub struct Completion {
    pub outcome: Outcome,
    pub seed: u64,
}

#[pymethods]
impl Completion {
    /// The text.
    #[getter]
    fn text(&self) -> &str {
        &self.outcome.text
    }

    /// Ids of its tokens, with the one that stopped it.
    #[getter]
    fn ids(&self) -> Vec<u32> {
        ids(&self.outcome.made)
    }

    /// Its tokens.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        tokens(py, &self.outcome.made)
    }

    /// Counts and times.
    #[getter]
    fn stats(&self) -> GenerationStats {
        GenerationStats { stats: self.outcome.stats, seed: self.seed }
    }

    /// The seed of its random numbers: as given, else the one that was drawn.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    /// Why it ended: `"eos"`, `"stop_id"`, `"stop_string"`, `"length"` or `"cancelled"`.
    #[getter]
    fn finish_reason(&self) -> &'static str {
        self.outcome.finish.map_or("cancelled", |reason| reason.name())
    }

    fn __str__(&self) -> &str {
        &self.outcome.text
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = pyo3::types::PyString::new(py, &self.outcome.text).repr()?;
        Ok(format!("<spikelet.Completion: {text}, {}>", self.finish_reason()))
    }
}
