//! WKV-4, LIF and token shift for training: forward and backward over `[batch, time, channels]`.
//!
//! They stand beside the kernels of generation and share their arithmetic: lanes are channels, so the forward passes give
//! the engine's bits, and every result is the same on each instruction set and for any number of threads.
//!
//! The backward passes of WKV and LIF run the forward recurrence again, into a scratch buffer of one channel block, so
//! nothing but the inputs is kept between forward and backward.
//!
//! All tensors are contiguous and row-major. The caller (crate `spikelet`, module `ops`) reports wrong shapes as errors;
//! here they are programming mistakes and panic.

mod lif;
mod mix;
mod wkv;

pub use lif::{LifGrads, LifInputs, LifOutputGrads, Surrogate, lif_backward, lif_forward};
pub use mix::{MixGrads, mix_backward, mix_forward};
pub use wkv::{WKV_EMPTY_EXPONENT, WkvGrads, WkvInputs, wkv4_backward, wkv4_forward};

use crate::shared::SharedMut;
use crate::{Isa, LANES, Level, Op};
use std::ops::Range;

/// One vector in memory.
type Lanes = [f32; LANES];

/// A thread costs some tens of microseconds to start: worth it from about this many elements on.
const ELEMENTS_PER_THREAD: usize = 32 << 10;

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

/// How to run: which instructions, on how many threads. Neither changes the result.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The instruction set.
    pub level: Level,
    /// Threads, the calling one included.
    pub threads: usize,
}

/// What a tensor holds; arithmetic is always f32.
pub trait Element: Copy + Send + Sync + sealed::Sealed {}

/// The bits of a bfloat16, the upper half of an f32; a bare integer so that foreign buffers fit.
pub type Bf16Bits = u16;

impl Element for f32 {}
impl Element for Bf16Bits {}

mod sealed {
    pub trait Sealed: Sized + Default {
        /// As f32, exactly.
        fn widen(self) -> f32;
        /// The nearest value, ties to even.
        fn narrow(x: f32) -> Self;
    }

    impl Sealed for f32 {
        #[inline(always)]
        fn widen(self) -> f32 {
            self
        }

        #[inline(always)]
        fn narrow(x: f32) -> f32 {
            x
        }
    }

    impl Sealed for super::Bf16Bits {
        #[inline(always)]
        fn widen(self) -> f32 {
            f32::from_bits(u32::from(self) << 16)
        }

        #[inline(always)]
        fn narrow(x: f32) -> u16 {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            if x.is_nan() { 0x7fc0 } else { (rounded >> 16) as u16 }
        }
    }
}

/// One (batch row, block of up to 16 channels) of a pass: the unit of work.
#[derive(Clone, Copy)]
struct Item {
    dims: SeqDims,
    row: usize,
    channel: usize,
    width: usize,
}

impl Item {
    fn count(dims: SeqDims) -> usize {
        dims.batch * dims.channels.div_ceil(LANES)
    }

    fn new(index: usize, dims: SeqDims) -> Item {
        let blocks = dims.channels.div_ceil(LANES);
        let channel = index % blocks * LANES;
        Item { dims, row: index / blocks, channel, width: LANES.min(dims.channels - channel) }
    }

    #[inline(always)]
    fn block(&self, row: usize) -> Range<usize> {
        let start = row * self.dims.channels + self.channel;
        start..start + self.width
    }

    /// Where this block lies in a `[channels]` tensor.
    #[inline(always)]
    fn channels(&self) -> Range<usize> {
        self.block(0)
    }

    /// Where this block lies in a `[batch, channels]` tensor.
    #[inline(always)]
    fn membrane(&self) -> Range<usize> {
        self.block(self.row)
    }

    /// Where this block lies in a `[batch, 3, channels]` tensor.
    #[inline(always)]
    fn state(&self, part: usize) -> Range<usize> {
        self.block(3 * self.row + part)
    }

    /// Where this block lies in a `[batch, time, channels]` tensor.
    #[inline(always)]
    fn token(&self, t: usize) -> Range<usize> {
        self.block(self.row * self.dims.time + t)
    }
}

/// Up to 16 elements as a vector; further lanes are 0.
#[inline(always)]
fn load<I: Isa, T: Element>(isa: I, x: &[T]) -> I::V {
    if let Some(whole) = x.first_chunk::<LANES>() {
        return isa.load(&whole.map(T::widen));
    }
    let mut lanes = [0.0; LANES];
    for (lane, x) in lanes.iter_mut().zip(x) {
        *lane = x.widen();
    }
    isa.load(&lanes)
}

/// Writes the lanes that `range` has room for.
#[inline(always)]
fn store<I: Isa, T: Element>(isa: I, to: &SharedMut<'_, T>, range: Range<usize>, v: I::V) {
    let lanes = isa.to_array(v);
    // SAFETY: an item writes only the blocks of its own row and channels, and each item runs once, on one thread; the
    // part ends with this function.
    let part = unsafe { to.part(range) };
    if let Some(whole) = part.first_chunk_mut::<LANES>() {
        *whole = lanes.map(T::narrow);
    } else {
        for (to, lane) in part.iter_mut().zip(lanes) {
            *to = T::narrow(lane);
        }
    }
}

/// Work on one item, with a scratch buffer that the thread reuses. `run` must be `#[inline(always)]`.
trait Kernel: Sync {
    fn dims(&self) -> SeqDims;
    /// Vectors of scratch that one item needs.
    fn scratch(&self) -> usize;
    fn run<I: Isa>(&self, isa: I, item: Item, scratch: &mut [Lanes]);
}

struct Items<'a, K>(&'a K, Range<usize>);

impl<K: Kernel> Op for Items<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Items(kernel, items) = self;
        let mut scratch = vec![[f32::NAN; LANES]; kernel.scratch()];
        for index in items {
            kernel.run(isa, Item::new(index, kernel.dims()), &mut scratch);
        }
    }
}

/// Runs all items, a contiguous range per thread.
fn run_items<K: Kernel>(kernel: &K, how: Run) {
    let dims = kernel.dims();
    let items = Item::count(dims);
    let threads = how.threads.clamp(1, (dims.len() / ELEMENTS_PER_THREAD).max(1)).min(items.max(1));
    let share = items.div_ceil(threads);
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let range = (thread * share).min(items)..((thread + 1) * share).min(items);
            scope.spawn(move || how.level.dispatch(Items(kernel, range)));
        }
        how.level.dispatch(Items(kernel, 0..share.min(items)));
    });
}

/// Adds the rows of `[batch, channels]` in f64, in order.
fn sum_rows(rows: &[f32], out: &mut [f32]) {
    let channels = out.len();
    for (c, sum) in out.iter_mut().enumerate() {
        *sum = rows.iter().skip(c).step_by(channels.max(1)).map(|&x| f64::from(x)).sum::<f64>() as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_each_isa;

    /// Sizes with channel tails, one token, one row; the last is split over threads.
    pub(super) const SIZES: [SeqDims; 4] = [
        SeqDims { batch: 1, time: 1, channels: 1 },
        SeqDims { batch: 3, time: 5, channels: 17 },
        SeqDims { batch: 2, time: 9, channels: 48 },
        SeqDims { batch: 4, time: 100, channels: 200 },
    ];

    /// Numbers in -1..1 that look random and are the same in every run.
    pub(super) fn numbers(seed: u32, len: usize) -> Vec<f32> {
        let mut state = u64::from(seed) + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Runs `results` for every instruction set and several thread counts, and asserts that all bits are equal.
    pub(super) fn same_bits_everywhere(results: impl Fn(Run) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let bits = |all: &[Vec<f32>]| -> Vec<Vec<u32>> {
            all.iter().map(|x| x.iter().map(|v| v.to_bits()).collect()).collect()
        };
        let first = results(Run { level: Level::best(), threads: 1 });
        for_each_isa(|level| {
            for threads in [1, 2, 5] {
                let other = results(Run { level, threads });
                assert_eq!(bits(&first), bits(&other), "{} with {threads} threads", level.name());
            }
        });
        assert!(first.iter().flatten().all(|x| x.is_finite()), "something was not written");
        first
    }

    #[test]
    fn items_cover_every_element_once() {
        for dims in SIZES {
            let mut seen = vec![0; dims.len()];
            for index in 0..Item::count(dims) {
                let item = Item::new(index, dims);
                (0..dims.time).flat_map(|t| item.token(t)).for_each(|i| seen[i] += 1);
            }
            assert!(seen.iter().all(|&n| n == 1), "{dims:?}");
        }
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even_and_keeps_nan() {
        use sealed::Sealed;
        let cases = [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80), // a tie goes to the even neighbour
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (-0.0, 0x8000),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (f32::from_bits(0x7f80_0001), 0x7fc0),
        ];
        for (x, bits) in cases {
            assert_eq!(Bf16Bits::narrow(x), bits, "{x}");
        }
    }
}
