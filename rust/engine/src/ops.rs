//! Fused operators for training: shape-checked fronts of the kernels in `spikelet_simd::train`.
//!
//! They work on contiguous row-major f32 slices and know nothing of autograd: a framework calls
//! the forward, keeps the inputs, and calls the backward with the output's gradient.

use spikelet_simd::train::{self, Run};
pub use spikelet_simd::train::{
    Bf16Bits, Element, LifGrads, LifInputs, LifOutputGrads, MixGrads, SeqDims, Surrogate, WKV_EMPTY_EXPONENT, WkvGrads,
    WkvInputs,
};
use spikelet_simd::{IsaError, Level};

/// Why an operator refused its arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// A slice has another number of elements than its shape says.
    #[error("{op}: {argument} has {found} elements, shape {shape} needs {needed}")]
    Length {
        /// Operator, e.g. `wkv4_forward`.
        op: &'static str,
        /// Argument, e.g. `k`.
        argument: &'static str,
        /// The shape in words, e.g. `[batch, time, channels]`.
        shape: &'static str,
        /// Elements given.
        found: usize,
        /// Elements that the sizes of the pass ask for.
        needed: usize,
    },
    /// More mixes than a block has, or not one output per mix.
    #[error("{op}: {mixes} mixes for {outputs} outputs; needed are 1 to 3 of both, equally many")]
    Mixes {
        /// Operator.
        op: &'static str,
        /// Mix vectors given.
        mixes: usize,
        /// Outputs, or gradients of outputs, given.
        outputs: usize,
    },
    /// The environment asks for an instruction set that cannot be used.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A size of zero, or sizes whose product does not fit the address space.
    #[error("{op}: no tensor can be [{batch}, {time}, {channels}]; each size must be at least 1")]
    Dims {
        /// Operator.
        op: &'static str,
        /// Rows asked for.
        batch: usize,
        /// Tokens asked for.
        time: usize,
        /// Channels asked for.
        channels: usize,
    },
}

/// `threads` threads (at least the calling one) with the instruction set that the engine uses.
fn how(threads: usize) -> Result<Run, OpError> {
    Ok(Run { level: Level::detect()?, threads: threads.max(1) })
}

/// Names an argument's shape and knows how many elements it has.
#[derive(Clone, Copy)]
enum Shape {
    Channels,
    Rows,
    State,
    Full,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Channels => "[channels]",
            Self::Rows => "[batch, channels]",
            Self::State => "[batch, 3, channels]",
            Self::Full => "[batch, time, channels]",
        }
    }

    fn elements(self, dims: SeqDims) -> usize {
        match self {
            Self::Channels => dims.channels,
            Self::Rows => dims.batch * dims.channels,
            Self::State => 3 * dims.batch * dims.channels,
            Self::Full => dims.len(),
        }
    }
}

/// Checks the arguments of one call.
struct Checker {
    op: &'static str,
    dims: SeqDims,
}

impl Checker {
    fn new(op: &'static str, dims: SeqDims) -> Result<Self, OpError> {
        let SeqDims { batch, time, channels } = dims;
        // Backward scratch and states stay below four times the tensor: keep that addressable too.
        let fits = batch
            .checked_mul(channels)
            .and_then(|rows| rows.checked_mul(time.max(3)))
            .is_some_and(|n| n <= isize::MAX as usize / 16);
        if batch == 0 || time == 0 || channels == 0 || !fits {
            return Err(OpError::Dims { op, batch, time, channels });
        }
        Ok(Self { op, dims })
    }

    fn length(&self, argument: &'static str, shape: Shape, found: usize) -> Result<(), OpError> {
        let needed = shape.elements(self.dims);
        if found == needed {
            return Ok(());
        }
        Err(OpError::Length { op: self.op, argument, shape: shape.name(), found, needed })
    }

    fn optional(&self, argument: &'static str, shape: Shape, found: Option<usize>) -> Result<(), OpError> {
        found.map_or(Ok(()), |n| self.length(argument, shape, n))
    }

    fn mix_inputs(&self, x: &[f32], last: &[f32], mixes: &[&[f32]], outputs: usize) -> Result<(), OpError> {
        if !(1..=3).contains(&mixes.len()) || mixes.len() != outputs {
            return Err(OpError::Mixes { op: self.op, mixes: mixes.len(), outputs });
        }
        self.length("x", Shape::Full, x.len())?;
        self.length("last", Shape::Rows, last.len())?;
        mixes.iter().try_for_each(|mix| self.length("mixes", Shape::Channels, mix.len()))
    }

    fn lif_inputs(&self, inputs: &LifInputs<'_>) -> Result<(), OpError> {
        self.length("x", Shape::Full, inputs.x.len())?;
        self.optional("membrane", Shape::Rows, inputs.membrane.map(<[f32]>::len))?;
        self.optional("decay", Shape::Channels, inputs.decay.map(<[f32]>::len))
    }

    fn wkv_inputs(&self, inputs: &WkvInputs<'_>) -> Result<(), OpError> {
        self.length("w", Shape::Channels, inputs.w.len())?;
        self.length("u", Shape::Channels, inputs.u.len())?;
        self.length("k", Shape::Full, inputs.k.len())?;
        self.length("v", Shape::Full, inputs.v.len())?;
        self.optional("state", Shape::State, inputs.state.map(<[f32]>::len))
    }
}

/// WKV-4 over whole sequences; see [`spikelet_simd::train::wkv4_forward`] for the meaning.
///
/// ```
/// use spikelet::ops::{self, SeqDims, WkvInputs};
///
/// let dims = SeqDims { batch: 1, time: 2, channels: 1 };
/// let inputs = WkvInputs { w: &[-0.5], u: &[0.0], k: &[0.0, 0.0], v: &[1.0, 3.0], state: None };
/// let mut y = [0.0; 2];
/// ops::wkv4_forward(dims, inputs, &mut y, None, 1)?;
/// assert_eq!(y, [1.0, 2.0]); // the mean of both values: equal keys, decay counts from the second
/// # Ok::<(), ops::OpError>(())
/// ```
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length.
pub fn wkv4_forward(
    dims: SeqDims,
    inputs: WkvInputs<'_>,
    y: &mut [f32],
    state_out: Option<&mut [f32]>,
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("wkv4_forward", dims)?;
    check.wkv_inputs(&inputs)?;
    check.length("y", Shape::Full, y.len())?;
    check.optional("state_out", Shape::State, state_out.as_ref().map(|s| s.len()))?;
    train::wkv4_forward(dims, inputs, y, state_out, how(threads)?);
    Ok(())
}

/// Gradients of [`wkv4_forward`]; see [`spikelet_simd::train::wkv4_backward`].
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length.
pub fn wkv4_backward(
    dims: SeqDims,
    inputs: WkvInputs<'_>,
    gy: &[f32],
    gstate_out: Option<&[f32]>,
    grads: WkvGrads<'_>,
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("wkv4_backward", dims)?;
    check.wkv_inputs(&inputs)?;
    check.length("gy", Shape::Full, gy.len())?;
    check.optional("gstate_out", Shape::State, gstate_out.map(<[f32]>::len))?;
    check.length("gw", Shape::Channels, grads.w.len())?;
    check.length("gu", Shape::Channels, grads.u.len())?;
    check.length("gk", Shape::Full, grads.k.len())?;
    check.length("gv", Shape::Full, grads.v.len())?;
    check.optional("gstate", Shape::State, grads.state.as_ref().map(|s| s.len()))?;
    train::wkv4_backward(dims, inputs, gy, gstate_out, grads, how(threads)?);
    Ok(())
}

/// `1 / (1 + exp(-x))` with the engine's arithmetic: what a learned decay is made with, in training as in generation.
///
/// # Errors
/// [`OpError`] when `y` has not the length of `x`.
pub fn sigmoid(x: &[f32], y: &mut [f32]) -> Result<(), OpError> {
    if x.len() != y.len() {
        let (found, needed) = (y.len(), x.len());
        return Err(OpError::Length { op: "sigmoid", argument: "y", shape: "of x", found, needed });
    }
    for (y, &x) in y.iter_mut().zip(x) {
        *y = spikelet_simd::sigmoidf(x);
    }
    Ok(())
}

/// Leaky integrate-and-fire over time; see [`spikelet_simd::train::lif_forward`].
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length.
pub fn lif_forward(
    dims: SeqDims,
    inputs: LifInputs<'_>,
    spikes: &mut [f32],
    membrane_out: Option<&mut [f32]>,
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("lif_forward", dims)?;
    check.lif_inputs(&inputs)?;
    check.length("spikes", Shape::Full, spikes.len())?;
    check.optional("membrane_out", Shape::Rows, membrane_out.as_ref().map(|m| m.len()))?;
    train::lif_forward(dims, inputs, spikes, membrane_out, how(threads)?);
    Ok(())
}

/// Gradients of [`lif_forward`]; see [`spikelet_simd::train::lif_backward`].
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length.
pub fn lif_backward(
    dims: SeqDims,
    inputs: LifInputs<'_>,
    surrogate: Surrogate,
    outputs: LifOutputGrads<'_>,
    grads: LifGrads<'_>,
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("lif_backward", dims)?;
    check.lif_inputs(&inputs)?;
    check.length("gspikes", Shape::Full, outputs.spikes.len())?;
    check.optional("gmembrane_out", Shape::Rows, outputs.membrane_out.map(<[f32]>::len))?;
    check.length("gx", Shape::Full, grads.x.len())?;
    check.optional("gmembrane", Shape::Rows, grads.membrane.as_ref().map(|m| m.len()))?;
    check.optional("gdecay", Shape::Channels, grads.decay.as_ref().map(|k| k.len()))?;
    train::lif_backward(dims, inputs, surrogate, outputs, grads, how(threads)?);
    Ok(())
}

/// Token shift and mix; see [`spikelet_simd::train::mix_forward`]. `T` is f32, or [`Bf16Bits`] where
/// a bfloat16 matrix product follows.
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length, or for more than three mixes.
pub fn mix_forward<T: Element>(
    dims: SeqDims,
    x: &[f32],
    last: &[f32],
    mixes: &[&[f32]],
    out: &mut [&mut [T]],
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("mix_forward", dims)?;
    check.mix_inputs(x, last, mixes, out.len())?;
    out.iter().try_for_each(|o| check.length("out", Shape::Full, o.len()))?;
    train::mix_forward(dims, x, last, mixes, out, how(threads)?);
    Ok(())
}

/// Gradients of [`mix_forward`]; see [`spikelet_simd::train::mix_backward`].
///
/// # Errors
/// [`OpError`] when a slice does not have its shape's length, or for more than three mixes.
pub fn mix_backward<T: Element>(
    dims: SeqDims,
    x: &[f32],
    last: &[f32],
    mixes: &[&[f32]],
    gout: &[&[T]],
    grads: MixGrads<'_>,
    threads: usize,
) -> Result<(), OpError> {
    let check = Checker::new("mix_backward", dims)?;
    check.mix_inputs(x, last, mixes, gout.len())?;
    gout.iter().try_for_each(|g| check.length("gout", Shape::Full, g.len()))?;
    check.length("gx", Shape::Full, grads.x.len())?;
    check.length("glast", Shape::Rows, grads.last.len())?;
    let needed = mixes.len() * dims.channels;
    if grads.mixes.len() != needed {
        return Err(OpError::Length {
            op: check.op,
            argument: "gmixes",
            shape: "[mixes, channels]",
            found: grads.mixes.len(),
            needed,
        });
    }
    train::mix_backward(dims, x, last, mixes, gout, grads, how(threads)?);
    Ok(())
}
