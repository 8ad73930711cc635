//! From the options of `spikelet.load` to a model.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use spikelet::config::ModelType;
use spikelet::error::Result;
use spikelet::model::LoadOptions;
use spikelet::weights::OpenOptions;
use spikelet_simd::WeightFormat;

use crate::args::Int;
use crate::errors::{bad_option, engine};
use crate::model::Model;
use crate::progress::Listener;
use crate::shared::Shared;

/// Loads a model folder or file: `spikelet.load` without looking for names.
#[pyfunction]
#[pyo3(signature = (
    path, *, device="auto", dtype="auto", threads=None, model_type=None, spike_embedding=None, rescale_every=None,
    progress=None
))]
#[expect(clippy::too_many_arguments, reason = "the keywords of a Python function")]
pub fn load_model(
    py: Python<'_>,
    path: PathBuf,
    device: &str,
    dtype: &str,
    threads: Option<Int>,
    model_type: Option<&str>,
    spike_embedding: Option<bool>,
    rescale_every: Option<Int>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Model> {
    let mut listener = Listener::new(progress);
    let loaded = engine(py, || {
        let options = LoadOptions {
            format: format(dtype)?,
            device: device.parse()?,
            threads: threads.map(thread_count).transpose()?,
            level: None,
            open: open_options(model_type, spike_embedding)?,
            rescale_every: rescale_every
                .map(|every| every.to("rescale_every", "0 (off) or a number of layers"))
                .transpose()?,
        };
        let mut tell = |done, total| listener.tell((done, total));
        let model = spikelet::model::Model::load_with(&path, &options, &mut tell)?;
        Ok(Model { shared: Arc::new(Shared::new(model)?) })
    });
    listener.outcome(loaded)
}

/// What a bare file of weights leaves open.
pub fn open_options(model_type: Option<&str>, spike_embedding: Option<bool>) -> Result<OpenOptions> {
    Ok(OpenOptions { model_type: model_type.map(ModelType::by_name).transpose()?, spike_embedding })
}

/// The format of a `dtype` option; none for `"auto"`.
fn format(dtype: &str) -> Result<Option<WeightFormat>> {
    const NEEDED: &str = "\"auto\", \"f32\", \"bf16\", \"f16\", \"q8\" or \"q4\"";
    match dtype {
        "auto" => Ok(None),
        "f32" => Ok(Some(WeightFormat::F32)),
        "bf16" => Ok(Some(WeightFormat::Bf16)),
        "f16" => Ok(Some(WeightFormat::F16)),
        "q8" => Ok(Some(WeightFormat::Q8)),
        "q4" => Ok(Some(WeightFormat::Q4)),
        _ => Err(bad_option("dtype", format!("{dtype:?}"), NEEDED)),
    }
}

/// More threads than any machine has processors would be a mistake that costs memory.
pub fn thread_count(threads: Int) -> Result<usize> {
    const NEEDED: &str = "a number of threads from 1 to 1024";
    let count = threads.to("threads", NEEDED)?;
    if (1..=1024).contains(&count) { Ok(count) } else { Err(bad_option("threads", count, NEEDED)) }
}
