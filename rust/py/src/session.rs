//! A conversation that remembers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use spikelet::decode::{Request, SequenceState};
use spikelet::error::{Error, Result};
use spikelet::session_file::{load_session, save_session};

use crate::args::{Bias, Ids, Int, Prompt, Strings};
use crate::errors::{engine, lock};
use crate::generation::Generation;
use crate::model::Model;
use crate::options::Options;
use crate::shared::Shared;
use crate::speculative::Speculative;
use crate::stream::{Rest, Stream};

/// A conversation, from `Model.session`: it remembers what it has read and generated in a state of constant size, and never
/// reads anything twice.
///
/// It does one thing at a time. Feeding it or letting it generate anew closes a generation that is still running;
/// copying or saving it meanwhile is refused.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> session = model.session()
///     >>> session.feed([1, 2, 3])
///     3
///     >>> other = session.fork()
///     >>> a = session.generate(max_new_tokens=5, seed=1).run()
///     >>> b = other.generate(max_new_tokens=5, seed=1).run()
///     >>> a.ids == b.ids, session.num_tokens
///     (True, 8)
#[pyclass(frozen, module = "spikelet")]
pub struct Session {
    shared: Arc<Shared>,
    rest: Arc<Mutex<Rest>>,
}

impl Session {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), rest: Arc::default() }
    }

    /// Starts a row where the session stands. A row that is still running is closed first.
    fn start(&self, mut request: Request) -> Result<Arc<Mutex<Stream>>> {
        request.keep_state = true;
        loop {
            let mut rest = lock(&self.rest)?;
            let Some(active) = rest.active.upgrade() else {
                request.start.clone_from(&rest.state);
                let stream = Stream::start(&self.shared, &request, Some(Arc::clone(&self.rest)))?;
                let stream = Arc::new(Mutex::new(stream));
                rest.active = Arc::downgrade(&stream);
                return Ok(stream);
            };
            // The row needs the lock to hand its state in.
            drop(rest);
            lock(&active)?.close()?;
        }
    }

    /// The state of the session, which nothing is moving on.
    fn state(&self) -> Result<Option<Arc<SequenceState>>> {
        let rest = lock(&self.rest)?;
        if rest.active.strong_count() > 0 {
            return Err(Error::State {
                reason: "the session is generating: finish or close that generation first".into(),
            });
        }
        Ok(rest.state.clone())
    }

    /// Replaces the state. A row that is still running is closed first, and its state is dropped.
    fn set_state(&self, state: Option<Arc<SequenceState>>) -> Result<()> {
        let active = lock(&self.rest)?.active.upgrade();
        if let Some(active) = active {
            lock(&active)?.abandon()?;
        }
        lock(&self.rest)?.state = state;
        Ok(())
    }

    /// The state before the first token.
    fn fresh(&self) -> SequenceState {
        let layout = self.shared.model.state_layout();
        let mut values = vec![0.0; layout.len()];
        layout.fill_fresh(&mut values);
        SequenceState { values, position: 0, pending: None, recent: Vec::new() }
    }
}

#[pymethods]
impl Session {
    /// The model it belongs to.
    #[getter]
    fn model(&self) -> Model {
        Model { shared: Arc::clone(&self.shared) }
    }

    /// Number of tokens read and generated. While it generates: before that generation.
    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> PyResult<u64> {
        engine(py, || Ok(lock(&self.rest)?.state.as_ref().map_or(0, |state| state.num_tokens())))
    }

    /// Reads a text or token ids and remembers them. Returns the number of tokens.
    ///
    /// Ctrl-C raises KeyboardInterrupt between two passes and leaves the session as it was.
    ///
    /// Raises:
    ///     OptionError: a token id outside the vocabulary.
    ///     TokenizerError: a text for a model without a tokenizer.
    fn feed(&self, py: Python<'_>, prompt: Prompt) -> PyResult<usize> {
        let (count, stream) = engine(py, || {
            let ids = self.shared.ids("prompt", &prompt)?;
            let count = ids.len();
            if count == 0 {
                return Ok((0, None));
            }
            let options = Options { max_new_tokens: Some(Int::ZERO), ..Options::default() };
            let request = options.request(&self.shared, &ids, None, None)?;
            Ok((count, Some(self.start(request)?)))
        })?;
        let Some(stream) = stream else { return Ok(0) };
        if let Err(interrupt) = Generation::advance(py, &stream) {
            engine(py, || lock(&stream)?.abandon())?;
            return Err(interrupt);
        }
        match engine(py, || Ok(lock(&stream)?.take_failure()))? {
            Some(failure) => Err(failure),
            None => Ok(count),
        }
    }

    /// Goes on where the session stands, after reading `prompt` if there is one.
    ///
    /// Arguments are those of `Model.generate`. What is read and generated is remembered, also the token that stopped it and
    /// tokens whose text a stop string cut off. A generation that is closed early is remembered as far as it got.
    /// Penalties see what this call reads and generates, not what came before.
    ///
    /// Raises:
    ///     OptionError: as `Model.generate`; also a session that has read nothing and gets no prompt.
    #[pyo3(signature = (
        prompt=None, *, max_new_tokens=None, temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None,
        repetition_penalty=None, presence_penalty=None, frequency_penalty=None, penalty_decay=None, logit_bias=None,
        stop=None, stop_ids=None, ignore_eos=None, include_stop=None, seed=None, row=None, logprobs=None, preset=None,
        speculative=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python method")]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Option<Prompt>,
        max_new_tokens: Option<Int>,
        temperature: Option<f64>,
        top_k: Option<Int>,
        top_p: Option<f64>,
        min_p: Option<f64>,
        typical_p: Option<f64>,
        repetition_penalty: Option<f64>,
        presence_penalty: Option<f64>,
        frequency_penalty: Option<f64>,
        penalty_decay: Option<f64>,
        logit_bias: Option<Bias>,
        stop: Option<Strings>,
        stop_ids: Option<Ids>,
        ignore_eos: Option<bool>,
        include_stop: Option<bool>,
        seed: Option<Int>,
        row: Option<Int>,
        logprobs: Option<Int>,
        preset: Option<String>,
        speculative: Option<Speculative>,
    ) -> PyResult<Generation> {
        let options = Options {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_decay,
            logit_bias,
            stop,
            stop_ids,
            ignore_eos,
            include_stop,
            logprobs,
            preset,
            speculative,
        };
        engine(py, || {
            let ids = prompt.map_or(Ok(Vec::new()), |prompt| self.shared.ids("prompt", &prompt))?;
            let request = options.request(&self.shared, &ids, seed, row)?;
            let seed = request.sampling.seed;
            Ok(Generation { stream: self.start(request)?, seed })
        })
    }

    /// An independent copy: both may go on from here.
    ///
    /// Raises:
    ///     StateError: the session is generating.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let state = engine(py, || self.state())?;
        let rest = Rest { state, ..Rest::default() };
        Ok(Self { shared: Arc::clone(&self.shared), rest: Arc::new(Mutex::new(rest)) })
    }

    /// Forgets everything. A generation that is still running is closed.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        engine(py, || self.set_state(None))
    }

    /// Writes the session to a safetensors file, with the model's hash. The file appears whole or not at all.
    ///
    /// Raises:
    ///     StateError: the session is generating.
    ///     FileError: the file cannot be written.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        engine(py, || match self.state()? {
            Some(state) => save_session(&path, &self.shared.model, &state),
            None => save_session(&path, &self.shared.model, &self.fresh()),
        })
    }

    /// Goes to where a saved session stood. A generation that is still running is closed.
    ///
    /// Raises:
    ///     StateError: it belongs to another model, or to this one in another `dtype`. This session is as it was.
    ///     FormatError: the file is broken or no session.
    ///     FileError: the file cannot be read.
    pub fn load(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        engine(py, || {
            let state = load_session(&path, &self.shared.model)?;
            let nothing = state.num_tokens() == 0;
            self.set_state(if nothing { None } else { Some(Arc::new(state)) })
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<spikelet.Session: {} tokens>", self.num_tokens(py)?))
    }
}
