//! What the neurons did over a text.

use numpy::{PyArray2, PyArray4};
use pyo3::prelude::*;
use spikelet::config::Neuron;

use crate::state::array;

/// What the neurons of a model did, from `Model.trace`.
///
/// Site 0 of a layer are the neurons after time mixing, site 1 those after channel mixing. A model without spiking
/// neurons has empty `spikes`, `membranes` and `firing_rates`: their first axis is 0.
///
/// Example:
///     >>> model = spikelet.load("tests/golden/spikegpt-tiny")
///     >>> trace = model.trace([1, 2, 3])
///     >>> trace.spikes.shape, trace.spikes.dtype
///     ((4, 2, 3, 64), dtype('uint8'))
#[pyclass(frozen, module = "spikelet")]
pub struct Trace {
    pub trace: spikelet::model::Trace,
    pub neuron: Neuron,
}

impl Trace {
    /// Layers with spiking neurons.
    fn layers(&self) -> usize {
        match self.neuron {
            Neuron::Lif | Neuron::Plif => self.trace.layers(),
            Neuron::None => 0,
        }
    }

    fn shape(&self) -> [usize; 4] {
        [self.layers(), 2, self.trace.tokens(), self.trace.hidden()]
    }
}

#[pymethods]
impl Trace {
    /// Spikes, 0 or 1: uint8 `[layers, 2, T, hidden]`.
    #[getter]
    fn spikes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray4<u8>>> {
        array(py, self.trace.spikes(), self.shape())
    }

    /// Membranes after each token's reset: float32 `[layers, 2, T, hidden]`.
    #[getter]
    fn membranes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray4<f32>>> {
        array(py, self.trace.membranes(), self.shape())
    }

    /// Mean of the spikes, 0 to 1: float32 `[layers, 2]`.
    #[getter]
    fn firing_rates<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        array(py, self.trace.firing_rates(), [self.layers(), 2])
    }

    /// Share of channel mixing's keys above zero, 0 to 1: float32 `[layers, T]`. The rows of `ffn.value` that are read.
    #[getter]
    fn relu2_density<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        array(py, self.trace.relu_squared_density(), [self.trace.layers(), self.trace.tokens()])
    }

    fn __repr__(&self) -> String {
        format!("<spikelet.Trace: {} tokens>", self.trace.tokens())
    }
}
