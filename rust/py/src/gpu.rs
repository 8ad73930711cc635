//! GPUs of this machine, for whoever wonders why one is not used.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use spikelet::cuda::Survey;
use spikelet::model::DeviceChoice;

use crate::errors::engine;

/// What the engine makes of this machine's GPUs: a dict. It tries each, which takes a moment; having none is no error.
///
/// Keys: `driver` (the newest CUDA that the NVIDIA driver knows, or None if there is no driver), `problem` (why no GPU can be used, if
/// that is the driver's doing, else None), `devices` (dicts with `device` such as `"cuda:0"`, `name`, `capability`,
/// `multiprocessors`, `memory_free`, `memory_total` (bytes) and `problem`, which is None where it can be used), `chosen` (what
/// `device="auto"` comes to, or None if the environment variable `SPIKELET_DEVICE` asks for what is not there), `reason` (a sentence).
#[pyfunction]
pub fn gpu_features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let (survey, chosen) = engine(py, || Ok((Survey::take(), DeviceChoice::Auto.resolve())))?;
    let devices = survey.cards.into_iter().map(|found| {
        let dict = PyDict::new(py);
        let (name, capability, multiprocessors) = match found.card {
            Some(card) => (Some(card.name), Some(card.capability), Some(card.multiprocessors)),
            None => (None, None, None),
        };
        dict.set_item("device", found.device)?;
        dict.set_item("name", name)?;
        dict.set_item("capability", capability)?;
        dict.set_item("multiprocessors", multiprocessors)?;
        dict.set_item("memory_free", found.memory.map(|memory| memory.0))?;
        dict.set_item("memory_total", found.memory.map(|memory| memory.1))?;
        dict.set_item("problem", found.problem)?;
        Ok(dict)
    });
    let devices: Vec<_> = devices.collect::<PyResult<_>>()?;
    let (chosen, reason) = match chosen {
        Ok((chosen, reason)) => (Some(chosen), reason),
        Err(error) => (None, error.to_string()),
    };
    let dict = PyDict::new(py);
    dict.set_item("driver", survey.driver)?;
    dict.set_item("problem", survey.problem)?;
    dict.set_item("devices", devices)?;
    dict.set_item("chosen", chosen)?;
    dict.set_item("reason", reason)?;
    Ok(dict)
}
