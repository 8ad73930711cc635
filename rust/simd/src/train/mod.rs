//! WKV-4, LIF and token shift for training: forward and backward over `[batch, time, channels]`.
//!
//! These kernels serve gradient descent, not generation: they vectorise over channels and run
//! batch rows and channel blocks in parallel, and they promise the same bits for any number of
//! threads, but not for any instruction set (fused multiply-add is used where the CPU has it).
//!
//! The backward passes of WKV and LIF run the forward recurrence again, into a scratch buffer of one channel
//! block, so nothing but the inputs is kept between forward and backward.
//!
//! All tensors are contiguous, row-major f32. The caller (crate `spikelet`, module `ops`) reports
//! wrong shapes as errors; here they are programming mistakes and panic.

use std::marker::PhantomData;

mod lif;
mod mix;
mod wkv;

pub use lif::{LifOutputGrads, lif_backward, lif_forward};
pub use mix::{MixGrads, mix_backward, mix_forward};
pub use wkv::{WKV_EMPTY_EXPONENT, WkvGrads, WkvInputs, wkv4_backward, wkv4_forward};

/// Channels that one work item carries through time: one cache line of f32.
const LANES: usize = 16;

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

/// Adds the rows of `[batch, channels]` in f64, in order.
fn sum_rows(rows: &[f32], out: &mut [f32]) {
    let channels = out.len();
    for (c, sum) in out.iter_mut().enumerate() {
        *sum = rows.iter().skip(c).step_by(channels.max(1)).map(|&x| f64::from(x)).sum::<f64>() as f32;
    }
}
