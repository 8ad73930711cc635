//! WKV-4 and LIF for training: forward and backward over whole sequences `[batch, time, channels]`.
//!
//! These kernels serve gradient descent, not generation: they vectorise over channels and run
//! batch rows and channel blocks in parallel, and they promise the same bits for any number of
//! threads, but not for any instruction set (fused multiply-add is used where the CPU has it).
//!
//! Both backward passes run the forward recurrence again, into a scratch buffer of one channel
//! block, so nothing but the inputs is kept between forward and backward.
//!
//! All tensors are contiguous, row-major f32. The caller (crate `spikelet`, module `ops`) reports
//! wrong shapes as errors; here they are programming mistakes and panic.

use std::marker::PhantomData;

/// Channels that one work item carries through time: one cache line of f32.
const LANES: usize = 16;

/// `pp` of an empty WKV state: the exponent of nothing seen yet.
pub const WKV_EMPTY_EXPONENT: f32 = -1e38;

type Lanes = [f32; LANES];

/// Sizes of a training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqDims {
    /// Independent rows.
    pub batch: usize,
    /// Tokens per row.
    pub time: usize,
    /// Channels per token.
    pub channels: usize,
}

impl SeqDims {
    /// Elements of a `[batch, time, channels]` tensor.
    pub fn len(&self) -> usize {
        self.batch * self.time * self.channels
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of a `[batch, channels]` tensor.
    fn rows(&self) -> usize {
        self.batch * self.channels
    }
}

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

/// What a tensor holds; arithmetic is always f32.
pub trait Element: Copy + Send + Sync + sealed::Sealed {
    /// To f32, exactly.
    fn widen(self) -> f32;
    /// To the nearest value, ties to even.
    fn narrow(x: f32) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Bf16Bits {}
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

/// The bits of a bfloat16, the upper half of an f32; a bare integer so that foreign buffers fit.
pub type Bf16Bits = u16;

impl Element for Bf16Bits {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        if x.is_nan() { 0x7fc0 } else { (rounded >> 16) as u16 }
    }
}

/// A mutable slice that work items on several threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared<'a, T = f32> {
    data: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: every element is written by one work item only: an item owns the elements of its batch
// row and its channels, and `run_items` gives each item to exactly one thread.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Element> Shared<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Writes the first `width` lanes at `at`.
    #[inline(always)]
    fn store(&self, at: usize, lanes: &Lanes, width: usize) {
        assert!(width <= LANES && at + width <= self.len, "store of {width} at {at} is out of range");
        if width == LANES {
            let narrow = lanes.map(T::narrow);
            // SAFETY: the range was checked above, and no other item writes it (see `Send`).
            unsafe { self.data.add(at).cast::<[T; LANES]>().write(narrow) }
        } else {
            for (i, &lane) in lanes[..width].iter().enumerate() {
                // SAFETY: as above; `i < width`.
                unsafe { self.data.add(at + i).write(T::narrow(lane)) }
            }
        }
    }
}

#[inline(always)]
fn load<T: Element>(slice: &[T], at: usize, width: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    if width == LANES {
        for (lane, x) in lanes.iter_mut().zip(&slice[at..at + LANES]) {
            *lane = x.widen();
        }
    } else {
        for (lane, x) in lanes.iter_mut().zip(&slice[at..at + width]) {
            *lane = x.widen();
        }
    }
    lanes
}

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
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

/// One (batch row, channel block) of a pass.
#[derive(Clone, Copy)]
struct Item {
    row: usize,
    channel: usize,
    width: usize,
}

impl Item {
    fn new(index: usize, dims: SeqDims) -> Self {
        let blocks = dims.channels.div_ceil(LANES);
        let channel = index % blocks * LANES;
        Self { row: index / blocks, channel, width: LANES.min(dims.channels - channel) }
    }

    /// Index into `[batch, time, channels]`.
    #[inline(always)]
    fn at(&self, t: usize, dims: SeqDims) -> usize {
        (self.row * dims.time + t) * dims.channels + self.channel
    }

    /// Index into `[batch, 3, channels]`.
    #[inline(always)]
    fn state_at(&self, part: usize, dims: SeqDims) -> usize {
        (self.row * 3 + part) * dims.channels + self.channel
    }

    /// Index into `[batch, channels]`.
    #[inline(always)]
    fn row_at(&self, dims: SeqDims) -> usize {
        self.row * dims.channels + self.channel
    }
}

/// Work on one item with a scratch buffer that the thread reuses.
trait Kernel: Sync {
    /// Lanes of scratch that one item needs.
    fn scratch(&self) -> usize;
    fn run<const FMA: bool>(&self, item: Item, scratch: &mut [Lanes]);
    fn dims(&self) -> SeqDims;
}

#[inline(always)]
fn run_range<K: Kernel, const FMA: bool>(kernel: &K, items: std::ops::Range<usize>) {
    let mut scratch = vec![[f32::NAN; LANES]; kernel.scratch()];
    for index in items {
        kernel.run::<FMA>(Item::new(index, kernel.dims()), &mut scratch);
    }
}

/// # Safety
/// The CPU must have AVX-512 F, VL, DQ and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn run_range_avx512<K: Kernel>(kernel: &K, items: std::ops::Range<usize>) {
    run_range::<K, true>(kernel, items);
}

/// # Safety
/// The CPU must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_range_avx2<K: Kernel>(kernel: &K, items: std::ops::Range<usize>) {
    run_range::<K, true>(kernel, items);
}

fn dispatch<K: Kernel>(kernel: &K, items: std::ops::Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx2") && has!("fma") {
            // SAFETY: the line above tested every feature that the function enables.
            return unsafe { run_range_avx512(kernel, items) };
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: the line above tested every feature that the function enables.
            return unsafe { run_range_avx2(kernel, items) };
        }
    }
    run_range::<K, false>(kernel, items);
}

/// Splits all items over at most `threads` threads, each a contiguous range.
fn run_items<K: Kernel>(kernel: &K, threads: usize) {
    let dims = kernel.dims();
    let items = dims.batch * dims.channels.div_ceil(LANES);
    // A thread costs some tens of microseconds to start: worth it from about 32 thousand elements.
    let threads = threads.clamp(1, (dims.len() / 32_768).max(1)).min(items.max(1));
    let per_thread = items.div_ceil(threads);
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let range = (thread * per_thread).min(items)..((thread + 1) * per_thread).min(items);
            scope.spawn(move || dispatch(kernel, range));
        }
        dispatch(kernel, 0..per_thread.min(items));
    });
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
            Some(g) => (
                load(g, item.state_at(0, dims), item.width),
                load(g, item.state_at(1, dims), item.width),
            ),
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
    let kernel =
        WkvForward { dims, inputs, y: Shared::new(y), state_out: state_out.map(Shared::new) };
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

/// Adds the rows of `[batch, channels]` in f64, in order.
fn sum_rows(rows: &[f32], out: &mut [f32]) {
    let channels = out.len();
    for (c, sum) in out.iter_mut().enumerate() {
        *sum = rows.iter().skip(c).step_by(channels.max(1)).map(|&x| f64::from(x)).sum::<f64>() as f32;
    }
}

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
    let kernel = LifForward {
        dims,
        x,
        membrane,
        spikes: Shared::new(spikes),
        membrane_out: membrane_out.map(Shared::new),
    };
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

struct MixForward<'a, T> {
    dims: SeqDims,
    x: &'a [f32],
    last: &'a [f32],
    mixes: &'a [&'a [f32]],
    out: Vec<Shared<'a, T>>,
}

/// Mixes that one token shift feeds: key, value, receptance.
const MAX_MIXES: usize = 3;

impl<T: Element> Kernel for MixForward<'_, T> {
    fn scratch(&self) -> usize {
        0
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, _: &mut [Lanes]) {
        let dims = self.dims;
        let mut mixes = [[0.0; LANES]; MAX_MIXES];
        for (lanes, mix) in mixes.iter_mut().zip(self.mixes) {
            *lanes = load(mix, item.channel, item.width);
        }
        let mut before = load(self.last, item.row_at(dims), item.width);
        for t in 0..dims.time {
            let at = item.at(t, dims);
            let x = load(self.x, at, item.width);
            for (out, mix) in self.out.iter().zip(&mixes) {
                let mut mixed = [0.0; LANES];
                for i in 0..LANES {
                    mixed[i] = fma::<FMA>(mix[i], x[i] - before[i], before[i]);
                }
                out.store(at, &mixed, item.width);
            }
            before = x;
        }
    }
}

struct MixBackward<'a, T> {
    dims: SeqDims,
    x: &'a [f32],
    last: &'a [f32],
    mixes: &'a [&'a [f32]],
    gout: &'a [&'a [T]],
    gx: Shared<'a>,
    glast: Shared<'a>,
    /// One `[batch, channels]` per mix, summed over the batch afterwards.
    gmixes: Vec<Shared<'a>>,
}

impl<T: Element> Kernel for MixBackward<'_, T> {
    fn scratch(&self) -> usize {
        0
    }

    fn dims(&self) -> SeqDims {
        self.dims
    }

    #[inline(always)]
    fn run<const FMA: bool>(&self, item: Item, _: &mut [Lanes]) {
        let dims = self.dims;
        let mut mixes = [[0.0; LANES]; MAX_MIXES];
        for (lanes, mix) in mixes.iter_mut().zip(self.mixes) {
            *lanes = load(mix, item.channel, item.width);
        }
        let mut gmixes = [[0.0; LANES]; MAX_MIXES];
        // What token t + 1 sends back to token t, its predecessor.
        let mut from_next = [0.0; LANES];
        for t in (0..dims.time).rev() {
            let at = item.at(t, dims);
            let x = load(self.x, at, item.width);
            let before = if t == 0 {
                load(self.last, item.row_at(dims), item.width)
            } else {
                load(self.x, item.at(t - 1, dims), item.width)
            };
            let mut gx = from_next;
            from_next = [0.0; LANES];
            for ((gout, mix), gmix) in self.gout.iter().zip(&mixes).zip(&mut gmixes) {
                let g = load(gout, at, item.width);
                for i in 0..LANES {
                    let own = g[i] * mix[i];
                    gx[i] += own;
                    from_next[i] += g[i] - own;
                    gmix[i] = fma::<FMA>(g[i], x[i] - before[i], gmix[i]);
                }
            }
            self.gx.store(at, &gx, item.width);
        }
        self.glast.store(item.row_at(dims), &from_next, item.width);
        for (out, gmix) in self.gmixes.iter().zip(&gmixes) {
            out.store(item.row_at(dims), gmix, item.width);
        }
    }
}

/// Token shift and mix: `out[j] = mixes[j] * x + (1 - mixes[j]) * previous x`, for up to three mixes.
///
/// `x` and each `out` are `[batch, time, channels]`, each mix `[channels]`; `last`
/// `[batch, channels]` precedes the first token.
pub fn mix_forward<T: Element>(
    dims: SeqDims,
    x: &[f32],
    last: &[f32],
    mixes: &[&[f32]],
    out: &mut [&mut [T]],
    threads: usize,
) {
    assert!(mixes.len() <= MAX_MIXES && mixes.len() == out.len(), "at most three mixes");
    assert!(x.len() == dims.len() && last.len() == dims.rows(), "x, last shape");
    assert!(mixes.iter().all(|m| m.len() == dims.channels), "mix shape");
    assert!(out.iter().all(|o| o.len() == dims.len()), "out shape");
    let out = out.iter_mut().map(|o| Shared::new(o)).collect();
    run_items(&MixForward { dims, x, last, mixes, out }, threads);
}

/// Where the gradients of [`mix_forward`] go.
#[derive(Debug)]
pub struct MixGrads<'a> {
    /// `[batch, time, channels]`.
    pub x: &'a mut [f32],
    /// `[batch, channels]`.
    pub last: &'a mut [f32],
    /// One after the other, `[mixes, channels]`.
    pub mixes: &'a mut [f32],
}

/// Gradients of [`mix_forward`] for the gradient `gout` of each output.
pub fn mix_backward<T: Element>(
    dims: SeqDims,
    x: &[f32],
    last: &[f32],
    mixes: &[&[f32]],
    gout: &[&[T]],
    grads: MixGrads<'_>,
    threads: usize,
) {
    assert!(mixes.len() <= MAX_MIXES && mixes.len() == gout.len(), "at most three mixes");
    assert!(x.len() == dims.len() && last.len() == dims.rows(), "x, last shape");
    assert!(mixes.iter().all(|m| m.len() == dims.channels), "mix shape");
    assert!(gout.iter().all(|g| g.len() == dims.len()), "gout shape");
    assert!(grads.x.len() == dims.len() && grads.last.len() == dims.rows(), "gx, glast shape");
    assert_eq!(grads.mixes.len(), mixes.len() * dims.channels, "gmixes is [mixes, channels]");
    let mut partial = vec![0.0; mixes.len() * dims.rows()];
    let kernel = MixBackward {
        dims,
        x,
        last,
        mixes,
        gout,
        gx: Shared::new(grads.x),
        glast: Shared::new(grads.last),
        gmixes: partial.chunks_exact_mut(dims.rows()).map(Shared::new).collect(),
    };
    run_items(&kernel, threads);
    let sums = grads.mixes.chunks_exact_mut(dims.channels);
    for (sum, rows) in sums.zip(partial.chunks_exact(dims.rows())) {
        sum_rows(rows, sum);
    }
}
