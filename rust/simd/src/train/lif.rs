//! Leaky integrate-and-fire neurons, forward and backward.

use super::{Item, Kernel, Lanes, Run, SeqDims, load, run_items, store};
use crate::Isa;
use crate::shared::SharedMut;

/// Charge, `h = v + (x - v) / 2`: a leak of tau = 2 towards the input.
#[inline(always)]
fn charge<I: Isa>(isa: I, v: I::V, x: I::V) -> I::V {
    isa.add(v, isa.mul(isa.sub(x, v), isa.splat(0.5)))
}

/// What is left after a spike: nothing.
#[inline(always)]
fn reset<I: Isa>(isa: I, h: I::V) -> I::V {
    isa.select_ge(h, isa.splat(1.0), isa.splat(0.0), h)
}

#[inline(always)]
fn start<I: Isa>(isa: I, membrane: Option<&[f32]>, item: Item) -> I::V {
    membrane.map_or(isa.splat(0.0), |m| load(isa, &m[item.membrane()]))
}

struct Forward<'a> {
    dims: SeqDims,
    x: &'a [f32],
    membrane: Option<&'a [f32]>,
    spikes: SharedMut<'a, f32>,
    membrane_out: Option<SharedMut<'a, f32>>,
}

impl Kernel for Forward<'_> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    fn scratch(&self) -> usize {
        0
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, _: &mut [Lanes]) {
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        let mut v = start(isa, self.membrane, item);
        for t in 0..self.dims.time {
            let h = charge(isa, v, load(isa, &self.x[item.token(t)]));
            store(isa, &self.spikes, item.token(t), isa.select_ge(h, one, one, zero));
            v = reset(isa, h);
        }
        if let Some(out) = &self.membrane_out {
            store(isa, out, item.membrane(), v);
        }
    }
}

struct Backward<'a> {
    dims: SeqDims,
    x: &'a [f32],
    membrane: Option<&'a [f32]>,
    grads: LifOutputGrads<'a>,
    gx: SharedMut<'a, f32>,
    gmembrane: Option<SharedMut<'a, f32>>,
}

impl Kernel for Backward<'_> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    /// `h` of every token.
    fn scratch(&self) -> usize {
        self.dims.time
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, scratch: &mut [Lanes]) {
        let (zero, half, one) = (isa.splat(0.0), isa.splat(0.5), isa.splat(1.0));
        let mut v = start(isa, self.membrane, item);
        for (t, kept) in scratch.iter_mut().enumerate() {
            let h = charge(isa, v, load(isa, &self.x[item.token(t)]));
            isa.store(h, kept);
            v = reset(isa, h);
        }
        let mut gv = start(isa, self.grads.membrane_out, item);
        for (t, kept) in scratch.iter().enumerate().rev() {
            let h = isa.load(kept);
            let z = isa.mul(isa.splat(std::f32::consts::PI), isa.sub(h, one));
            let surrogate = isa.div(one, isa.fma(z, z, one));
            // The reset v = h (1 - spike) is part of the graph: its spike has a gradient too.
            let kept = isa.sub(isa.select_ge(h, one, zero, one), isa.mul(h, surrogate));
            let g = load(isa, &self.grads.spikes[item.token(t)]);
            let gh = isa.fma(g, surrogate, isa.mul(gv, kept));
            gv = isa.mul(half, gh);
            store(isa, &self.gx, item.token(t), gv);
        }
        if let Some(out) = &self.gmembrane {
            store(isa, out, item.membrane(), gv);
        }
    }
}

/// Leaky integrate-and-fire over time: `h = v + (x - v) / 2`, a spike where `h >= 1`, then `v = 0` there and `v = h`
/// elsewhere (SpikeGPT: tau 2, threshold 1, hard reset to 0).
///
/// `x` and `spikes` are `[batch, time, channels]`; `membrane` and `membrane_out` are `[batch, channels]`, and a missing
/// `membrane` is zero.
pub fn lif_forward(
    dims: SeqDims,
    x: &[f32],
    membrane: Option<&[f32]>,
    spikes: &mut [f32],
    membrane_out: Option<&mut [f32]>,
    how: Run,
) {
    assert!(x.len() == dims.len() && spikes.len() == dims.len(), "x, spikes shape");
    assert!(membrane.is_none_or(|m| m.len() == dims.rows()), "membrane shape");
    assert!(membrane_out.as_ref().is_none_or(|m| m.len() == dims.rows()), "membrane_out shape");
    let (spikes, membrane_out) = (SharedMut::new(spikes), membrane_out.map(SharedMut::new));
    run_items(&Forward { dims, x, membrane, spikes, membrane_out }, how);
}

/// Gradients of a loss with respect to what [`lif_forward`] gave.
#[derive(Clone, Copy, Debug)]
pub struct LifOutputGrads<'a> {
    /// `[batch, time, channels]`.
    pub spikes: &'a [f32],
    /// `[batch, channels]`; `None` is zero.
    pub membrane_out: Option<&'a [f32]>,
}

/// Gradients of [`lif_forward`], with the ATan surrogate of alpha 2, `1 / (1 + (pi z)^2)`, in place of the step's
/// derivative, and through the reset.
///
/// `gx` is `[batch, time, channels]`, `gmembrane` `[batch, channels]`.
pub fn lif_backward(
    dims: SeqDims,
    x: &[f32],
    membrane: Option<&[f32]>,
    grads: LifOutputGrads<'_>,
    gx: &mut [f32],
    gmembrane: Option<&mut [f32]>,
    how: Run,
) {
    assert!(x.len() == dims.len() && gx.len() == dims.len(), "x, gx shape");
    assert_eq!(grads.spikes.len(), dims.len(), "gspikes is [batch, time, channels]");
    assert!(membrane.is_none_or(|m| m.len() == dims.rows()), "membrane shape");
    assert!(grads.membrane_out.is_none_or(|m| m.len() == dims.rows()), "gmembrane_out shape");
    assert!(gmembrane.as_ref().is_none_or(|m| m.len() == dims.rows()), "gmembrane shape");
    let (gx, gmembrane) = (SharedMut::new(gx), gmembrane.map(SharedMut::new));
    run_items(&Backward { dims, x, membrane, grads, gx, gmembrane }, how);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SIZES, numbers, same_bits_everywhere};
    use super::*;
    use crate::{Cpu, Level};

    #[test]
    fn forward_has_the_bits_of_generation() {
        for dims in SIZES {
            let x: Vec<f32> = numbers(1, dims.len()).iter().map(|x| 4.0 * x).collect();
            let mut state = numbers(2, dims.rows());
            let found = same_bits_everywhere(|how| {
                let mut spikes = vec![f32::NAN; dims.len()];
                let mut membrane = vec![f32::NAN; dims.rows()];
                lif_forward(dims, &x, Some(&state), &mut spikes, Some(&mut membrane), how);
                vec![spikes, membrane]
            });
            let mut y = vec![f32::NAN; dims.len()];
            let lens = vec![dims.time; dims.batch];
            Cpu::new(Level::best(), 1).lif(&lens, dims.channels, &x, &mut state, None, &mut y);
            assert_eq!(found, [y, state]);
        }
    }

    /// The recurrence of the gradient, token by token in f64, for one channel.
    fn naive_gradient(x: &[f64], v: f64, gspikes: &[f64], gv: f64) -> (Vec<f64>, f64) {
        let Some((&first, rest)) = x.split_first() else { return (Vec::new(), gv) };
        let h = v + (first - v) / 2.0;
        let spike = f64::from(u8::from(h >= 1.0));
        let (mut gx, gv) = naive_gradient(rest, h * (1.0 - spike), &gspikes[1..], gv);
        let slope = 1.0 / (1.0 + (std::f64::consts::PI * (h - 1.0)).powi(2));
        let gh = gspikes[0] * slope + gv * (1.0 - spike - h * slope);
        gx.insert(0, gh / 2.0);
        (gx, gh / 2.0)
    }

    #[test]
    fn backward_follows_its_formula_through_the_reset() {
        for dims in SIZES {
            let x: Vec<f32> = numbers(1, dims.len()).iter().map(|x| 4.0 * x).collect();
            let (membrane, gspikes, gend) = (numbers(2, dims.rows()), numbers(3, dims.len()), numbers(4, dims.rows()));
            let found = same_bits_everywhere(|how| {
                let mut gx = vec![f32::NAN; dims.len()];
                let mut gmembrane = vec![f32::NAN; dims.rows()];
                let grads = LifOutputGrads { spikes: &gspikes, membrane_out: Some(&gend) };
                lif_backward(dims, &x, Some(&membrane), grads, &mut gx, Some(&mut gmembrane), how);
                vec![gx, gmembrane]
            });
            let column = |data: &[f32], row: usize, channel: usize| -> Vec<f64> {
                let start = row * dims.time * dims.channels + channel;
                (0..dims.time).map(|t| f64::from(data[start + t * dims.channels])).collect()
            };
            for row in 0..dims.batch {
                for channel in 0..dims.channels {
                    let at = row * dims.channels + channel;
                    let (gx, gmembrane) = naive_gradient(
                        &column(&x, row, channel),
                        f64::from(membrane[at]),
                        &column(&gspikes, row, channel),
                        f64::from(gend[at]),
                    );
                    for (found, expected) in column(&found[0], row, channel).iter().zip(&gx) {
                        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
                    }
                    assert!((f64::from(found[1][at]) - gmembrane).abs() < 1e-5);
                }
            }
        }
    }
}
