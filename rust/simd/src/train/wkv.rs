//! WKV-4, forward and backward.

use super::{Item, Kernel, Lanes, Run, SeqDims, load, run_items, store, sum_rows};
use crate::Isa;
use crate::shared::SharedMut;
use crate::vecops::exp;

/// `pp` of an empty WKV state: the exponent of nothing seen yet.
pub const WKV_EMPTY_EXPONENT: f32 = -1e38;

/// Inputs of WKV-4 (RWKV, Peng et al. 2023, eq. 14; numerically stable form of appendix D).
#[derive(Clone, Copy, Debug)]
pub struct WkvInputs<'a> {
    /// `[channels]`, `-exp(time_decay)`: log of the decay per token, negative.
    pub w: &'a [f32],
    /// `[channels]`, `time_first`: bonus of the present token.
    pub u: &'a [f32],
    /// `[batch, time, channels]`.
    pub k: &'a [f32],
    /// `[batch, time, channels]`.
    pub v: &'a [f32],
    /// `[batch, 3, channels]`: `aa`, `bb`, `pp`; `None` is a fresh start.
    pub state: Option<&'a [f32]>,
}

/// Where the gradients of WKV-4 go.
#[derive(Debug)]
pub struct WkvGrads<'a> {
    /// `[channels]`, with respect to `w` (not to `time_decay`).
    pub w: &'a mut [f32],
    /// `[channels]`.
    pub u: &'a mut [f32],
    /// `[batch, time, channels]`.
    pub k: &'a mut [f32],
    /// `[batch, time, channels]`.
    pub v: &'a mut [f32],
    /// `[batch, 3, channels]`; the `pp` part is zero, see [`wkv4_backward`].
    pub state: Option<&'a mut [f32]>,
}

/// The running sums: `aa exp(pp)` and `bb exp(pp)` are those of the paper.
#[derive(Clone, Copy)]
struct State<V> {
    aa: V,
    bb: V,
    pp: V,
}

/// `exp(a - m)` and `exp(b - m)` for `m = max(a, b)`: one of the two is 1, so one `exp` will do.
#[inline(always)]
fn exp_pair<I: Isa>(isa: I, a: I::V, b: I::V) -> (I::V, I::V) {
    let apart = isa.max(isa.sub(a, b), isa.sub(b, a));
    let (small, one) = (exp(isa, isa.sub(isa.splat(0.0), apart)), isa.splat(1.0));
    (isa.select_ge(a, b, one, small), isa.select_ge(a, b, small, one))
}

impl<V: Copy> State<V> {
    #[inline(always)]
    fn load<I: Isa<V = V>>(isa: I, state: Option<&[f32]>, item: Item) -> Self {
        match state {
            None => State { aa: isa.splat(0.0), bb: isa.splat(0.0), pp: isa.splat(WKV_EMPTY_EXPONENT) },
            Some(s) => State {
                aa: load(isa, &s[item.state(0)]),
                bb: load(isa, &s[item.state(1)]),
                pp: load(isa, &s[item.state(2)]),
            },
        }
    }

    /// Takes in one token.
    #[inline(always)]
    fn advance<I: Isa<V = V>>(&mut self, isa: I, w: V, k: V, v: V) {
        let decayed = isa.add(self.pp, w);
        let (e1, e2) = exp_pair(isa, decayed, k);
        self.aa = isa.fma(e1, self.aa, isa.mul(e2, v));
        self.bb = isa.fma(e1, self.bb, e2);
        self.pp = isa.max(decayed, k);
    }
}

struct Forward<'a> {
    dims: SeqDims,
    inputs: WkvInputs<'a>,
    y: SharedMut<'a, f32>,
    state_out: Option<SharedMut<'a, f32>>,
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
        let inputs = &self.inputs;
        let (w, u) = (load(isa, &inputs.w[item.channels()]), load(isa, &inputs.u[item.channels()]));
        let mut s = State::load(isa, inputs.state, item);
        for t in 0..self.dims.time {
            let at = item.token(t);
            let (k, v) = (load(isa, &inputs.k[at.clone()]), load(isa, &inputs.v[at.clone()]));
            let (e1, e2) = exp_pair(isa, s.pp, isa.add(u, k));
            let numerator = isa.fma(e1, s.aa, isa.mul(e2, v));
            store(isa, &self.y, at, isa.div(numerator, isa.fma(e1, s.bb, e2)));
            s.advance(isa, w, k, v);
        }
        if let Some(out) = &self.state_out {
            store(isa, out, item.state(0), s.aa);
            store(isa, out, item.state(1), s.bb);
            store(isa, out, item.state(2), s.pp);
        }
    }
}

struct Backward<'a> {
    dims: SeqDims,
    inputs: WkvInputs<'a>,
    gy: &'a [f32],
    gstate_out: Option<&'a [f32]>,
    /// `[batch, channels]`, summed over the batch afterwards.
    gw: SharedMut<'a, f32>,
    /// As `gw`.
    gu: SharedMut<'a, f32>,
    gk: SharedMut<'a, f32>,
    gv: SharedMut<'a, f32>,
    gstate: Option<SharedMut<'a, f32>>,
}

impl Kernel for Backward<'_> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    /// The state before every token.
    fn scratch(&self) -> usize {
        3 * self.dims.time
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, scratch: &mut [Lanes]) {
        let inputs = &self.inputs;
        let token = |t: usize| (load(isa, &inputs.k[item.token(t)]), load(isa, &inputs.v[item.token(t)]));
        let (w, u) = (load(isa, &inputs.w[item.channels()]), load(isa, &inputs.u[item.channels()]));
        let zero = isa.splat(0.0);
        let (states, _) = scratch.as_chunks_mut::<3>();
        let mut s = State::load(isa, inputs.state, item);
        for (t, before) in states.iter_mut().enumerate() {
            isa.store(s.aa, &mut before[0]);
            isa.store(s.bb, &mut before[1]);
            isa.store(s.pp, &mut before[2]);
            let (k, v) = token(t);
            s.advance(isa, w, k, v);
        }

        // ga, gb: gradient with respect to aa and bb after token t, their exponent pp held fixed.
        // y depends on aa exp(pp) and bb exp(pp) only, so a fixed pp loses nothing.
        let (mut ga, mut gb) = match self.gstate_out {
            None => (zero, zero),
            Some(g) => (load(isa, &g[item.state(0)]), load(isa, &g[item.state(1)])),
        };
        let (mut gw, mut gu) = (zero, zero);
        for (t, before) in states.iter().enumerate().rev() {
            let (k, v) = token(t);
            let gy = load(isa, &self.gy[item.token(t)]);
            let (aa, bb, pp) = (isa.load(&before[0]), isa.load(&before[1]), isa.load(&before[2]));

            // The output: y = (e1 aa + e2 v) / (e1 bb + e2).
            let (e1, e2) = exp_pair(isa, pp, isa.add(u, k));
            let inverse = isa.div(isa.splat(1.0), isa.fma(e1, bb, e2));
            let y = isa.mul(isa.fma(e1, aa, isa.mul(e2, v)), inverse);
            let g = isa.mul(gy, inverse);
            let present = isa.mul(isa.mul(g, e2), isa.sub(v, y));

            // The next state: aa' = d1 aa + d2 v, bb' = d1 bb + d2.
            let (d1, d2) = exp_pair(isa, isa.add(pp, w), k);
            gu = isa.add(gu, present);
            gw = isa.fma(d1, isa.fma(ga, aa, isa.mul(gb, bb)), gw);
            let gk = isa.fma(d2, isa.fma(ga, v, gb), present);
            let gv = isa.fma(g, e2, isa.mul(ga, d2));
            ga = isa.fma(g, e1, isa.mul(ga, d1));
            gb = isa.sub(isa.mul(gb, d1), isa.mul(isa.mul(g, e1), y));
            store(isa, &self.gk, item.token(t), gk);
            store(isa, &self.gv, item.token(t), gv);
        }
        store(isa, &self.gw, item.membrane(), gw);
        store(isa, &self.gu, item.membrane(), gu);
        if let Some(out) = &self.gstate {
            store(isa, out, item.state(0), ga);
            store(isa, out, item.state(1), gb);
            store(isa, out, item.state(2), zero);
        }
    }
}

/// WKV-4 over whole sequences.
///
/// `y` is `[batch, time, channels]`, `state_out` `[batch, 3, channels]` (`aa`, `bb`, `pp` after the last token).
pub fn wkv4_forward(dims: SeqDims, inputs: WkvInputs<'_>, y: &mut [f32], state_out: Option<&mut [f32]>, how: Run) {
    check(dims, &inputs);
    assert_eq!(y.len(), dims.len(), "y is [batch, time, channels]");
    assert!(state_out.as_ref().is_none_or(|s| s.len() == 3 * dims.rows()), "state_out shape");
    let state_out = state_out.map(SharedMut::new);
    run_items(&Forward { dims, inputs, y: SharedMut::new(y), state_out }, how);
}

/// Gradients of [`wkv4_forward`] for the output gradient `gy` `[batch, time, channels]` and, when a later chunk used the
/// final state, `gstate_out` `[batch, 3, channels]`.
///
/// The exponent `pp` is a choice of scale, not information: gradients of the state are those of `aa` and `bb` at the given
/// `pp`; the `pp` part of `gstate_out` is ignored, that of `grads.state` is zero, and chains of chunks get the gradients
/// of the whole.
pub fn wkv4_backward(
    dims: SeqDims,
    inputs: WkvInputs<'_>,
    gy: &[f32],
    gstate_out: Option<&[f32]>,
    grads: WkvGrads<'_>,
    how: Run,
) {
    check(dims, &inputs);
    assert_eq!(gy.len(), dims.len(), "gy is [batch, time, channels]");
    assert!(gstate_out.is_none_or(|s| s.len() == 3 * dims.rows()), "gstate_out shape");
    assert!(grads.w.len() == dims.channels && grads.u.len() == dims.channels, "gw, gu shape");
    assert!(grads.k.len() == dims.len() && grads.v.len() == dims.len(), "gk, gv shape");
    assert!(grads.state.as_ref().is_none_or(|s| s.len() == 3 * dims.rows()), "gstate shape");
    let mut gw = vec![0.0; dims.rows()];
    let mut gu = vec![0.0; dims.rows()];
    let kernel = Backward {
        dims,
        inputs,
        gy,
        gstate_out,
        gw: SharedMut::new(&mut gw),
        gu: SharedMut::new(&mut gu),
        gk: SharedMut::new(grads.k),
        gv: SharedMut::new(grads.v),
        gstate: grads.state.map(SharedMut::new),
    };
    run_items(&kernel, how);
    sum_rows(&gw, grads.w);
    sum_rows(&gu, grads.u);
}

fn check(dims: SeqDims, inputs: &WkvInputs<'_>) {
    assert!(inputs.w.len() == dims.channels && inputs.u.len() == dims.channels, "w, u shape");
    assert!(inputs.k.len() == dims.len() && inputs.v.len() == dims.len(), "k, v shape");
    assert!(inputs.state.is_none_or(|s| s.len() == 3 * dims.rows()), "state shape");
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SIZES, numbers, same_bits_everywhere};
    use super::*;
    use crate::{Cpu, Level};

    struct Case {
        dims: SeqDims,
        w: Vec<f32>,
        u: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    impl Case {
        fn new(dims: SeqDims) -> Case {
            Case {
                dims,
                w: numbers(1, dims.channels).iter().map(|x| -x.exp()).collect(),
                u: numbers(2, dims.channels),
                k: numbers(3, dims.len()).iter().map(|x| 4.0 * x).collect(),
                v: numbers(4, dims.len()),
            }
        }

        fn inputs(&self) -> WkvInputs<'_> {
            WkvInputs { w: &self.w, u: &self.u, k: &self.k, v: &self.v, state: None }
        }

        /// y and the final state.
        fn forward(&self, how: Run) -> Vec<Vec<f32>> {
            let mut y = vec![f32::NAN; self.dims.len()];
            let mut state = vec![f32::NAN; 3 * self.dims.rows()];
            wkv4_forward(self.dims, self.inputs(), &mut y, Some(&mut state), how);
            vec![y, state]
        }
    }

    #[test]
    fn forward_has_the_bits_of_generation() {
        for dims in SIZES {
            let case = Case::new(dims);
            let found = same_bits_everywhere(|how| case.forward(how));
            let mut state = vec![0.0; 3 * dims.rows()];
            for part in state.chunks_exact_mut(3 * dims.channels) {
                part[2 * dims.channels..].fill(WKV_EMPTY_EXPONENT);
            }
            let mut y = vec![f32::NAN; dims.len()];
            let lens = vec![dims.time; dims.batch];
            let cpu = Cpu::new(Level::best(), 1);
            cpu.wkv4(&lens, dims.channels, &case.w, &case.u, &case.k, &case.v, &mut state, None, &mut y);
            assert_eq!(found, [y, state]);
        }
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        for dims in SIZES {
            let case = Case::new(dims);
            let gy = numbers(5, dims.len());
            let gradients = same_bits_everywhere(|how| {
                let mut gw = vec![f32::NAN; dims.channels];
                let mut gu = gw.clone();
                let mut gk = vec![f32::NAN; dims.len()];
                let mut gv = gk.clone();
                let grads = WkvGrads { w: &mut gw, u: &mut gu, k: &mut gk, v: &mut gv, state: None };
                wkv4_backward(dims, case.inputs(), &gy, None, grads, how);
                vec![gw, gu, gk, gv]
            });
            // Along a random direction, the change of sum(y * gy) is the inner product with the gradients.
            let how = Run { level: Level::best(), threads: 1 };
            let direction: Vec<_> = (0..4).map(|i| numbers(10 + i, gradients[i as usize].len())).collect();
            let value = |step: f32| -> f64 {
                let moved = |x: &[f32], d: &[f32]| x.iter().zip(d).map(|(x, d)| x + step * d).collect();
                let other = Case {
                    dims,
                    w: moved(&case.w, &direction[0]),
                    u: moved(&case.u, &direction[1]),
                    k: moved(&case.k, &direction[2]),
                    v: moved(&case.v, &direction[3]),
                };
                other.forward(how)[0].iter().zip(&gy).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
            };
            let measured = (value(1e-3) - value(-1e-3)) / 2e-3;
            let inner =
                |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
            let expected: f64 = gradients.iter().zip(&direction).map(|(g, d)| inner(g, d)).sum();
            assert!((measured - expected).abs() < 2e-3 * (1.0 + expected.abs()), "{measured} {expected}");
        }
    }
}
