//! WKV-4, forward and backward.

use super::{Item, Kernel, LANES, Lanes, SeqDims, Shared, fma, load, run_items, sum_rows};

/// `pp` of an empty WKV state: the exponent of nothing seen yet.
pub const WKV_EMPTY_EXPONENT: f32 = -1e38;

/// Inputs of WKV-4 (RWKV-4, Peng et al. 2023, eq. 14; numerically stable form of appendix D).
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

/// `exp(x)` for `x <= 0`, relative error below 2e-7; 0 under -87.
///
/// Cody-Waite reduction to `|r| <= ln2/2`, then a Taylor polynomial of degree 7. Written without a
/// branch or call, so that a loop over lanes becomes vector code.
#[inline(always)]
fn exp_neg<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer
    let clamped = if x > -87.0 { x } else { -87.0 };
    let n = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, clamped);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    p = fma::<FMA>(p, r, 1.0 / 720.0);
    p = fma::<FMA>(p, r, 1.0 / 120.0);
    p = fma::<FMA>(p, r, 1.0 / 24.0);
    p = fma::<FMA>(p, r, 1.0 / 6.0);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r, 1.0);
    p = fma::<FMA>(p, r, 1.0);
    // n is in -126..=0: the sum of exponents is that of a normal number.
    let bits = p.to_bits().wrapping_add(((n as i32) << 23) as u32);
    if x > -87.0 { f32::from_bits(bits) } else { 0.0 }
}

/// `exp(a - m)`, `exp(b - m)` and `m`, with `m = max(a, b)`: one of the two is 1.
#[inline(always)]
fn exp_pair<const FMA: bool>(a: f32, b: f32) -> (f32, f32, f32) {
    let small = exp_neg::<FMA>(-(a - b).abs());
    if a >= b { (1.0, small, a) } else { (small, 1.0, b) }
}

#[derive(Clone, Copy)]
struct WkvState {
    aa: Lanes,
    bb: Lanes,
    pp: Lanes,
}

impl WkvState {
    #[inline(always)]
    fn load(state: Option<&[f32]>, item: Item, dims: SeqDims) -> Self {
        let empty = [0.0; LANES];
        match state {
            None => Self { aa: empty, bb: empty, pp: [WKV_EMPTY_EXPONENT; LANES] },
            Some(s) => Self {
                aa: load(s, item.state_at(0, dims), item.width),
                bb: load(s, item.state_at(1, dims), item.width),
                pp: load(s, item.state_at(2, dims), item.width),
            },
        }
    }

    /// Takes in one token.
    #[inline(always)]
    fn advance<const FMA: bool>(&mut self, w: &Lanes, k: &Lanes, v: &Lanes) {
        for i in 0..LANES {
            let (e1, e2, pp) = exp_pair::<FMA>(self.pp[i] + w[i], k[i]);
            self.aa[i] = fma::<FMA>(e1, self.aa[i], e2 * v[i]);
            self.bb[i] = fma::<FMA>(e1, self.bb[i], e2);
            self.pp[i] = pp;
        }
    }
}

struct WkvForward<'a> {
    dims: SeqDims,
    inputs: WkvInputs<'a>,
    y: Shared<'a>,
    state_out: Option<Shared<'a>>,
}

impl Kernel for WkvForward<'_> {
    fn scratch(&self) -> usize {
        0
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, _: &mut [Lanes]) {
        let (dims, inputs) = (self.dims, &self.inputs);
        let w = load(inputs.w, item.channel, item.width);
        let u = load(inputs.u, item.channel, item.width);
        let mut s = WkvState::load(inputs.state, item, dims);
        for t in 0..dims.time {
            let at = item.at(t, dims);
            let k = load(inputs.k, at, item.width);
            let v = load(inputs.v, at, item.width);
            let mut y = [0.0; LANES];
            for i in 0..LANES {
                let (e1, e2, _) = exp_pair::<FMA>(s.pp[i], u[i] + k[i]);
                y[i] = fma::<FMA>(e1, s.aa[i], e2 * v[i]) / fma::<FMA>(e1, s.bb[i], e2);
            }
            self.y.store(at, &y, item.width);
            s.advance::<FMA>(&w, &k, &v);
        }
        if let Some(out) = &self.state_out {
            out.store(item.state_at(0, dims), &s.aa, item.width);
            out.store(item.state_at(1, dims), &s.bb, item.width);
            out.store(item.state_at(2, dims), &s.pp, item.width);
        }
    }
}

struct WkvBackward<'a> {
    dims: SeqDims,
    inputs: WkvInputs<'a>,
    gy: &'a [f32],
    gstate_out: Option<&'a [f32]>,
    /// `[batch, channels]`, summed over the batch afterwards.
    gw: Shared<'a>,
    gu: Shared<'a>,
    gk: Shared<'a>,
    gv: Shared<'a>,
    gstate: Option<Shared<'a>>,
}

impl Kernel for WkvBackward<'_> {
    fn scratch(&self) -> usize {
        3 * self.dims.time
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, scratch: &mut [Lanes]) {
        let (dims, inputs) = (self.dims, &self.inputs);
        let w = load(inputs.w, item.channel, item.width);
        let u = load(inputs.u, item.channel, item.width);
        let mut s = WkvState::load(inputs.state, item, dims);
        for (t, before) in scratch.chunks_exact_mut(3).enumerate() {
            (before[0], before[1], before[2]) = (s.aa, s.bb, s.pp);
            let at = item.at(t, dims);
            s.advance::<FMA>(&w, &load(inputs.k, at, item.width), &load(inputs.v, at, item.width));
        }

        // ga, gb: gradient with respect to aa and bb after token t, their exponent pp held fixed.
        // y depends on aa*exp(pp) and bb*exp(pp) only, so a fixed pp loses nothing.
        let (mut ga, mut gb) = match self.gstate_out {
            None => ([0.0; LANES], [0.0; LANES]),
            Some(g) => (load(g, item.state_at(0, dims), item.width), load(g, item.state_at(1, dims), item.width)),
        };
        let (mut gw, mut gu) = ([0.0; LANES], [0.0; LANES]);
        for (t, before) in scratch.chunks_exact(3).enumerate().rev() {
            let at = item.at(t, dims);
            let k = load(inputs.k, at, item.width);
            let v = load(inputs.v, at, item.width);
            let gy = load(self.gy, at, item.width);
            let (aa, bb, pp) = (&before[0], &before[1], &before[2]);
            let (mut gk, mut gv) = ([0.0; LANES], [0.0; LANES]);
            for i in 0..LANES {
                // The output: y = (e1 aa + e2 v) / (e1 bb + e2).
                let (e1, e2, _) = exp_pair::<FMA>(pp[i], u[i] + k[i]);
                let inverse = 1.0 / fma::<FMA>(e1, bb[i], e2);
                let y = fma::<FMA>(e1, aa[i], e2 * v[i]) * inverse;
                let g = gy[i] * inverse;
                let present = g * e2 * (v[i] - y);
                // The next state: aa' = d1 aa + d2 v, bb' = d1 bb + d2.
                let (d1, d2, _) = exp_pair::<FMA>(pp[i] + w[i], k[i]);
                gu[i] += present;
                gw[i] = fma::<FMA>(d1, fma::<FMA>(ga[i], aa[i], gb[i] * bb[i]), gw[i]);
                gk[i] = fma::<FMA>(d2, fma::<FMA>(ga[i], v[i], gb[i]), present);
                gv[i] = fma::<FMA>(g, e2, ga[i] * d2);
                ga[i] = fma::<FMA>(g, e1, ga[i] * d1);
                gb[i] = fma::<FMA>(g * e1, -y, gb[i] * d1);
            }
            self.gk.store(at, &gk, item.width);
            self.gv.store(at, &gv, item.width);
        }
        self.gw.store(item.row_at(dims), &gw, item.width);
        self.gu.store(item.row_at(dims), &gu, item.width);
        if let Some(out) = &self.gstate {
            out.store(item.state_at(0, dims), &ga, item.width);
            out.store(item.state_at(1, dims), &gb, item.width);
            out.store(item.state_at(2, dims), &[0.0; LANES], item.width);
        }
    }
}

/// WKV-4 over whole sequences.
///
/// `y` is `[batch, time, channels]`, `state_out` `[batch, 3, channels]` (`aa`, `bb`, `pp` after the
/// last token). Any number of `threads` gives the same bits.
pub fn wkv4_forward(
    dims: SeqDims,
    inputs: WkvInputs<'_>,
    y: &mut [f32],
    state_out: Option<&mut [f32]>,
    threads: usize,
) {
    check_wkv(dims, &inputs);
    assert_eq!(y.len(), dims.len(), "y is [batch, time, channels]");
    assert!(state_out.as_ref().is_none_or(|s| s.len() == 3 * dims.rows()), "state_out shape");
    let kernel = WkvForward { dims, inputs, y: Shared::new(y), state_out: state_out.map(Shared::new) };
    run_items(&kernel, threads);
}

/// Gradients of [`wkv4_forward`] for the output gradient `gy` `[batch, time, channels]` and, when
/// a later chunk used the final state, `gstate_out` `[batch, 3, channels]`.
///
/// The exponent `pp` is a choice of scale, not information: gradients of the state are those of
/// `aa` and `bb` at the given `pp`; the `pp` part of `gstate_out` is ignored, that of
/// `grads.state` is zero, and chains of chunks get the gradients of the whole.
pub fn wkv4_backward(
    dims: SeqDims,
    inputs: WkvInputs<'_>,
    gy: &[f32],
    gstate_out: Option<&[f32]>,
    grads: WkvGrads<'_>,
    threads: usize,
) {
    check_wkv(dims, &inputs);
    assert_eq!(gy.len(), dims.len(), "gy is [batch, time, channels]");
    assert!(gstate_out.is_none_or(|s| s.len() == 3 * dims.rows()), "gstate_out shape");
    assert!(grads.w.len() == dims.channels && grads.u.len() == dims.channels, "gw, gu shape");
    assert!(grads.k.len() == dims.len() && grads.v.len() == dims.len(), "gk, gv shape");
    assert!(grads.state.as_ref().is_none_or(|s| s.len() == 3 * dims.rows()), "gstate shape");
    let mut gw = vec![0.0; dims.rows()];
    let mut gu = vec![0.0; dims.rows()];
    let kernel = WkvBackward {
        dims,
        inputs,
        gy,
        gstate_out,
        gw: Shared::new(&mut gw),
        gu: Shared::new(&mut gu),
        gk: Shared::new(grads.k),
        gv: Shared::new(grads.v),
        gstate: grads.state.map(Shared::new),
    };
    run_items(&kernel, threads);
    sum_rows(&gw, grads.w);
    sum_rows(&gu, grads.u);
}

fn check_wkv(dims: SeqDims, inputs: &WkvInputs<'_>) {
    assert!(inputs.w.len() == dims.channels && inputs.u.len() == dims.channels, "w, u shape");
    assert!(inputs.k.len() == dims.len() && inputs.v.len() == dims.len(), "k, v shape");
    assert!(inputs.state.is_none_or(|s| s.len() == 3 * dims.rows()), "state shape");
}
