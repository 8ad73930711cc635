//! The tile kernel of all matrix products: some panels of weights by some tokens, with the sums in registers.

use crate::pack::PANEL;
use crate::{Isa, LANES, WeightFormat};
use std::ops::Range;

/// Inputs in a block of the definition above.
pub(crate) const BLOCK: usize = 64;
/// A stored weight.
pub(crate) trait Weight: Copy + Send + Sync {
    const FORMAT: WeightFormat;
    /// Vector `v` of the two of one input's weights.
    fn load<I: Isa>(isa: I, row: &[Self; PANEL], v: usize) -> I::V;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bf16(pub u16);

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F16(pub u16);

impl Bf16 {
    /// Where the weight of output `lane` of a panel lies: outputs `i` and `i + 16` share a word.
    pub(crate) fn slot(lane: usize) -> usize {
        lane % LANES * 2 + lane / LANES
    }

    /// The output whose weight lies at `slot`.
    pub(crate) fn lane(slot: usize) -> usize {
        slot % 2 * LANES + slot / 2
    }
}

impl Weight for f32 {
    const FORMAT: WeightFormat = WeightFormat::F32;
    #[inline(always)]
    fn load<I: Isa>(isa: I, row: &[f32; PANEL], v: usize) -> I::V {
        isa.load(&row.as_chunks::<LANES>().0[v])
    }
}

impl Weight for Bf16 {
    const FORMAT: WeightFormat = WeightFormat::Bf16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, row: &[Bf16; PANEL], v: usize) -> I::V {
        // SAFETY: as many bytes; any address will do for bytes.
        let words = unsafe { &*std::ptr::from_ref(row).cast::<[[u8; 4]; LANES]>() };
        if v == 0 { isa.load_bf16_low(words) } else { isa.load_bf16_high(words) }
    }
}

impl Weight for F16 {
    const FORMAT: WeightFormat = WeightFormat::F16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, row: &[F16; PANEL], v: usize) -> I::V {
        // SAFETY: `F16` is a transparent u16.
        let row = unsafe { &*std::ptr::from_ref(row).cast::<[u16; PANEL]>() };
        isa.load_f16(&row.as_chunks::<LANES>().0[v])
    }
}

/// Which inputs a product visits, in blocks.
pub(crate) trait Steps: Copy {
    /// Rows of weights that are fetched ahead of time; 0 leaves it to the processor.
    const AHEAD: usize;
    /// .. in tiles of at least this many tokens, half as many if a row of weights is one cache line (16 bits): from there on
    /// arithmetic takes about as long as memory, and the two must overlap.
    const AHEAD_FROM_TOKENS: usize;
    /// .. into the first level cache; else the second, which can wait for more lines at once.
    const AHEAD_NEAR: bool;
    /// Number of steps.
    fn len(self) -> usize;
    /// All inputs that are visited are smaller.
    fn end(self) -> usize;
    fn blocks(self) -> usize;
    /// The steps of block `b`.
    fn block(self, b: usize) -> Range<usize>;
    /// The input, that is the row of weights, that step `j` uses; it reads element `j` of the given tokens.
    ///
    /// # Safety
    /// `j` must be a step of some block.
    unsafe fn input(self, j: usize) -> usize;
    /// The same for a step that may lie beyond the last.
    fn input_ahead(self, j: usize) -> usize;
}

/// All inputs.
#[derive(Clone, Copy)]
pub(crate) struct Dense {
    pub inputs: usize,
}

impl Steps for Dense {
    const AHEAD: usize = 40;
    const AHEAD_FROM_TOKENS: usize = 5;
    const AHEAD_NEAR: bool = true;
    #[inline(always)]
    fn len(self) -> usize {
        self.inputs
    }
    #[inline(always)]
    fn end(self) -> usize {
        self.inputs
    }
    #[inline(always)]
    fn blocks(self) -> usize {
        self.inputs.div_ceil(BLOCK)
    }
    #[inline(always)]
    fn block(self, b: usize) -> Range<usize> {
        b * BLOCK..self.inputs.min((b + 1) * BLOCK)
    }
    #[inline(always)]
    unsafe fn input(self, j: usize) -> usize {
        j
    }
    #[inline(always)]
    fn input_ahead(self, j: usize) -> usize {
        j
    }
}

/// Lists of the inputs that are not zero in all tokens; kept to be filled again.
#[derive(Default)]
pub(crate) struct Picks {
    /// Ascending.
    inputs: Vec<u32>,
    /// For every block of 64 that has any, the end of its part of `inputs`.
    ends: Vec<u32>,
}

impl Picks {
    /// Lists the inputs that are not zero in all of the `n` tokens of `x`, `[n][width]`. Gives up, returning None, when there
    /// are more than `most`.
    pub(crate) fn find(&mut self, x: &[f32], n: usize, width: usize, most: usize) -> Option<Picked<'_>> {
        let Picks { inputs, ends } = self;
        ends.clear();
        ends.reserve(width.div_ceil(BLOCK));
        // Without branches on the data: which inputs are zero cannot be foretold.
        inputs.resize(width, 0);
        let mut count = 0;
        for block in (0..width).step_by(BLOCK) {
            let before = count;
            let here = block..width.min(block + BLOCK);
            let mut wanted = [false; BLOCK];
            for t in 0..n {
                let x = &x[t * width..][here.clone()];
                wanted.iter_mut().zip(x).for_each(|(wanted, &x)| *wanted |= x != 0.0);
            }
            for (i, wanted) in here.zip(wanted) {
                inputs[count] = i as u32;
                count += usize::from(wanted);
            }
            if count > before {
                ends.push(count as u32);
            }
            if count > most {
                return None;
            }
        }
        inputs.truncate(count);
        Some(Picked { inputs, ends })
    }
}

/// What `Picks::find` found; the fields are private, so that the steps are known to be right.
#[derive(Clone, Copy)]
pub(crate) struct Picked<'a> {
    inputs: &'a [u32],
    ends: &'a [u32],
}

impl Picked<'_> {
    /// Copies the picked elements of `from`.
    pub(crate) fn gather(&self, from: &[f32], to: &mut [f32]) {
        for (to, &i) in to.iter_mut().zip(self.inputs) {
            *to = from[i as usize];
        }
    }
}

impl Steps for Picked<'_> {
    const AHEAD: usize = 24;
    const AHEAD_FROM_TOKENS: usize = 1;
    const AHEAD_NEAR: bool = false;
    #[inline(always)]
    fn len(self) -> usize {
        self.inputs.len()
    }
    #[inline(always)]
    fn end(self) -> usize {
        self.inputs.last().map_or(0, |&i| i as usize + 1)
    }
    #[inline(always)]
    fn blocks(self) -> usize {
        self.ends.len()
    }
    #[inline(always)]
    fn block(self, b: usize) -> Range<usize> {
        let start = if b == 0 { 0 } else { self.ends[b - 1] };
        start as usize..self.ends[b] as usize
    }
    #[inline(always)]
    unsafe fn input(self, j: usize) -> usize {
        // SAFETY: steps of a block index `inputs`, by the caller's promise.
        unsafe { *self.inputs.get_unchecked(j) as usize }
    }
    #[inline(always)]
    fn input_ahead(self, j: usize) -> usize {
        self.inputs.get(j).map_or(0, |&i| i as usize)
    }
}

/// What a tile reads and adds to.
#[derive(Clone, Copy)]
pub(crate) struct Tile<W> {
    /// First weight: input 0 of the first panel.
    pub w: *const W,
    /// Distance between panels.
    pub panel: usize,
    pub x: *const f32,
    pub x_stride: usize,
    pub acc: *mut f32,
    pub acc_stride: usize,
}

/// What a tile without inputs leaves: zeros.
///
/// # Safety
/// `acc` must be valid to write for these panels, vectors and tokens.
#[inline(always)]
pub(crate) unsafe fn clear<I: Isa, const P: usize, const FIRST: usize, const V: usize, const T: usize>(
    isa: I,
    acc: *mut f32,
    stride: usize,
) {
    for p in 0..P {
        for t in 0..T {
            for v in 0..V {
                let at = acc.wrapping_add(t * stride + p * PANEL + (FIRST + v) * LANES);
                // SAFETY: the caller's promise.
                isa.store(isa.splat(0.0), unsafe { &mut *at.cast::<[f32; LANES]>() });
            }
        }
    }
}

/// `P` panels by `V` vectors, from `FIRST` on, by `T` tokens: adds the given blocks to `acc`, which counts as zero if `fresh`.
///
/// # Safety
/// For all panels, vectors, tokens and inputs visited, the pointers must be valid: `w` and `x` to read, `acc` to write.
#[allow(clippy::needless_range_loop)] // constant bounds over arrays that become registers
#[inline(always)]
pub(crate) unsafe fn tile<
    I: Isa,
    W: Weight,
    S: Steps,
    const P: usize,
    const FIRST: usize,
    const V: usize,
    const T: usize,
>(
    isa: I,
    a: Tile<W>,
    steps: S,
    blocks: Range<usize>,
    fresh: bool,
) {
    let prefetches = S::AHEAD > 0 && T >= (S::AHEAD_FROM_TOKENS * size_of::<W>()).div_ceil(4);
    let acc_at = |p: usize, t: usize, v: usize| {
        a.acc.wrapping_add(t * a.acc_stride + p * PANEL + (FIRST + v) * LANES).cast::<[f32; LANES]>()
    };
    if fresh && blocks.is_empty() {
        // SAFETY: `acc` is valid for these by the caller's promise.
        unsafe { clear::<I, P, FIRST, V, T>(isa, a.acc, a.acc_stride) };
    }
    let first = blocks.start;
    for b in blocks {
        let mut sum = [[[isa.splat(0.0); V]; T]; P];
        for j in steps.block(b) {
            // SAFETY: `j` is a step of block `b`.
            let input = unsafe { steps.input(j) };
            let ahead = if prefetches { steps.input_ahead(j + S::AHEAD) } else { 0 };
            for p in 0..P {
                let row = a.w.wrapping_add(p * a.panel + input * PANEL);
                if prefetches {
                    let next = a.w.wrapping_add(p * a.panel + ahead * PANEL);
                    let lines = (V * LANES * size_of::<W>()).div_ceil(64);
                    for line in 0..lines {
                        isa.prefetch(next.wrapping_byte_add((FIRST * lines + line) * 64), S::AHEAD_NEAR);
                    }
                }
                let mut w = [isa.splat(0.0); V];
                for v in 0..V {
                    // SAFETY: `w` is valid for these by the caller's promise.
                    w[v] = W::load(isa, unsafe { &*row.cast() }, FIRST + v);
                }
                for t in 0..T {
                    // SAFETY: `x` is valid for these by the caller's promise.
                    let x = isa.splat(unsafe { *a.x.add(t * a.x_stride + j) });
                    for v in 0..V {
                        sum[p][t][v] = isa.fma(w[v], x, sum[p][t][v]);
                    }
                }
            }
        }
        // Not kept in registers between blocks: those are for `sum`.
        for p in 0..P {
            for t in 0..T {
                for v in 0..V {
                    // SAFETY: `acc` is valid for these by the caller's promise.
                    let at = unsafe { &mut *acc_at(p, t, v) };
                    let acc = if fresh && b == first { isa.splat(0.0) } else { isa.load(at) };
                    isa.store(isa.add(acc, sum[p][t][v]), at);
                }
            }
        }
    }
}
