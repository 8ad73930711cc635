//! Leaky integrate-and-fire neurons, forward and backward.

use super::{Item, Kernel, Lanes, Run, SeqDims, load, run_items, store, sum_rows};
use crate::Isa;
use crate::shared::SharedMut;
use crate::vecops::sigmoid;

/// What takes the place of the step's derivative in the backward pass, at `z = h - 1`, with its steepness.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// `alpha / 2 / (1 + (pi / 2 alpha z)^2)` (Fang et al. 2021); SpikeGPT: alpha 2.
    Atan(f32),
    /// `alpha s (1 - s)` with `s = sigmoid(alpha z)`; usual: alpha 4.
    Sigmoid(f32),
    /// `1 / (1 + alpha |z|)^2` (Zenke and Ganguli 2018); usual: alpha 25.
    FastSigmoid(f32),
}

impl Default for Surrogate {
    fn default() -> Self {
        Surrogate::Atan(2.0)
    }
}

/// A surrogate with its constants at hand. `at` must be `#[inline(always)]`.
trait Slope: Copy + Sync {
    fn at<I: Isa>(self, isa: I, z: I::V) -> I::V;
}

#[derive(Clone, Copy)]
struct Atan {
    height: f32,
    scale: f32,
}

impl Slope for Atan {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, z: I::V) -> I::V {
        let z = isa.mul(isa.splat(self.scale), z);
        isa.div(isa.splat(self.height), isa.fma(z, z, isa.splat(1.0)))
    }
}

#[derive(Clone, Copy)]
struct Sigmoid(f32);

impl Slope for Sigmoid {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, z: I::V) -> I::V {
        let alpha = isa.splat(self.0);
        let s = sigmoid(isa, isa.mul(alpha, z));
        isa.mul(isa.mul(alpha, s), isa.sub(isa.splat(1.0), s))
    }
}

#[derive(Clone, Copy)]
struct FastSigmoid(f32);

impl Slope for FastSigmoid {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, z: I::V) -> I::V {
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        let size = isa.max(z, isa.sub(zero, z));
        let root = isa.fma(isa.splat(self.0), size, one);
        isa.div(one, isa.mul(root, root))
    }
}

/// Charge, `h = v + (x - v) k`: a leak towards the input.
#[inline(always)]
fn charge<I: Isa>(isa: I, v: I::V, x: I::V, k: I::V) -> I::V {
    isa.add(v, isa.mul(isa.sub(x, v), k))
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

/// What goes into the neurons.
#[derive(Clone, Copy, Debug)]
pub struct LifInputs<'a> {
    /// `[batch, time, channels]`.
    pub x: &'a [f32],
    /// `[batch, channels]` before the first token; `None` is zero.
    pub membrane: Option<&'a [f32]>,
    /// `[channels]`: k of `h = v + (x - v) k`; `None` is one half, a time constant of 2 tokens.
    pub decay: Option<&'a [f32]>,
}

impl LifInputs<'_> {
    #[inline(always)]
    fn decay<I: Isa>(&self, isa: I, item: Item) -> I::V {
        self.decay.map_or(isa.splat(0.5), |k| load(isa, &k[item.channels()]))
    }

    fn check(&self, dims: SeqDims) {
        assert_eq!(self.x.len(), dims.len(), "x is [batch, time, channels]");
        assert!(self.membrane.is_none_or(|m| m.len() == dims.rows()), "membrane shape");
        assert!(self.decay.is_none_or(|k| k.len() == dims.channels), "decay shape");
    }
}

struct Forward<'a> {
    dims: SeqDims,
    inputs: LifInputs<'a>,
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
        let k = self.inputs.decay(isa, item);
        let mut v = start(isa, self.inputs.membrane, item);
        for t in 0..self.dims.time {
            let h = charge(isa, v, load(isa, &self.inputs.x[item.token(t)]), k);
            store(isa, &self.spikes, item.token(t), isa.select_ge(h, one, one, zero));
            v = reset(isa, h);
        }
        if let Some(out) = &self.membrane_out {
            store(isa, out, item.membrane(), v);
        }
    }
}

struct Backward<'a, S> {
    dims: SeqDims,
    inputs: LifInputs<'a>,
    slope: S,
    outputs: LifOutputGrads<'a>,
    gx: SharedMut<'a, f32>,
    gmembrane: Option<SharedMut<'a, f32>>,
    /// `[batch, channels]`, summed over the batch afterwards.
    gdecay: Option<SharedMut<'a, f32>>,
}

impl<S: Slope> Kernel for Backward<'_, S> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    /// `h` of every token.
    fn scratch(&self) -> usize {
        self.dims.time
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, scratch: &mut [Lanes]) {
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        let k = self.inputs.decay(isa, item);
        let leak = isa.sub(one, k);
        let first = start(isa, self.inputs.membrane, item);
        let mut v = first;
        for (t, kept) in scratch.iter_mut().enumerate() {
            let h = charge(isa, v, load(isa, &self.inputs.x[item.token(t)]), k);
            isa.store(h, kept);
            v = reset(isa, h);
        }
        let mut gv = start(isa, self.outputs.membrane_out, item);
        let mut gdecay = zero;
        for t in (0..scratch.len()).rev() {
            let h = isa.load(&scratch[t]);
            let surrogate = self.slope.at(isa, isa.sub(h, one));
            // The reset v = h (1 - spike) is part of the graph: its spike has a gradient too.
            let kept = isa.sub(isa.select_ge(h, one, zero, one), isa.mul(h, surrogate));
            let g = load(isa, &self.outputs.spikes[item.token(t)]);
            let gh = isa.fma(g, surrogate, isa.mul(gv, kept));
            gv = isa.mul(leak, gh);
            store(isa, &self.gx, item.token(t), isa.mul(k, gh));
            if self.gdecay.is_some() {
                let v = if t == 0 { first } else { reset(isa, isa.load(&scratch[t - 1])) };
                gdecay = isa.fma(gh, isa.sub(load(isa, &self.inputs.x[item.token(t)]), v), gdecay);
            }
        }
        if let Some(out) = &self.gmembrane {
            store(isa, out, item.membrane(), gv);
        }
        if let Some(out) = &self.gdecay {
            store(isa, out, item.membrane(), gdecay);
        }
    }
}

/// Leaky integrate-and-fire over time: `h = v + (x - v) k`, a spike where `h >= 1`, then `v = 0` there and `v = h`
/// elsewhere (SpikeGPT: k one half, threshold 1, hard reset to 0).
///
/// `spikes` is `[batch, time, channels]`, `membrane_out` `[batch, channels]`.
pub fn lif_forward(
    dims: SeqDims,
    inputs: LifInputs<'_>,
    spikes: &mut [f32],
    membrane_out: Option<&mut [f32]>,
    how: Run,
) {
    inputs.check(dims);
    assert_eq!(spikes.len(), dims.len(), "spikes is [batch, time, channels]");
    assert!(membrane_out.as_ref().is_none_or(|m| m.len() == dims.rows()), "membrane_out shape");
    let (spikes, membrane_out) = (SharedMut::new(spikes), membrane_out.map(SharedMut::new));
    run_items(&Forward { dims, inputs, spikes, membrane_out }, how);
}

/// Gradients of a loss with respect to what [`lif_forward`] gave.
#[derive(Clone, Copy, Debug)]
pub struct LifOutputGrads<'a> {
    /// `[batch, time, channels]`.
    pub spikes: &'a [f32],
    /// `[batch, channels]`; `None` is zero.
    pub membrane_out: Option<&'a [f32]>,
}

/// Where the gradients of [`lif_forward`] go.
#[derive(Debug)]
pub struct LifGrads<'a> {
    /// `[batch, time, channels]`.
    pub x: &'a mut [f32],
    /// `[batch, channels]`.
    pub membrane: Option<&'a mut [f32]>,
    /// `[channels]`.
    pub decay: Option<&'a mut [f32]>,
}

/// Gradients of [`lif_forward`], with the surrogate in place of the step's derivative, and through the reset.
pub fn lif_backward(
    dims: SeqDims,
    inputs: LifInputs<'_>,
    surrogate: Surrogate,
    outputs: LifOutputGrads<'_>,
    grads: LifGrads<'_>,
    how: Run,
) {
    let LifGrads { x: gx, membrane: gmembrane, decay } = grads;
    inputs.check(dims);
    assert_eq!(outputs.spikes.len(), dims.len(), "gspikes is [batch, time, channels]");
    assert!(outputs.membrane_out.is_none_or(|m| m.len() == dims.rows()), "gmembrane_out shape");
    assert_eq!(gx.len(), dims.len(), "gx is [batch, time, channels]");
    assert!(gmembrane.as_ref().is_none_or(|m| m.len() == dims.rows()), "gmembrane shape");
    assert!(decay.as_ref().is_none_or(|k| k.len() == dims.channels), "gdecay shape");
    let mut partial = vec![0.0; if decay.is_some() { dims.rows() } else { 0 }];
    let (gx, gmembrane) = (SharedMut::new(gx), gmembrane.map(SharedMut::new));
    let gdecay = decay.is_some().then(|| SharedMut::new(&mut partial));
    match surrogate {
        Surrogate::Atan(alpha) => {
            let slope = Atan { height: alpha / 2.0, scale: std::f32::consts::FRAC_PI_2 * alpha };
            run_items(&Backward { dims, inputs, slope, outputs, gx, gmembrane, gdecay }, how);
        }
        Surrogate::Sigmoid(alpha) => {
            let slope = Sigmoid(alpha);
            run_items(&Backward { dims, inputs, slope, outputs, gx, gmembrane, gdecay }, how);
        }
        Surrogate::FastSigmoid(alpha) => {
            let slope = FastSigmoid(alpha);
            run_items(&Backward { dims, inputs, slope, outputs, gx, gmembrane, gdecay }, how);
        }
    }
    if let Some(decay) = decay {
        sum_rows(&partial, decay);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SIZES, numbers, same_bits_everywhere};
    use super::*;
    use crate::{Cpu, Level};

    const SURROGATES: [Surrogate; 4] =
        [Surrogate::Atan(2.0), Surrogate::Atan(3.0), Surrogate::Sigmoid(4.0), Surrogate::FastSigmoid(25.0)];

    /// Inputs that make neurons fire, and decays between 0.05 and 0.95.
    fn inputs(dims: SeqDims) -> [Vec<f32>; 3] {
        let x = numbers(1, dims.len()).iter().map(|x| 4.0 * x).collect();
        let decay = numbers(5, dims.channels).iter().map(|k| 0.5 + 0.45 * k).collect();
        [x, numbers(2, dims.rows()), decay]
    }

    #[test]
    fn forward_has_the_bits_of_generation() {
        for dims in SIZES {
            let [x, start, k] = inputs(dims);
            for decay in [None, Some(&k[..])] {
                let found = same_bits_everywhere(|how| {
                    let mut spikes = vec![f32::NAN; dims.len()];
                    let mut membrane = vec![f32::NAN; dims.rows()];
                    let inputs = LifInputs { x: &x, membrane: Some(&start), decay };
                    lif_forward(dims, inputs, &mut spikes, Some(&mut membrane), how);
                    vec![spikes, membrane]
                });
                let (mut y, mut state) = (vec![f32::NAN; dims.len()], start.clone());
                let lens = vec![dims.time; dims.batch];
                let cpu = Cpu::new(Level::best(), 1);
                cpu.lif(&lens, dims.channels, decay, &x, &mut state, None, &mut y);
                assert_eq!(found, [y, state]);
            }
        }
    }

    fn naive_slope(surrogate: Surrogate, z: f64) -> f64 {
        match surrogate {
            Surrogate::Atan(alpha) => {
                let alpha = f64::from(alpha);
                alpha / 2.0 / (1.0 + (std::f64::consts::FRAC_PI_2 * alpha * z).powi(2))
            }
            Surrogate::Sigmoid(alpha) => {
                let s = 1.0 / (1.0 + (-f64::from(alpha) * z).exp());
                f64::from(alpha) * s * (1.0 - s)
            }
            Surrogate::FastSigmoid(alpha) => 1.0 / (1.0 + f64::from(alpha) * z.abs()).powi(2),
        }
    }

    /// One neuron with its surrogate.
    #[derive(Clone, Copy)]
    struct Neuron {
        k: f64,
        surrogate: Surrogate,
    }

    /// The recurrence of the gradient, token by token in f64, for one channel: of x, of the first membrane, of k.
    fn naive_gradient(n: Neuron, x: &[f64], v: f64, gspikes: &[f64], gv: f64) -> (Vec<f64>, f64, f64) {
        let Some((&first, rest)) = x.split_first() else { return (Vec::new(), gv, 0.0) };
        let h = v + (first - v) * n.k;
        let spike = f64::from(u8::from(h >= 1.0));
        let (mut gx, gv, gk) = naive_gradient(n, rest, h * (1.0 - spike), &gspikes[1..], gv);
        let slope = naive_slope(n.surrogate, h - 1.0);
        let gh = gspikes[0] * slope + gv * (1.0 - spike - h * slope);
        gx.insert(0, n.k * gh);
        (gx, (1.0 - n.k) * gh, gk + gh * (first - v))
    }

    fn check_gradient(dims: SeqDims, surrogate: Surrogate, decay: Option<&[f32]>) {
        let [x, membrane, _] = inputs(dims);
        let (gspikes, gend) = (numbers(3, dims.len()), numbers(4, dims.rows()));
        let found = same_bits_everywhere(|how| {
            let mut gx = vec![f32::NAN; dims.len()];
            let mut gmembrane = vec![f32::NAN; dims.rows()];
            let mut gdecay = vec![f32::NAN; dims.channels];
            let inputs = LifInputs { x: &x, membrane: Some(&membrane), decay };
            let outputs = LifOutputGrads { spikes: &gspikes, membrane_out: Some(&gend) };
            let grads = LifGrads { x: &mut gx, membrane: Some(&mut gmembrane), decay: Some(&mut gdecay) };
            lif_backward(dims, inputs, surrogate, outputs, grads, how);
            vec![gx, gmembrane, gdecay]
        });
        let column = |data: &[f32], row: usize, channel: usize| -> Vec<f64> {
            let start = row * dims.time * dims.channels + channel;
            (0..dims.time).map(|t| f64::from(data[start + t * dims.channels])).collect()
        };
        for channel in 0..dims.channels {
            let neuron = Neuron { k: decay.map_or(0.5, |k| f64::from(k[channel])), surrogate };
            let mut gdecay = 0.0;
            for row in 0..dims.batch {
                let at = row * dims.channels + channel;
                let (gx, gmembrane, gk) = naive_gradient(
                    neuron,
                    &column(&x, row, channel),
                    f64::from(membrane[at]),
                    &column(&gspikes, row, channel),
                    f64::from(gend[at]),
                );
                for (found, expected) in column(&found[0], row, channel).iter().zip(&gx) {
                    assert!((found - expected).abs() < 2e-5, "{found} {expected}");
                }
                assert!((f64::from(found[1][at]) - gmembrane).abs() < 2e-5);
                gdecay += gk;
            }
            let found = f64::from(found[2][channel]);
            assert!((found - gdecay).abs() < 1e-4 * gdecay.abs().max(1.0), "{found} {gdecay}");
        }
    }

    #[test]
    fn backward_follows_its_formula_through_the_reset() {
        for dims in SIZES {
            let [.., k] = inputs(dims);
            for surrogate in SURROGATES {
                check_gradient(dims, surrogate, Some(&k));
            }
            check_gradient(dims, Surrogate::default(), None);
        }
    }

    #[test]
    fn a_decay_of_one_half_has_the_bits_of_no_decay() {
        for dims in SIZES {
            let [x, membrane, _] = inputs(dims);
            let gspikes = numbers(3, dims.len());
            let half = vec![0.5; dims.channels];
            let gradients = |decay| {
                same_bits_everywhere(|how| {
                    let (mut gx, mut gmembrane) = (vec![f32::NAN; dims.len()], vec![f32::NAN; dims.rows()]);
                    let inputs = LifInputs { x: &x, membrane: Some(&membrane), decay };
                    let outputs = LifOutputGrads { spikes: &gspikes, membrane_out: None };
                    let grads = LifGrads { x: &mut gx, membrane: Some(&mut gmembrane), decay: None };
                    lif_backward(dims, inputs, Surrogate::default(), outputs, grads, how);
                    vec![gx, gmembrane]
                })
            };
            assert_eq!(gradients(None), gradients(Some(&half[..])));
        }
    }
}
