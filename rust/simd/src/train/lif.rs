//! Leaky integrate-and-fire neurons, forward and backward.

use super::{Item, Kernel, LANES, Lanes, SeqDims, Shared, load, run_items};

struct LifForward<'a> {
    dims: SeqDims,
    x: &'a [f32],
    membrane: Option<&'a [f32]>,
    spikes: Shared<'a>,
    membrane_out: Option<Shared<'a>>,
}

/// Charge, `h = v + (x - v) / 2`: a leak of tau = 2 towards the input.
#[inline(always)]
fn charge(v: f32, x: f32) -> f32 {
    v + (x - v) * 0.5
}

impl Kernel for LifForward<'_> {
    fn scratch(&self) -> usize {
        0
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, _: &mut [Lanes]) {
        let dims = self.dims;
        let mut v = self.membrane.map_or([0.0; LANES], |m| load(m, item.row_at(dims), item.width));
        for t in 0..dims.time {
            let at = item.at(t, dims);
            let x = load(self.x, at, item.width);
            let mut spikes = [0.0; LANES];
            for i in 0..LANES {
                let h = charge(v[i], x[i]);
                spikes[i] = if h >= 1.0 { 1.0 } else { 0.0 };
                v[i] = if h >= 1.0 { 0.0 } else { h };
            }
            self.spikes.store(at, &spikes, item.width);
        }
        if let Some(out) = &self.membrane_out {
            out.store(item.row_at(dims), &v, item.width);
        }
    }
}

struct LifBackward<'a> {
    dims: SeqDims,
    x: &'a [f32],
    membrane: Option<&'a [f32]>,
    gspikes: &'a [f32],
    gmembrane_out: Option<&'a [f32]>,
    gx: Shared<'a>,
    gmembrane: Option<Shared<'a>>,
}

impl Kernel for LifBackward<'_> {
    fn scratch(&self) -> usize {
        self.dims.time
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, scratch: &mut [Lanes]) {
        let dims = self.dims;
        let mut v = self.membrane.map_or([0.0; LANES], |m| load(m, item.row_at(dims), item.width));
        for (t, h) in scratch.iter_mut().enumerate() {
            let x = load(self.x, item.at(t, dims), item.width);
            for i in 0..LANES {
                h[i] = charge(v[i], x[i]);
                v[i] = if h[i] >= 1.0 { 0.0 } else { h[i] };
            }
        }
        let mut gv = self.gmembrane_out.map_or([0.0; LANES], |g| load(g, item.row_at(dims), item.width));
        for (t, h) in scratch.iter().enumerate().rev() {
            let at = item.at(t, dims);
            let g = load(self.gspikes, at, item.width);
            let mut gx = [0.0; LANES];
            for i in 0..LANES {
                let z = std::f32::consts::PI * (h[i] - 1.0);
                let surrogate = 1.0 / (1.0 + z * z);
                let kept = if h[i] >= 1.0 { 0.0 } else { 1.0 };
                // The reset v = h (1 - spike) is part of the graph: its spike has a gradient too.
                let gh = g[i] * surrogate + gv[i] * (kept - h[i] * surrogate);
                gx[i] = 0.5 * gh;
                gv[i] = 0.5 * gh;
            }
            self.gx.store(at, &gx, item.width);
        }
        if let Some(out) = &self.gmembrane {
            out.store(item.row_at(dims), &gv, item.width);
        }
    }
}

/// Leaky integrate-and-fire over time: `h = v + (x - v) / 2`, spike where `h >= 1`, then `v = 0`
/// there and `v = h` elsewhere (SpikeGPT: tau 2, threshold 1, hard reset to 0).
///
/// `x` and `spikes` are `[batch, time, channels]`; `membrane` and `membrane_out` are
/// `[batch, channels]`, and a missing `membrane` is zero.
pub fn lif_forward(
    dims: SeqDims,
    x: &[f32],
    membrane: Option<&[f32]>,
    spikes: &mut [f32],
    membrane_out: Option<&mut [f32]>,
    threads: usize,
) {
    assert!(x.len() == dims.len() && spikes.len() == dims.len(), "x, spikes shape");
    assert!(membrane.is_none_or(|m| m.len() == dims.rows()), "membrane shape");
    assert!(membrane_out.as_ref().is_none_or(|m| m.len() == dims.rows()), "membrane_out shape");
    let kernel =
        LifForward { dims, x, membrane, spikes: Shared::new(spikes), membrane_out: membrane_out.map(Shared::new) };
    run_items(&kernel, threads);
}

/// Gradients of the spikes' and the final membrane's loss.
#[derive(Clone, Copy, Debug)]
pub struct LifOutputGrads<'a> {
    /// `[batch, time, channels]`.
    pub spikes: &'a [f32],
    /// `[batch, channels]`; `None` is zero.
    pub membrane_out: Option<&'a [f32]>,
}

/// Gradients of [`lif_forward`], with the ATan surrogate of alpha 2, `1 / (1 + (pi z)^2)`, in place
/// of the step's derivative, and through the reset.
///
/// `gx` is `[batch, time, channels]`, `gmembrane` `[batch, channels]`.
pub fn lif_backward(
    dims: SeqDims,
    x: &[f32],
    membrane: Option<&[f32]>,
    grads: LifOutputGrads<'_>,
    gx: &mut [f32],
    gmembrane: Option<&mut [f32]>,
    threads: usize,
) {
    assert!(x.len() == dims.len() && gx.len() == dims.len(), "x, gx shape");
    assert_eq!(grads.spikes.len(), dims.len(), "gspikes is [batch, time, channels]");
    assert!(membrane.is_none_or(|m| m.len() == dims.rows()), "membrane shape");
    assert!(grads.membrane_out.is_none_or(|m| m.len() == dims.rows()), "gmembrane_out shape");
    assert!(gmembrane.as_ref().is_none_or(|m| m.len() == dims.rows()), "gmembrane shape");
    let kernel = LifBackward {
        dims,
        x,
        membrane,
        gspikes: grads.spikes,
        gmembrane_out: grads.membrane_out,
        gx: Shared::new(gx),
        gmembrane: gmembrane.map(Shared::new),
    };
    run_items(&kernel, threads);
}
