//! The fused training operators over NumPy arrays: no copies, the GIL released while they run.
//!
//! Arrays are float32 and C-contiguous. `spikelet.training.ops` wraps these for torch.

use numpy::ndarray::Dimension;
use numpy::{Element, PyArray, PyReadonlyArray, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3};
use numpy::{PyArray3, PyUntypedArrayMethods};
use numpy::{PyReadwriteArray, PyReadwriteArray1, PyReadwriteArray2, PyReadwriteArray3};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use spikelet::ops::{
    self, LifGrads, LifInputs, LifOutputGrads, MixGrads, OpError, SeqDims, Surrogate, WkvGrads, WkvInputs,
};

fn dims<T: Element>(array: &Bound<'_, PyArray3<T>>) -> SeqDims {
    let shape = array.shape();
    SeqDims { batch: shape[0], time: shape[1], channels: shape[2] }
}

fn refused(error: OpError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// NumPy calls Fortran order contiguous too, and a slice of it would have its axes swapped.
fn c_order<T: Element, D: Dimension>(array: &Bound<'_, PyArray<T, D>>) -> PyResult<()> {
    if array.is_c_contiguous() {
        return Ok(());
    }
    Err(PyValueError::new_err("arrays must be C-contiguous"))
}

fn not_contiguous<E: std::fmt::Display>(error: E) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn read<'a, T: Element, D: Dimension>(array: &'a PyReadonlyArray<'_, T, D>) -> PyResult<&'a [T]> {
    c_order(array)?;
    array.as_slice().map_err(not_contiguous)
}

fn write<'a, T: Element, D: Dimension>(array: &'a mut PyReadwriteArray<'_, T, D>) -> PyResult<&'a mut [T]> {
    c_order(array)?;
    array.as_slice_mut().map_err(not_contiguous)
}

/// Borrows an array, an optional one or a list of them as slices.
macro_rules! slice {
    ($array:ident) => {
        read(&$array)?
    };
    (mut $array:ident) => {
        write(&mut $array)?
    };
    (opt $array:ident) => {
        $array.as_ref().map(read).transpose()?
    };
    (opt mut $array:ident) => {
        $array.as_mut().map(write).transpose()?
    };
    (all $arrays:ident) => {
        $arrays.iter().map(read).collect::<PyResult<Vec<_>>>()?
    };
    (all mut $arrays:ident) => {
        $arrays.iter_mut().map(write).collect::<PyResult<Vec<_>>>()?
    };
}

/// WKV-4 forward into `y`, and the final state into `state_out`.
#[pyfunction]
#[pyo3(signature = (w, u, k, v, y, *, state=None, state_out=None, threads=1))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
pub fn wkv4_forward(
    py: Python<'_>,
    w: PyReadonlyArray1<'_, f32>,
    u: PyReadonlyArray1<'_, f32>,
    k: PyReadonlyArray3<'_, f32>,
    v: PyReadonlyArray3<'_, f32>,
    mut y: PyReadwriteArray3<'_, f32>,
    state: Option<PyReadonlyArray3<'_, f32>>,
    mut state_out: Option<PyReadwriteArray3<'_, f32>>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&k);
    let inputs = WkvInputs { w: slice!(w), u: slice!(u), k: slice!(k), v: slice!(v), state: slice!(opt state) };
    let (y, state_out) = (slice!(mut y), slice!(opt mut state_out));
    py.detach(|| ops::wkv4_forward(dims, inputs, y, state_out, threads)).map_err(refused)
}

/// WKV-4 backward for the output gradient `gy`, into `gw`, `gu`, `gk`, `gv` and `gstate`.
#[pyfunction]
#[pyo3(signature = (
    w, u, k, v, gy, gw, gu, gk, gv, *, state=None, gstate_out=None, gstate=None, threads=1
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
pub fn wkv4_backward(
    py: Python<'_>,
    w: PyReadonlyArray1<'_, f32>,
    u: PyReadonlyArray1<'_, f32>,
    k: PyReadonlyArray3<'_, f32>,
    v: PyReadonlyArray3<'_, f32>,
    gy: PyReadonlyArray3<'_, f32>,
    mut gw: PyReadwriteArray1<'_, f32>,
    mut gu: PyReadwriteArray1<'_, f32>,
    mut gk: PyReadwriteArray3<'_, f32>,
    mut gv: PyReadwriteArray3<'_, f32>,
    state: Option<PyReadonlyArray3<'_, f32>>,
    gstate_out: Option<PyReadonlyArray3<'_, f32>>,
    mut gstate: Option<PyReadwriteArray3<'_, f32>>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&k);
    let inputs = WkvInputs { w: slice!(w), u: slice!(u), k: slice!(k), v: slice!(v), state: slice!(opt state) };
    let (gy, gstate_out) = (slice!(gy), slice!(opt gstate_out));
    let grads = WkvGrads {
        w: slice!(mut gw),
        u: slice!(mut gu),
        k: slice!(mut gk),
        v: slice!(mut gv),
        state: slice!(opt mut gstate),
    };
    py.detach(|| ops::wkv4_backward(dims, inputs, gy, gstate_out, grads, threads)).map_err(refused)
}

/// `1 / (1 + exp(-x))` into `y`, with the bits that the engine gives a learned decay.
#[pyfunction]
#[pyo3(signature = (x, y))]
pub fn sigmoid(x: PyReadonlyArray1<'_, f32>, mut y: PyReadwriteArray1<'_, f32>) -> PyResult<()> {
    ops::sigmoid(slice!(x), slice!(mut y)).map_err(refused)
}

/// The surrogate `kind`: `"atan"`, `"sigmoid"` or `"fast_sigmoid"`.
fn surrogate(kind: &str, alpha: f32) -> PyResult<Surrogate> {
    match kind {
        "atan" => Ok(Surrogate::Atan(alpha)),
        "sigmoid" => Ok(Surrogate::Sigmoid(alpha)),
        "fast_sigmoid" => Ok(Surrogate::FastSigmoid(alpha)),
        _ => Err(PyValueError::new_err(format!(
            "surrogate is {kind:?}; known are \"atan\", \"sigmoid\" and \"fast_sigmoid\""
        ))),
    }
}

/// LIF forward into `spikes`, and the final membrane into `membrane_out`; `decay` `[channels]` is one half if left out.
#[pyfunction]
#[pyo3(signature = (x, spikes, *, membrane=None, decay=None, membrane_out=None, threads=1))]
pub fn lif_forward(
    py: Python<'_>,
    x: PyReadonlyArray3<'_, f32>,
    mut spikes: PyReadwriteArray3<'_, f32>,
    membrane: Option<PyReadonlyArray2<'_, f32>>,
    decay: Option<PyReadonlyArray1<'_, f32>>,
    mut membrane_out: Option<PyReadwriteArray2<'_, f32>>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&x);
    let inputs = LifInputs { x: slice!(x), membrane: slice!(opt membrane), decay: slice!(opt decay) };
    let (spikes, membrane_out) = (slice!(mut spikes), slice!(opt mut membrane_out));
    py.detach(|| ops::lif_forward(dims, inputs, spikes, membrane_out, threads)).map_err(refused)
}

/// LIF backward for the gradient `gspikes`, into `gx`, `gmembrane` and `gdecay` `[channels]`.
///
/// `surrogate` is `"atan"`, `"sigmoid"` or `"fast_sigmoid"`, of steepness `alpha`.
#[pyfunction]
#[pyo3(signature = (
    x, gspikes, gx, *, surrogate="atan", alpha=2.0, membrane=None, decay=None, gmembrane_out=None, gmembrane=None,
    gdecay=None, threads=1
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
pub fn lif_backward(
    py: Python<'_>,
    x: PyReadonlyArray3<'_, f32>,
    gspikes: PyReadonlyArray3<'_, f32>,
    mut gx: PyReadwriteArray3<'_, f32>,
    surrogate: &str,
    alpha: f32,
    membrane: Option<PyReadonlyArray2<'_, f32>>,
    decay: Option<PyReadonlyArray1<'_, f32>>,
    gmembrane_out: Option<PyReadonlyArray2<'_, f32>>,
    mut gmembrane: Option<PyReadwriteArray2<'_, f32>>,
    mut gdecay: Option<PyReadwriteArray1<'_, f32>>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&x);
    let surrogate = self::surrogate(surrogate, alpha)?;
    let inputs = LifInputs { x: slice!(x), membrane: slice!(opt membrane), decay: slice!(opt decay) };
    let outputs = LifOutputGrads { spikes: slice!(gspikes), membrane_out: slice!(opt gmembrane_out) };
    let grads = LifGrads { x: slice!(mut gx), membrane: slice!(opt mut gmembrane), decay: slice!(opt mut gdecay) };
    py.detach(|| ops::lif_backward(dims, inputs, surrogate, outputs, grads, threads)).map_err(refused)
}

/// The outputs of a mix: float32, or the bits of bfloat16 as uint16.
#[derive(FromPyObject)]
pub enum MixOutputs<'py> {
    F32(Vec<PyReadwriteArray3<'py, f32>>),
    Bf16(Vec<PyReadwriteArray3<'py, u16>>),
}

/// The gradients of a mix's outputs, in the type of the outputs.
#[derive(FromPyObject)]
pub enum MixOutputGrads<'py> {
    F32(Vec<PyReadonlyArray3<'py, f32>>),
    Bf16(Vec<PyReadonlyArray3<'py, u16>>),
}

/// Token shift and mix: `out[j] = mixes[j] * x + (1 - mixes[j]) * previous x`.
#[pyfunction]
#[pyo3(signature = (x, last, mixes, out, *, threads=1))]
pub fn mix_forward(
    py: Python<'_>,
    x: PyReadonlyArray3<'_, f32>,
    last: PyReadonlyArray2<'_, f32>,
    mixes: Vec<PyReadonlyArray1<'_, f32>>,
    out: MixOutputs<'_>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&x);
    let (x, last, mixes) = (slice!(x), slice!(last), slice!(all mixes));
    match out {
        MixOutputs::F32(mut out) => {
            let mut out = slice!(all mut out);
            py.detach(|| ops::mix_forward(dims, x, last, &mixes, &mut out, threads))
        }
        MixOutputs::Bf16(mut out) => {
            let mut out = slice!(all mut out);
            py.detach(|| ops::mix_forward(dims, x, last, &mixes, &mut out, threads))
        }
    }
    .map_err(refused)
}

/// Gradients of the mix for `gout`, into `gx`, `glast` and `gmixes` `[mixes, channels]`.
#[pyfunction]
#[pyo3(signature = (x, last, mixes, gout, gx, glast, gmixes, *, threads=1))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the Python function")]
pub fn mix_backward(
    py: Python<'_>,
    x: PyReadonlyArray3<'_, f32>,
    last: PyReadonlyArray2<'_, f32>,
    mixes: Vec<PyReadonlyArray1<'_, f32>>,
    gout: MixOutputGrads<'_>,
    mut gx: PyReadwriteArray3<'_, f32>,
    mut glast: PyReadwriteArray2<'_, f32>,
    mut gmixes: PyReadwriteArray2<'_, f32>,
    threads: usize,
) -> PyResult<()> {
    let dims = dims(&x);
    let (x, last, mixes) = (slice!(x), slice!(last), slice!(all mixes));
    let grads = MixGrads { x: slice!(mut gx), last: slice!(mut glast), mixes: slice!(mut gmixes) };
    match gout {
        MixOutputGrads::F32(gout) => {
            let gout = slice!(all gout);
            py.detach(|| ops::mix_backward(dims, x, last, &mixes, &gout, grads, threads))
        }
        MixOutputGrads::Bf16(gout) => {
            let gout = slice!(all gout);
            py.detach(|| ops::mix_backward(dims, x, last, &mixes, &gout, grads, threads))
        }
    }
    .map_err(refused)
}
