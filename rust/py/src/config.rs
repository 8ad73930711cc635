//! Facts about a model: its configuration, and what its files hold.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use spikelet::config::ModelType;
use spikelet::error::{Error, Result};
use spikelet::generation_config::GenerationConfig;
use spikelet::tokenizer::load_tokenizer;
use spikelet::weights::{Checkpoint, Dtype, OpenOptions};

use crate::args::shortest;

/// A model's architecture and sizes. It cannot be changed; `to_dict` gives the keys and values of a `config.json`.
#[pyclass(frozen, module = "spikelet")]
pub struct ModelConfig(pub spikelet::config::ModelConfig);

#[pymethods]
impl ModelConfig {
    /// The architecture: `"spikegpt"` or `"rwkv4"`.
    #[getter]
    fn model_type(&self) -> &'static str {
        self.0.model_type.name()
    }

    /// Token ids are below this.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Width of the residual stream.
    #[getter]
    fn hidden_size(&self) -> usize {
        self.0.hidden_size
    }

    /// Number of blocks.
    #[getter]
    fn num_hidden_layers(&self) -> usize {
        self.0.num_hidden_layers
    }

    /// Width of the channel mix.
    #[getter]
    fn intermediate_size(&self) -> usize {
        self.0.intermediate_size
    }

    /// Tokens per sequence in training, if known. It limits nothing.
    #[getter]
    fn context_length(&self) -> Option<usize> {
        self.0.context_length
    }

    /// Epsilon of every layer norm.
    #[getter]
    fn layer_norm_epsilon(&self) -> f64 {
        shortest(self.0.layer_norm_epsilon)
    }

    /// The compatibility switch with the authors' inference script that is in force; 0 is off.
    #[getter]
    fn rescale_every(&self) -> usize {
        self.0.rescale_every
    }

    /// Whether the embedding passes a step function (SpikeGPT).
    #[getter]
    fn spike_embedding(&self) -> bool {
        self.is_spikegpt() && self.0.spike_embedding
    }

    /// The form of SpikeGPT's first block, `"rwkv"` or `"rwkv-ffnpre"`; None for other models.
    #[getter]
    fn variant(&self) -> Option<&'static str> {
        self.is_spikegpt().then(|| self.0.variant.name())
    }

    /// SpikeGPT's neurons: `"lif"`, `"plif"` (learned decay) or `"none"`; None for other models.
    #[getter]
    fn neuron(&self) -> Option<&'static str> {
        self.is_spikegpt().then(|| self.0.neuron.name())
    }

    /// The id that begins a text, or None.
    #[getter]
    fn bos_token_id(&self) -> Option<u32> {
        self.0.bos_token_id
    }

    /// The id that ends a text, or None.
    #[getter]
    fn eos_token_id(&self) -> Option<u32> {
        self.0.eos_token_id
    }

    /// Keys and values of a complete `config.json`.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (self.0.to_json().to_string(),))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("ModelConfig({})", self.to_dict(py)?.repr()?))
    }
}

impl ModelConfig {
    fn is_spikegpt(&self) -> bool {
        self.0.model_type == ModelType::SpikeGpt
    }
}

/// The generation options that a model's `generation_config.json` sets.
pub fn generation_config<'py>(py: Python<'py>, config: &GenerationConfig) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let numbers = [
        ("temperature", config.temperature),
        ("top_p", config.top_p),
        ("min_p", config.min_p),
        ("typical_p", config.typical_p),
        ("repetition_penalty", config.repetition_penalty),
        ("presence_penalty", config.presence_penalty),
        ("frequency_penalty", config.frequency_penalty),
        ("penalty_decay", config.penalty_decay),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            dict.set_item(name, shortest(value))?;
        }
    }
    for (name, value) in [("max_new_tokens", config.max_new_tokens), ("top_k", config.top_k)] {
        if let Some(value) = value {
            dict.set_item(name, value)?;
        }
    }
    if !config.stop.is_empty() {
        dict.set_item("stop", &config.stop)?;
    }
    if !config.eos_token_id.is_empty() {
        dict.set_item("stop_ids", &config.eos_token_id)?;
    }
    if let Some(preset) = &config.preset {
        dict.set_item("preset", preset)?;
    }
    Ok(dict)
}

/// What a model's files say, read without loading the model.
pub struct Facts {
    inspection: spikelet::weights::Inspection,
    tokenizer: Option<String>,
    settings: GenerationConfig,
}

impl Facts {
    pub fn read(path: &Path, open: OpenOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open_with(path, open)?;
        let tokenizer = match load_tokenizer(path, Some(checkpoint.config())) {
            Ok(tokenizer) => Some(tokenizer.describe()),
            Err(Error::NoTokenizer { .. }) => None,
            Err(error) => return Err(error),
        };
        let settings = checkpoint.generation_config()?.unwrap_or_default();
        Ok(Self { inspection: checkpoint.inspect(), tokenizer, settings })
    }

    pub fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Self { inspection, tokenizer, settings } = self;
        let dict = PyDict::new(py);
        dict.set_item("path", inspection.path.as_os_str())?;
        dict.set_item("model_type", inspection.config.model_type.name())?;
        dict.set_item("config", ModelConfig(inspection.config.clone()).to_dict(py)?)?;
        dict.set_item("dtype", &inspection.dtype)?;
        dict.set_item("num_parameters", inspection.parameters)?;
        dict.set_item("file_bytes", inspection.files.iter().map(|(_, bytes)| bytes).sum::<u64>())?;
        let files = inspection.files.iter().map(|(path, bytes)| (path.as_os_str(), *bytes));
        dict.set_item("files", files.collect::<Vec<_>>())?;
        let tensors = PyList::empty(py);
        for tensor in &inspection.tensors {
            let entry = PyDict::new(py);
            entry.set_item("name", &tensor.name)?;
            entry.set_item("stored_name", &tensor.stored_name)?;
            entry.set_item("dtype", name(tensor.dtype))?;
            entry.set_item("shape", &tensor.shape)?;
            entry.set_item("bytes", tensor.numel * tensor.dtype.size() as u64)?;
            tensors.append(entry)?;
        }
        dict.set_item("tensors", tensors)?;
        dict.set_item("tokenizer", tokenizer)?;
        dict.set_item("generation_config", generation_config(py, settings)?)?;
        dict.set_item("chat_template", &settings.chat_template)?;
        let memory = PyDict::new(py);
        for (dtype, bytes) in &inspection.memory {
            memory.set_item(dtype, bytes)?;
        }
        dict.set_item("memory_bytes", memory)?;
        dict.set_item("state_bytes", inspection.state_bytes)?;
        Ok(dict)
    }
}

/// A type's name as options spell it.
fn name(dtype: Dtype) -> String {
    dtype.name().to_lowercase()
}
