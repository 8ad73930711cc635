//! Functions of the module: files and the machine.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use spikelet::config::format_name;
use spikelet::error::{Error, Result};
use spikelet::model::{LoadOptions, Model, calibrate};
use spikelet::tokenizer::load_tokenizer;
use spikelet::weights::{Checkpoint, Dtype, Quantization, QuantizedMatrix};
use spikelet_simd::measure::{fma_peak, int8_peak, read_bandwidth};
use spikelet_simd::{Cpu, Level, WeightFormat, physical_cores};

use crate::args::{Int, Prompt};
use crate::config::Facts;
use crate::errors::{bad_option, engine};
use crate::load::{open_options, thread_count};
use crate::progress::Listener;

/// Writes a model in any readable form as a model folder: `config.json`, `model.safetensors`, the tokenizer's files, its prophet.
///
/// The folder's files appear when all are complete; until then what was there stays.
///
/// Args:
///     src: a model folder, a safetensors file or the authors' `.pth` file.
///     dst: the folder to write.
///     dtype: format of the matrices: `"f32"`, `"bf16"` or `"f16"`. None keeps every byte.
///     model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
///     spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.
///     progress: is called with the bytes written and the bytes to write. What it raises stops the work.
///
/// Raises:
///     FormatError, UnsupportedError: `src` is no model that this version reads.
///     FileError: a file cannot be read or written.
#[pyfunction]
#[pyo3(signature = (src, dst, *, dtype=None, model_type=None, spike_embedding=None, progress=None))]
pub fn convert(
    py: Python<'_>,
    src: PathBuf,
    dst: PathBuf,
    dtype: Option<&str>,
    model_type: Option<&str>,
    spike_embedding: Option<bool>,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let mut listener = Listener::new(progress);
    let converted = engine(py, || {
        let dtype = dtype.map(matrix_type).transpose()?;
        let checkpoint = Checkpoint::open_with(&src, open_options(model_type, spike_embedding)?)?;
        spikelet::weights::convert(&checkpoint, &dst, dtype, &mut |done, total| listener.tell((done, total)))
    });
    listener.outcome(converted)
}

fn matrix_type(name: &str) -> Result<Dtype> {
    match name {
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        "f16" => Ok(Dtype::F16),
        "q8" | "q4" => {
            Err(bad_option("dtype", format!("{name:?}"), "\"f32\", \"bf16\" or \"f16\" (`quantize` makes q8 and q4)"))
        }
        _ => Err(bad_option("dtype", format!("{name:?}"), "\"f32\", \"bf16\" or \"f16\"")),
    }
}

/// Writes a model with quantised matrices as a model folder, which `load` then takes like any other.
///
/// Matrices become integers of 8 or 4 bits with a scale per 64 inputs; head and embedding have 8 bits in both formats, a binary
/// embedding is kept. A text shows which inputs of each matrix count most: their weights lose least, and the few that are far
/// larger than the others are kept in 16 bits. The folder's files appear when all are complete; until then what was there stays.
///
/// Args:
///     src: a model folder, a safetensors file or the authors' `.pth` file.
///     dst: the folder to write.
///     dtype: `"q8"` or `"q4"`.
///     calibration: a text like those that the model is used on, or its token ids; some thousand tokens. None: every input counts
///         alike, and none is kept apart.
///     threads: threads to compute with; None: the physical cores.
///     model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
///     spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.
///     progress: is called with `"reading"` (the text) or `"quantising"`, the tokens or weights done, and how many there are. What it
///         raises stops the work.
///
/// Returns:
///     A dict per matrix: `name`, `dtype`, `shape`, `outliers` (inputs kept in 16 bits), `error` (squares of what the weights lose, as a
///     share of their squares).
///
/// Raises:
///     FormatError, UnsupportedError: `src` is no model that this version reads.
///     TokenizerError: the calibration is a text and the model has no tokenizer.
///     FileError: a file cannot be read or written.
#[pyfunction]
#[pyo3(signature = (
    src, dst, *, dtype="q4", calibration=None, threads=None, model_type=None, spike_embedding=None, progress=None
))]
#[expect(clippy::too_many_arguments, reason = "the keywords of a Python function")]
pub fn quantize<'py>(
    py: Python<'py>,
    src: PathBuf,
    dst: PathBuf,
    dtype: &str,
    calibration: Option<Prompt>,
    threads: Option<Int>,
    model_type: Option<&str>,
    spike_embedding: Option<bool>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let mut listener = Listener::new(progress);
    let mut tell = |stage: &str, done: u64, total: u64| listener.tell((stage, done, total));
    let quantised = engine(py, || {
        let format = match dtype {
            "q8" => WeightFormat::Q8,
            "q4" => WeightFormat::Q4,
            _ => return Err(bad_option("dtype", format!("{dtype:?}"), "\"q8\" or \"q4\"")),
        };
        let open = open_options(model_type, spike_embedding)?;
        let threads = threads.map(thread_count).transpose()?;
        let Some(calibration) = calibration else {
            let checkpoint = Checkpoint::open_with(&src, open)?;
            let cpu = Cpu::new(level()?, threads.unwrap_or_else(physical_cores));
            let how = Quantization { format, calibration: None };
            return spikelet::weights::quantize(&checkpoint, &dst, how, &cpu, &mut |d, t| tell("quantising", d, t));
        };
        let model = Model::load(&src, &LoadOptions { threads, open, ..LoadOptions::default() })?;
        let tokens = match calibration {
            Prompt::Text(text) => load_tokenizer(&src, Some(model.config()))?.encode(&text)?,
            Prompt::Ids(ids) => ids.resolve("calibration", model.config().vocab_size)?,
        };
        if tokens.is_empty() {
            return Err(bad_option("calibration", "no tokens", "a text of at least one token, better some thousand"));
        }
        let seen = calibrate(&model, &tokens, &mut |done, total| tell("reading", done, total))?;
        let how = Quantization { format, calibration: Some(&seen) };
        let mut tell = |done, total| tell("quantising", done, total);
        spikelet::weights::quantize(model.checkpoint(), &dst, how, model.cpu(), &mut tell)
    });
    let report = listener.outcome(quantised)?;
    let entry = |matrix: QuantizedMatrix| {
        let dict = PyDict::new(py);
        dict.set_item("name", matrix.name)?;
        dict.set_item("dtype", format_name(matrix.format))?;
        dict.set_item("shape", matrix.shape)?;
        dict.set_item("outliers", matrix.outliers)?;
        dict.set_item("error", matrix.error)?;
        Ok(dict)
    };
    report.into_iter().map(entry).collect()
}

/// The instruction set in use.
fn level() -> Result<Level> {
    Level::detect().map_err(|error| Error::Unsupported { what: "SPIKELET_ISA".into(), reason: error.to_string() })
}

/// What a model's files hold, without loading it: a dict.
///
/// Keys: `path`, `model_type`, `config` (dict), `dtype`, `num_parameters`, `file_bytes`, `files` (path, bytes), `tensors`
/// (dicts with `name`, `stored_name`, `dtype`, `shape`, `bytes`), `tokenizer` (description or None), `generation_config`
/// (dict), `chat_template` (or None), `memory_bytes` (by dtype), `state_bytes` (of one sequence).
///
/// Args:
///     path: a model folder, a safetensors file or the authors' `.pth` file.
///     model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
///     spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.
///
/// Raises:
///     FormatError, TokenizerError, UnsupportedError: it is no model that this version reads.
///     FileError: a file cannot be read.
#[pyfunction]
#[pyo3(signature = (path, *, model_type=None, spike_embedding=None))]
pub fn inspect<'py>(
    py: Python<'py>,
    path: PathBuf,
    model_type: Option<&str>,
    spike_embedding: Option<bool>,
) -> PyResult<Bound<'py, PyDict>> {
    engine(py, || Facts::read(&path, open_options(model_type, spike_embedding)?))?.to_dict(py)
}

/// What the engine makes of this machine: a dict.
///
/// Keys: `levels` (instruction sets that the processor has and the engine knows, best first), `chosen` (the one in use, or
/// None if the environment variable `SPIKELET_ISA` asks for one that is not there), `reason` (a sentence),
/// `physical_cores` (the default number of threads), `logical_cores`.
#[pyfunction]
pub fn cpu_features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let levels = Level::available();
    let forced = std::env::var("SPIKELET_ISA").ok().filter(|name| !name.is_empty());
    let (chosen, reason) = match (Level::detect(), forced) {
        (Ok(level), Some(_)) => (Some(level.name()), format!("SPIKELET_ISA asks for {}", level.name())),
        (Ok(level), None) => (Some(level.name()), format!("{} is the best that this processor has", level.name())),
        (Err(error), _) => (None, format!("SPIKELET_ISA: {error}")),
    };
    let dict = PyDict::new(py);
    dict.set_item("levels", levels.iter().map(|level| level.name()).collect::<Vec<_>>())?;
    dict.set_item("chosen", chosen)?;
    dict.set_item("reason", reason)?;
    dict.set_item("physical_cores", physical_cores())?;
    dict.set_item("logical_cores", std::thread::available_parallelism().map_or(1, usize::from))?;
    Ok(dict)
}

/// The engine's own value of every option of `Model.generate`: a dict by the option's name.
#[pyfunction]
pub fn default_options(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    crate::options::default_options(py)
}

/// Memory read bandwidth in GB/s (1e9 bytes) of `threads` threads that each sum their share of a buffer too large for the
/// caches. For benchmarks.
#[pyfunction]
#[pyo3(signature = (threads, num_bytes=1 << 30))]
pub fn measure_read_bandwidth(py: Python<'_>, threads: usize, num_bytes: usize) -> PyResult<f64> {
    engine(py, || {
        if threads == 0 {
            return Err(bad_option("threads", "0", "at least 1"));
        }
        Ok(read_bandwidth(threads, num_bytes))
    })
}

/// Peak of f32 fused multiply-adds in GFLOP/s (two per multiply-add) of `threads` threads on the instruction set in use. For
/// benchmarks.
#[pyfunction]
pub fn measure_fma_peak(py: Python<'_>, threads: usize) -> PyResult<f64> {
    engine(py, || {
        if threads == 0 {
            return Err(bad_option("threads", "0", "at least 1"));
        }
        Ok(fma_peak(level()?, threads))
    })
}

/// Peak of dot products of bytes in GOP/s (two operations per multiply-add) of `threads` threads on the instruction set in use: what
/// products of q8 and q4 weights are made of. For benchmarks.
#[pyfunction]
pub fn measure_int8_peak(py: Python<'_>, threads: usize) -> PyResult<f64> {
    engine(py, || {
        if threads == 0 {
            return Err(bad_option("threads", "0", "at least 1"));
        }
        Ok(int8_peak(level()?, threads))
    })
}
