//! A loaded model.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArrayDyn};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::config::format_name;
use spikelet::draft::Source;
use spikelet::error::Result;

use crate::args::{Bias, Ids, Int, Prompt, Prompts, Seeds, Strings};
use crate::batch;
use crate::config::{ModelConfig, generation_config};
use crate::errors::{bad_option, engine, exception};
use crate::generation::{Completion, Generation};
use crate::options::Options;
use crate::session::Session;
use crate::shared::Shared;
use crate::speculative::Speculative;
use crate::state::{State, array, in_passes};
use crate::stream::Stream;
use crate::tokenizer::Tokenizer;
use crate::trace::Trace;

/// Tokens of a pass that gives logits for every one of them: their lines lie in memory together.
const LOGIT_LINES: usize = 64;
/// Rows of a batch that are in flight at once, unless the caller says otherwise.
const BATCH_SIZE: usize = 32;

/// A loaded model, from `spikelet.load`. It never changes: any number of threads may use it at once.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> model
///     <spikelet.Model: spikegpt, 4 layers x 64, f32 on cpu>
#[pyclass(frozen, module = "spikelet")]
pub struct Model {
    pub shared: Arc<Shared>,
}

impl Model {
    fn config(&self) -> &spikelet::config::ModelConfig {
        self.shared.model.config()
    }

    /// Ids of a prompt that must not be empty.
    fn some_ids(&self, name: &str, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = self.shared.ids(name, prompt)?;
        if ids.is_empty() { Err(bad_option(name, "no tokens", "at least one token")) } else { Ok(ids) }
    }
}

#[pymethods]
impl Model {
    /// Architecture and sizes.
    #[getter(config)]
    fn py_config(&self) -> ModelConfig {
        ModelConfig(self.config().clone())
    }

    /// Format of the matrices in memory: `"f32"`, `"bf16"`, `"f16"`, `"q8"` or `"q4"`. Activations and states are always f32.
    #[getter]
    pub fn dtype(&self) -> &'static str {
        format_name(self.shared.model.format())
    }

    /// Where it computes: `"cpu"`, or a GPU such as `"cuda:0"`. Results do not depend on it.
    #[getter]
    fn device(&self) -> String {
        self.shared.model.device()
    }

    /// Why it computes there: what was asked for, or what `device="auto"` found.
    #[getter]
    fn device_reason(&self) -> &str {
        self.shared.model.device_reason()
    }

    /// Threads it computes with; on a GPU those that draft and draw.
    #[getter]
    fn threads(&self) -> usize {
        self.shared.model.cpu().threads()
    }

    /// Instruction set of these threads, such as `"avx2"`: one of the `levels` of `cpu_features`. Results do not depend on it.
    #[getter]
    fn isa(&self) -> &'static str {
        self.shared.model.cpu().level().name()
    }

    /// The folder or file it was loaded from.
    #[getter]
    fn path(&self) -> PathBuf {
        self.shared.model.path()
    }

    /// Token ids are below this.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.shared.vocab_size()
    }

    /// Bytes of weights in memory, packed for the kernels.
    #[getter]
    fn weight_bytes(&self) -> usize {
        self.shared.model.weight_bytes()
    }

    /// Bytes of one sequence's state, however long the sequence.
    #[getter]
    fn state_bytes(&self) -> usize {
        self.shared.model.state_layout().len() * size_of::<f32>()
    }

    /// SHA-256 of configuration and weights, computed when first asked for.
    #[getter]
    fn sha256(&self, py: Python<'_>) -> PyResult<String> {
        engine(py, || self.shared.model.checkpoint().sha256())
    }

    /// A name for the weights, found in a moment: SHA-256 of every tensor's name, type, shape and first bytes. What is made for one
    /// model, such as its prophet, says by it for which.
    #[getter]
    fn fingerprint(&self) -> String {
        self.shared.model.checkpoint().fingerprint()
    }

    /// How text becomes token ids.
    ///
    /// Raises:
    ///     TokenizerError: the model has none; it takes token ids instead of text.
    #[getter]
    fn tokenizer(&self) -> PyResult<Tokenizer> {
        self.shared.tokenizer().map(|tokenizer| Tokenizer(Arc::clone(tokenizer))).map_err(|error| exception(&error))
    }

    /// The options of `generate` that the model's `generation_config.json` sets. They hold unless an argument says otherwise.
    #[getter]
    fn generation_config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        generation_config(py, &self.shared.settings)
    }

    /// Template that turns a conversation into a prompt, or None.
    #[getter]
    fn chat_template(&self) -> Option<&str> {
        self.shared.settings.chat_template.as_deref()
    }

    /// Continues a text. Nothing runs until the result is iterated over.
    ///
    /// An option that is None takes the model's own value (`generation_config`), else the default given here.
    ///
    /// Args:
    ///     prompt: a text, or token ids.
    ///     max_new_tokens: most tokens to generate. Default: 256
    ///     temperature: logits are divided by it; 0 always takes the most probable token. Default: 1.0
    ///     top_k: keep so many of the most probable tokens; 0 is off. Default: 0
    ///     top_p: keep the most probable tokens that together have this probability; 1 is off. Default: 1.0
    ///     min_p: keep tokens at least this fraction as probable as the most probable; 0 is off. Default: 0.0
    ///     typical_p: keep the most typical tokens that together have this probability; 1 is off. Default: 1.0
    ///     repetition_penalty: logits of tokens read or generated are divided by it (negative ones multiplied); 1 is off. Default: 1.0
    ///     presence_penalty: taken from the logits of tokens generated. Default: 0.0
    ///     frequency_penalty: taken from a token's logit for every time it was generated. Default: 0.0
    ///     penalty_decay: the counts of `frequency_penalty` are multiplied by it with every token; 1 is off. Default: 1.0
    ///     logit_bias: added to the logits of these ids; `-math.inf` bans one. Default: {}
    ///     stop: a string or several that end the text. They are not part of it. Default: []
    ///     stop_ids: token ids that end the text. Default: []
    ///     ignore_eos: go on after the model's end-of-text token. Default: False
    ///     include_stop: leave what ended the text at its end. Default: False
    ///     seed: of the random numbers, 0 to 2**64 - 1. None draws one: `Generation.seed` tells which. Default: None
    ///     row: the row's number, 0 to 2**32 - 1. Equal seeds with unequal rows give other texts. Default: 0
    ///     logprobs: how many `top_logprobs` each token gets. Default: 0
    ///     preset: order of the sampling steps. `"openai"`: temperature comes first; `"rwkv"`: it comes last. Default: 'openai'
    ///     speculative: guess tokens ahead, see `SpeculativeConfig`, or the name of a method. The text is the same. Default: 'auto'
    ///
    /// Raises:
    ///     OptionError: a value that an option cannot have, a token id outside the vocabulary, an empty prompt for a model
    ///         without a token that begins a text.
    ///     TokenizerError: a text for a model without a tokenizer.
    #[pyo3(signature = (
        prompt, *, max_new_tokens=None, temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None,
        repetition_penalty=None, presence_penalty=None, frequency_penalty=None, penalty_decay=None, logit_bias=None,
        stop=None, stop_ids=None, ignore_eos=None, include_stop=None, seed=None, row=None, logprobs=None, preset=None,
        speculative=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python method")]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Prompt,
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
            let request = options.request(&self.shared, &self.shared.ids("prompt", &prompt)?, seed, row)?;
            let stream = Stream::start(&self.shared, &request, None)?;
            Ok(Generation::new(stream, request.sampling.seed))
        })
    }

    /// Continues many texts at once; rows join as others leave. Ctrl-C raises KeyboardInterrupt between two passes.
    ///
    /// The text of prompt `i` is the one that `generate(prompts[i], seed=seed, row=i)` gives. With a sequence of seeds it is
    /// the one of `generate(prompts[i], seed=seed[i])`.
    ///
    /// Args:
    ///     prompts: texts or lists of token ids.
    ///     seed: one for all rows, or one for each. None draws one for all.
    ///     batch_size: most rows at once. None: 32
    ///
    /// All other arguments are those of `generate` and hold for every row.
    ///
    /// Raises:
    ///     OptionError, TokenizerError: as `generate`.
    #[pyo3(signature = (
        prompts, *, max_new_tokens=None, temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None,
        repetition_penalty=None, presence_penalty=None, frequency_penalty=None, penalty_decay=None, logit_bias=None,
        stop=None, stop_ids=None, ignore_eos=None, include_stop=None, seed=None, logprobs=None, preset=None,
        speculative=None, batch_size=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python method")]
    fn generate_batch(
        &self,
        py: Python<'_>,
        prompts: Prompts,
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
        seed: Option<Seeds>,
        logprobs: Option<Int>,
        preset: Option<String>,
        speculative: Option<Speculative>,
        batch_size: Option<Int>,
    ) -> PyResult<Vec<Completion>> {
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
        let (requests, size) = engine(py, || {
            const NEEDED: &str = "a whole number, 1 or more";
            let size = batch_size.map_or(Ok(BATCH_SIZE), |size| size.to("batch_size", NEEDED))?;
            if size == 0 {
                return Err(bad_option("batch_size", size, NEEDED));
            }
            Ok((options.requests(&self.shared, &prompts.0, seed)?, size))
        })?;
        let outcomes = batch::run(py, &self.shared, &requests, size)?;
        let finished = outcomes.into_iter().zip(&requests);
        Ok(finished.map(|(outcome, request)| Completion { outcome, seed: request.sampling.seed }).collect())
    }

    /// What speculative decoding costs on this machine, in seconds: measured when first needed, and remembered in the user's cache.
    ///
    /// Returns:
    ///     `"pass"`: by number of tokens, a pass with logits after each; `"line"`: drawing a token; `"draft"`: by source, the
    ///     `"first"` guess and each `"next"` one, for a single row.
    ///
    /// Raises:
    ///     FormatError: the folder holds a prophet or table that cannot be used.
    fn costs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let table = engine(py, || self.shared.companions.costs())?;
        let passes = PyDict::new(py);
        for &(tokens, seconds) in table.passes() {
            passes.set_item(tokens, seconds)?;
        }
        let drafts = PyDict::new(py);
        for source in Source::ALL {
            if let Some(cost) = table.draft(source) {
                let steps = PyDict::new(py);
                steps.set_item("first", cost.first.at(1.0))?;
                steps.set_item("next", cost.next.at(1.0))?;
                drafts.set_item(source.name(), steps)?;
            }
        }
        let costs = PyDict::new(py);
        costs.set_item("pass", passes)?;
        costs.set_item("line", table.predict_lines(1.0))?;
        costs.set_item("draft", drafts)?;
        Ok(costs)
    }

    /// A conversation: it remembers what it has read and generated, and never reads it again.
    fn session(&self) -> Session {
        Session::new(&self.shared)
    }

    /// A session that `Session.save` wrote, to go on with the same bits.
    ///
    /// Raises:
    ///     StateError: it belongs to another model, or to this one in another `dtype`.
    ///     FormatError: the file is broken or no session.
    ///     FileError: the file cannot be read.
    fn load_session(&self, py: Python<'_>, path: PathBuf) -> PyResult<Session> {
        let session = self.session();
        session.load(py, path)?;
        Ok(session)
    }

    /// The state before the first token, or one with the arrays of `State.to_numpy`.
    ///
    /// Raises:
    ///     StateError: the arrays do not fit this model, or hold NaN.
    #[pyo3(signature = (arrays=None))]
    fn new_state(&self, arrays: Option<&Bound<'_, PyMapping>>) -> PyResult<State> {
        State::new(&self.shared.model, arrays)
    }

    /// Reads tokens and gives their logits; `state` moves on.
    ///
    /// The result has the same bits however the tokens are cut into calls.
    ///
    /// Args:
    ///     ids: token ids, at least one.
    ///     state: what came before.
    ///     all_logits: logits after every token, else after the last only.
    ///
    /// Returns:
    ///     float32 `[T, vocab_size]`, or `[vocab_size]` with `all_logits=False`.
    ///
    /// Raises:
    ///     OptionError: no ids, or one outside the vocabulary. The state has not moved then.
    ///     StateError: the state belongs to another model, or another call uses it.
    #[pyo3(signature = (ids, state, all_logits=true))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        ids: Ids,
        state: &State,
        all_logits: bool,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let ids = engine(py, || self.some_ids("ids", &Prompt::Ids(ids)))?;
        let vocab_size = self.shared.vocab_size();
        let lines = if all_logits { ids.len() } else { 1 };
        let mut logits = Vec::new();
        let room = logits.try_reserve_exact(lines.saturating_mul(vocab_size));
        room.map_err(|_| PyMemoryError::new_err(format!("no memory for {lines} x {vocab_size} logits")))?;
        let most = if all_logits { LOGIT_LINES } else { usize::MAX };
        in_passes(py, &self.shared, Some(state), (ids.len(), most), |decoder, slot, range| {
            let wanted = match all_logits {
                true => LogitsWanted::All,
                false if range.end == ids.len() => LogitsWanted::Last,
                false => LogitsWanted::None,
            };
            let runner = decoder.runner_mut();
            runner.forward(&[PassRow { slot, tokens: &ids[range], logits: wanted, keep: &[slot] }])?;
            logits.extend_from_slice(runner.logits());
            Ok(())
        })?;
        let shape = if all_logits { vec![ids.len(), vocab_size] } else { vec![vocab_size] };
        array(py, logits, shape)
    }

    /// Natural logarithms of the probabilities of given tokens, each given all before it.
    ///
    /// The first token has nothing before it and gets no value: T tokens give T - 1. With a `state` a long text can be scored
    /// in pieces. The state then has seen all of a piece but its last token, so the next piece begins with that token
    /// again: `score(ids[0:513], state)`, `score(ids[512:1025], state)`.
    ///
    /// Args:
    ///     prompt: a text, or token ids; at least one token.
    ///     state: what came before the first token; moves on. None: nothing.
    ///
    /// Returns:
    ///     float32 `[T - 1]`.
    ///
    /// Raises:
    ///     OptionError: no tokens, or one outside the vocabulary.
    #[pyo3(signature = (prompt, state=None))]
    fn score<'py>(
        &self,
        py: Python<'py>,
        prompt: Prompt,
        state: Option<&State>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let ids = engine(py, || self.some_ids("prompt", &prompt))?;
        let mut scores = Vec::with_capacity(ids.len() - 1);
        in_passes(py, &self.shared, state, (ids.len() - 1, LOGIT_LINES), |decoder, slot, range| {
            scores.extend(decoder.score_from(slot, &ids[range.start..=range.end])?);
            Ok(())
        })?;
        array(py, scores, [ids.len() - 1])
    }

    /// What the neurons do while a text is read.
    ///
    /// Args:
    ///     prompt: a text, or token ids; at least one token.
    ///     state: what came before; moves on. None: nothing.
    ///
    /// Raises:
    ///     UnsupportedError: the model computes on a GPU; on the CPU it computes the same.
    #[pyo3(signature = (prompt, state=None))]
    fn trace(&self, py: Python<'_>, prompt: Prompt, state: Option<&State>) -> PyResult<Trace> {
        let ids = engine(py, || self.some_ids("prompt", &prompt))?;
        let config = self.config();
        let mut trace = spikelet::model::Trace::new(config.num_hidden_layers, config.hidden_size);
        in_passes(py, &self.shared, state, (ids.len(), usize::MAX), |decoder, slot, range| {
            let row = PassRow { slot, tokens: &ids[range], logits: LogitsWanted::None, keep: &[slot] };
            decoder.runner_mut().forward_traced(row, &mut trace)
        })?;
        Ok(Trace { trace, neuron: config.neuron })
    }

    fn __repr__(&self) -> String {
        let config = self.config();
        format!(
            "<spikelet.Model: {}, {} layers x {}, {} on {}>",
            config.model_type.name(),
            config.num_hidden_layers,
            config.hidden_size,
            self.dtype(),
            self.device()
        )
    }
}
