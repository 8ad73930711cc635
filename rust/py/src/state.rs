//! A model's memory of one sequence as a handle, and passes that move it on.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use numpy::ndarray::IntoDimension;
use numpy::{Element, IntoPyArray, PyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};
use spikelet::backend::{DeviceRunner, Runner};
use spikelet::decode::Decoder;
use spikelet::error::{Error, Result};
use spikelet::model::Model;
use spikelet::state::Slot;

use crate::errors::{engine, exception, lock};
use crate::shared::Shared;

/// All that a model remembers of one sequence. `Model.new_state` makes one, `Model.forward` moves it on.
///
/// It serves one call at a time.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> state = model.new_state()
///     >>> logits = model.forward([5, 6], state)
///     >>> logits.shape, state.position
///     ((2, 256), 2)
#[pyclass(frozen, module = "spikelet")]
pub struct State {
    model: Arc<Model>,
    /// Nothing while a call uses it.
    content: Mutex<Option<Content>>,
}

#[derive(Clone)]
struct Content {
    values: Vec<f32>,
    position: u64,
}

impl State {
    /// The state before the first token, or with the values of `arrays`.
    pub fn new(model: &Arc<Model>, arrays: Option<&Bound<'_, PyMapping>>) -> PyResult<Self> {
        let layout = model.state_layout();
        let mut values = vec![0f32; layout.len()];
        layout.fill_fresh(&mut values);
        if let Some(arrays) = arrays {
            need_numpy(arrays.py())?;
            for field in layout.fields() {
                let found =
                    arrays.get_item(&field.name).map_err(|_| mismatch(format!("array `{}` is missing", field.name)))?;
                let array: PyReadonlyArray1<'_, f32> = found.extract()?;
                let (found, needed) = (array.as_array().len(), field.range.len());
                if found != needed {
                    return Err(mismatch(format!("array `{}`: found {found} elements, needed {needed}", field.name)));
                }
                for (value, given) in values[field.range.clone()].iter_mut().zip(array.as_array()) {
                    *value = *given;
                }
            }
            let (found, needed) = (arrays.len()?, layout.fields().len());
            if found != needed {
                return Err(mismatch(format!("found {found} arrays, needed {needed}")));
            }
            if values.iter().any(|value| value.is_nan()) {
                return Err(mismatch("it holds NaN".into()));
            }
        }
        Ok(Self { model: Arc::clone(model), content: Mutex::new(Some(Content { values, position: 0 })) })
    }

    /// Does `read` on the content, without the GIL.
    fn look<T: Send>(&self, py: Python<'_>, read: impl FnOnce(&Content) -> T + Send) -> PyResult<T> {
        engine(py, || lock(&self.content)?.as_ref().map(read).ok_or_else(in_use))
    }
}

fn mismatch(reason: String) -> PyErr {
    exception(&Error::State { reason })
}

fn in_use() -> Error {
    Error::State { reason: "it is in use by another call".into() }
}

#[pymethods]
impl State {
    /// Number of tokens it has seen; of those before it was made from arrays it knows nothing.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |content| content.position)
    }

    /// An independent copy: both may go on from here.
    fn copy(&self, py: Python<'_>) -> PyResult<Self> {
        let content = self.look(py, Content::clone)?;
        Ok(Self { model: Arc::clone(&self.model), content: Mutex::new(Some(content)) })
    }

    /// A copy of its content: float32 arrays by name, such as `"blocks.0.att.shift"`. `Model.new_state` takes them back.
    fn to_numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let values = self.look(py, |content| content.values.clone())?;
        need_numpy(py)?;
        let dict = PyDict::new(py);
        for field in self.model.state_layout().fields() {
            dict.set_item(&field.name, PyArray1::from_slice(py, &values[field.range.clone()]))?;
        }
        Ok(dict)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<spikelet.State: {} tokens>", self.position(py)?))
    }
}

/// A decoder's slot that is lent for the time of a call.
struct Lent<'a> {
    shared: &'a Shared,
    /// Taken when it is given back.
    decoder: Option<Decoder<DeviceRunner>>,
    slot: Slot,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(mut decoder) = self.decoder.take() {
            decoder.runner_mut().free_slot(self.slot);
            self.shared.give_back(decoder);
        }
    }
}

/// Runs `pass` over the range `0..total` in pieces of at most `most`, from `state` or from the beginning of a text, in a
/// slot that the passes move on. Ctrl-C is looked for between them. `state` moves on when all are done, else not at all.
pub fn in_passes(
    py: Python<'_>,
    shared: &Shared,
    state: Option<&State>,
    (total, most): (usize, usize),
    mut pass: impl FnMut(&mut Decoder<DeviceRunner>, Slot, Range<usize>) -> Result<()> + Send,
) -> PyResult<()> {
    let Some(state) = state else {
        return passes(py, shared, None, (total, most), &mut pass).map(drop);
    };
    if !Arc::ptr_eq(&state.model, &shared.model) {
        return Err(mismatch("it belongs to another model".into()));
    }
    let content = engine(py, || lock(&state.content)?.take().ok_or_else(in_use))?;
    let moved = passes(py, shared, Some(&content.values), (total, most), &mut pass);
    let (content, result) = match moved {
        Ok(values) => (Content { values, position: content.position + total as u64 }, Ok(())),
        Err(error) => (content, Err(error)),
    };
    engine(py, || {
        *lock(&state.content)? = Some(content);
        Ok(())
    })?;
    result
}

fn passes(
    py: Python<'_>,
    shared: &Shared,
    start: Option<&[f32]>,
    (total, most): (usize, usize),
    pass: &mut (impl FnMut(&mut Decoder<DeviceRunner>, Slot, Range<usize>) -> Result<()> + Send),
) -> PyResult<Vec<f32>> {
    let mut lent = engine(py, || {
        let mut decoder = shared.decoder()?;
        let slot = decoder.runner_mut().alloc_slot()?;
        if let Some(values) = start {
            decoder.runner_mut().write_state(slot, values)?;
        }
        Ok(Lent { shared, decoder: Some(decoder), slot })
    })?;
    let most = lent.decoder.as_ref().map_or(most, |decoder| most.min(decoder.runner().max_pass_tokens()));
    for begin in (0..total).step_by(most) {
        engine(py, || {
            // A pass that panics takes its decoder with it.
            let Some(mut decoder) = lent.decoder.take() else { return Ok(()) };
            let done = pass(&mut decoder, lent.slot, begin..total.min(begin + most));
            lent.decoder = Some(decoder);
            done
        })?;
        py.check_signals()?;
    }
    engine(py, || match &mut lent.decoder {
        Some(decoder) => decoder.runner().read_state(lent.slot),
        None => Err(in_use()),
    })
}

/// The way to arrays: an ImportError where NumPy is missing.
fn need_numpy(py: Python<'_>) -> PyResult<()> {
    py.import("numpy").map(drop)
}

/// A vector as an array of some shape, without a copy.
pub fn array<T: Element, D: IntoDimension>(
    py: Python<'_>,
    values: Vec<T>,
    shape: D,
) -> PyResult<Bound<'_, PyArray<T, D::Dim>>> {
    need_numpy(py)?;
    values.into_pyarray(py).reshape(shape)
}
