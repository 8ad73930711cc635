//! Products of packed weights with one or many tokens.
//!
//! The definition, which every path follows to the bit: an output is `acc`, where `acc` starts at +0.0 and `acc = acc + sum`
//! for each block of 64 inputs in ascending order; a block's `sum` starts at +0.0 and is the chain
//! `sum = fma(weight, input, sum)` over its inputs in ascending order.
//!
//! Lanes are different outputs, tokens have their own sums, threads share out the outputs: none of them changes the order.
//! An input that is zero may be skipped, because `fma(w, 0, sum)` is `sum` up to the sign of a zero sum, and adding a zero of
//! either sign to `acc` is the same, `acc` never being -0.0.
//!
//! Two loops use one tile kernel: `stream` for up to 8 tokens reads every weight once, several panels side by side, so that
//! there are enough independent chains; `blocked` for more tokens keeps a chunk of all tokens' inputs in the second
//! level cache.

use crate::pack::PANEL;
use crate::shared::SharedMut;
use crate::tile::{Bf16, Dense, F16, Steps, Tile, Weight, tile};
use crate::{Isa, LANES, Matrix, Op, WeightFormat};
use std::ops::Range;

/// Up to this many tokens are multiplied while the weights stream by.
pub(crate) const STREAM_TOKENS: usize = 8;
/// Inputs of all tokens that `blocked` works on at a time.
const CHUNK: usize = 256;
/// Tokens' inputs in a chunk lie this far apart: an odd number of cache lines, so that they spread over the cache's sets.
const CHUNK_STRIDE: usize = CHUNK + LANES;

/// Where tokens' inputs lie so that tiles read them fast: row `t` starts at `t * stride`.
pub(crate) fn stream_stride(width: usize) -> usize {
    (width.div_ceil(LANES) | 1) * LANES
}

/// Whether tokens that lie one after another are read as fast. They are not if all of them fall on one or two sets of the cache's 64.
pub(crate) fn streams_as_is(width: usize) -> bool {
    width.is_multiple_of(LANES) && !width.is_multiple_of(32 * LANES)
}

/// Length of the copy of `n` tokens that `blocked` reads: `[chunks][n][CHUNK_STRIDE]`.
pub(crate) fn blocked_len(width: usize, n: usize) -> usize {
    width.div_ceil(CHUNK) * n * CHUNK_STRIDE
}

/// Copies token `t` of `n` into the layout of `blocked`.
pub(crate) fn copy_blocked(x: &[f32], n: usize, t: usize, to: &SharedMut<'_, f32>) {
    for (chunk, part) in x.chunks(CHUNK).enumerate() {
        let at = (chunk * n + t) * CHUNK_STRIDE;
        // SAFETY: each token has its own rows, and each token is copied by one task.
        unsafe { to.part(at..at + part.len()) }.copy_from_slice(part);
    }
}

/// Outputs of some panels for some tokens.
pub(crate) struct Product<'a, S> {
    pub w: &'a Matrix,
    pub x: &'a [f32],
    /// Distance between tokens in `x`; unused by `blocked`.
    pub x_stride: usize,
    pub n: usize,
    pub steps: S,
    /// Whether `y` counts as zero; else `stream` goes on from it.
    pub fresh: bool,
    pub y: &'a SharedMut<'a, f32>,
    /// Each panel belongs to one task only.
    pub panels: Range<usize>,
}

/// Up to 8 tokens: each weight is read once.
pub(crate) struct Stream<'a, S>(pub Product<'a, S>);
/// Any number of tokens, copied by `copy_blocked`.
pub(crate) struct Blocked<'a>(pub Product<'a, Dense>);

impl<S: Steps> Op for Stream<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.0.w.format() {
            WeightFormat::F32 => stream::<I, f32, S>(isa, self.0),
            WeightFormat::Bf16 => stream::<I, Bf16, S>(isa, self.0),
            WeightFormat::F16 => stream::<I, F16, S>(isa, self.0),
            WeightFormat::Q8 | WeightFormat::Q4 => unreachable!("integer weights have products of their own"),
        }
    }
}

impl Op for Blocked<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.0.w.format() {
            WeightFormat::F32 => blocked::<I, f32>(isa, self.0),
            WeightFormat::Bf16 => blocked::<I, Bf16>(isa, self.0),
            WeightFormat::F16 => blocked::<I, F16>(isa, self.0),
            WeightFormat::Q8 | WeightFormat::Q4 => unreachable!("integer weights have products of their own"),
        }
    }
}

/// Runs `$body` with the constant `$T` equal to `$t`.
macro_rules! with_tokens {
    ($t:expr, $T:ident, [$($k:literal)*], $body:expr) => {
        match $t {
            $($k => { const $T: usize = $k; $body })*
            other => unreachable!("a tile of {other} tokens"),
        }
    };
}

pub(crate) use with_tokens;

/// Where the sums of one panel go: straight to `y`, or to `edge` if the outputs do not fill the panel.
pub(crate) struct Target<'a, 'b> {
    pub y: &'a SharedMut<'b, f32>,
    pub outputs: usize,
    pub panel: usize,
}

/// Sums of a panel that is not full: `[tokens][PANEL]`.
pub(crate) type Edge = [[f32; PANEL]; MAX_TILE];
/// Most tokens in one tile.
pub(crate) const MAX_TILE: usize = 12;

impl Target<'_, '_> {
    fn width(&self) -> usize {
        PANEL.min(self.outputs - self.panel * PANEL)
    }

    /// Address and stride of the sums of tokens `first..`.
    #[inline(always)]
    pub(crate) fn sums(&self, edge: &mut Edge, first: usize) -> (*mut f32, usize) {
        if self.width() == PANEL {
            (self.y.start().wrapping_add(first * self.outputs + self.panel * PANEL), self.outputs)
        } else {
            (edge.as_mut_ptr().cast(), PANEL)
        }
    }

    /// Columns of this panel in token `t`.
    fn row(&self, t: usize) -> Range<usize> {
        let start = t * self.outputs + self.panel * PANEL;
        start..start + self.width()
    }

    /// Before a tile: takes earlier sums of `tokens` into `edge`.
    pub(crate) fn take(&self, edge: &mut Edge, tokens: Range<usize>) {
        if self.width() < PANEL {
            for (edge, t) in edge.iter_mut().zip(tokens) {
                // SAFETY: the panel belongs to this task, and no other part of it is alive.
                edge[..self.width()].copy_from_slice(unsafe { self.y.part(self.row(t)) });
            }
        }
    }

    /// After a tile: gives the sums of `tokens` back.
    pub(crate) fn give(&self, edge: &Edge, tokens: Range<usize>) {
        if self.width() < PANEL {
            for (edge, t) in edge.iter().zip(tokens) {
                // SAFETY: as in `take`.
                unsafe { self.y.part(self.row(t)) }.copy_from_slice(&edge[..self.width()]);
            }
        }
    }
}

#[inline(always)]
fn stream<I: Isa, W: Weight, S: Steps>(isa: I, a: Product<'_, S>) {
    let (n, outputs, inputs) = (a.n, a.w.outputs(), a.w.inputs());
    let weights = a.w.weights::<W>();
    let size = PANEL * inputs;
    // These cover everything that the tiles below touch.
    assert!((1..=STREAM_TOKENS).contains(&n) && a.y.len() == n * outputs);
    assert!(a.panels.end <= outputs.div_ceil(PANEL) && a.panels.end * size <= weights.len());
    assert!(a.steps.end() <= inputs);
    assert!(a.steps.len() <= a.x_stride && (n - 1) * a.x_stride + a.steps.len() <= a.x.len());
    let tile_at = |panel: usize, acc: (*mut f32, usize)| Tile {
        w: weights.as_ptr().wrapping_add(panel * size),
        panel: size,
        x: a.x.as_ptr(),
        x_stride: a.x_stride,
        acc: acc.0,
        acc_stride: acc.1,
    };
    let blocks = a.steps.blocks();
    let full = a.panels.end.min(outputs / PANEL);
    let mut panel = a.panels.start;

    // Several panels at once as long as the registers last: one panel has too few independent sums to keep the multipliers busy.
    macro_rules! several {
        ($($t:literal: $p:literal),*) => {
            match n {
                $($t => for _ in 0..full.saturating_sub(panel) / $p {
                    let to = tile_at(panel, (a.y.start().wrapping_add(panel * PANEL), outputs));
                    // SAFETY: these panels are full and belong to this task; the sizes have been checked above.
                    unsafe { tile::<I, W, S, $p, 0, 2, $t>(isa, to, a.steps, 0..blocks, a.fresh) };
                    panel += $p;
                },)*
                _ => (),
            }
        };
    }
    if I::TILE_VECTORS == 2 {
        several!(1: 4, 2: 4);
    } else {
        several!(1: 2, 2: 1);
    }

    let mut edge: Edge = [[0.0; PANEL]; MAX_TILE];
    for panel in panel..a.panels.end {
        let target = Target { y: a.y, outputs, panel };
        if !a.fresh {
            target.take(&mut edge, 0..n);
        }
        let to = tile_at(panel, target.sums(&mut edge, 0));
        if I::TILE_VECTORS == 2 {
            // SAFETY: one panel of this task, full or summed up in `edge`; the sizes have been checked above.
            with_tokens!(n, T, [1 2 3 4 5 6 7 8], unsafe { tile::<I, W, S, 1, 0, 2, T>(isa, to, a.steps, 0..blocks, a.fresh) });
        } else {
            // Block by block, while its weights are in the first level cache.
            for b in 0..blocks.max(1) {
                // SAFETY: as above.
                unsafe { tile_halves::<I, W, S>(isa, to, a.steps, b..blocks.min(b + 1), n, a.fresh && b == 0) };
            }
        }
        target.give(&edge, 0..n);
    }
}

/// One panel where the registers do not hold all sums of `n` tokens: half a panel and a few tokens at a time.
///
/// # Safety
/// As for `tile` with one panel, two vectors and `n` tokens.
#[inline(always)]
unsafe fn tile_halves<I: Isa, W: Weight, S: Steps>(
    isa: I,
    to: Tile<W>,
    steps: S,
    blocks: Range<usize>,
    n: usize,
    fresh: bool,
) {
    let parts = n.div_ceil(I::TILE_TOKENS);
    for part in 0..parts {
        let (start, end) = (part * n / parts, (part + 1) * n / parts);
        let to =
            Tile { x: to.x.wrapping_add(start * to.x_stride), acc: to.acc.wrapping_add(start * to.acc_stride), ..to };
        let blocks = || blocks.clone();
        // SAFETY: a part of what the caller vouches for.
        with_tokens!(end - start, T, [1 2 3 4 5 6], unsafe {
            tile::<I, W, S, 1, 0, 1, T>(isa, to, steps, blocks(), fresh);
            tile::<I, W, S, 1, 1, 1, T>(isa, to, steps, blocks(), fresh);
        });
    }
}

#[inline(always)]
fn blocked<I: Isa, W: Weight>(isa: I, a: Product<'_, Dense>) {
    let (n, outputs, inputs) = (a.n, a.w.outputs(), a.w.inputs());
    let weights = a.w.weights::<W>();
    let size = PANEL * inputs;
    assert!(n >= 1 && a.y.len() == n * outputs && a.x.len() == blocked_len(inputs, n));
    assert!(a.panels.end <= outputs.div_ceil(PANEL) && a.panels.end * size <= weights.len());
    // Tiles of nearly equal size, so that none is too small to be fast.
    let tiles = n.div_ceil(I::TILE_TOKENS);
    let mut edge: Edge = [[0.0; PANEL]; MAX_TILE];
    for chunk in 0..inputs.div_ceil(CHUNK).max(1) {
        let steps = Dense { inputs: CHUNK.min(inputs - chunk * CHUNK) };
        for panel in a.panels.clone() {
            let target = Target { y: a.y, outputs, panel };
            for i in 0..tiles {
                let tokens = i * n / tiles..(i + 1) * n / tiles;
                target.take(&mut edge, tokens.clone());
                let (acc, acc_stride) = target.sums(&mut edge, tokens.start);
                let to = Tile {
                    w: weights.as_ptr().wrapping_add(panel * size + chunk * CHUNK * PANEL),
                    panel: size,
                    x: a.x.as_ptr().wrapping_add((chunk * n + tokens.start) * CHUNK_STRIDE),
                    x_stride: CHUNK_STRIDE,
                    acc,
                    acc_stride,
                };
                // SAFETY: a panel of this task, and a chunk and tokens inside the copy; the sizes have been checked above.
                unsafe { blocked_tile::<I, W>(isa, to, steps, tokens.len(), chunk == 0) };
                target.give(&edge, tokens);
            }
        }
    }
}

/// One panel, one chunk, one tile's tokens.
///
/// # Safety
/// As for `tile` with one panel, two vectors and `n` tokens.
#[inline(always)]
unsafe fn blocked_tile<I: Isa, W: Weight>(isa: I, to: Tile<W>, steps: Dense, n: usize, fresh: bool) {
    let blocks = 0..steps.blocks();
    macro_rules! whole {
        ([$($k:literal)*]) => {
            // SAFETY: what the caller vouches for.
            with_tokens!(n, T, [$($k)*], unsafe { tile::<I, W, Dense, 1, 0, 2, T>(isa, to, steps, blocks, fresh) })
        };
    }
    macro_rules! halves {
        ([$($k:literal)*]) => {
            // SAFETY: as above.
            with_tokens!(n, T, [$($k)*], unsafe {
                tile::<I, W, Dense, 1, 0, 1, T>(isa, to, steps, blocks.clone(), fresh);
                tile::<I, W, Dense, 1, 1, 1, T>(isa, to, steps, blocks, fresh);
            })
        };
    }
    match (I::TILE_VECTORS, I::TILE_TOKENS) {
        (2, 12) => whole!([1 2 3 4 5 6 7 8 9 10 11 12]),
        (1, 6) => halves!([1 2 3 4 5 6]),
        (1, 4) => halves!([1 2 3 4]),
        other => unreachable!("no tiles of {other:?} vectors and tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_same_bits};
    use crate::tile::BLOCK;
    use crate::{Cpu, Level, Linear, for_each_isa};

    const FORMATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16];

    /// The definition at the head of this file, one number at a time.
    fn naive_matmul(w: &Matrix, x: &[f32], n: usize) -> Vec<f32> {
        let (inputs, outputs) = (w.inputs(), w.outputs());
        let (mut y, mut row) = (vec![f32::NAN; n * outputs], vec![0.0; inputs]);
        for o in 0..outputs {
            w.row_to_f32(o, &mut row);
            for t in 0..n {
                let mut acc = 0.0;
                for (w, x) in row.chunks(BLOCK).zip(x[t * inputs..(t + 1) * inputs].chunks(BLOCK)) {
                    acc += w.iter().zip(x).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum));
                }
                y[t * outputs + o] = acc;
            }
        }
        y
    }

    fn random_matrix(rng: &mut Rng, outputs: usize, inputs: usize, format: WeightFormat) -> Matrix {
        let values = rng.vec(outputs * inputs);
        let cpu = Cpu::new(Level::best(), 1);
        Matrix::pack(outputs, inputs, format, &cpu, |o, row| row.copy_from_slice(&values[o * inputs..(o + 1) * inputs]))
    }

    /// Both products, written over NaN.
    fn check(cpu: &Cpu, w: &Matrix, x: &[f32], n: usize, wanted: &[f32]) {
        let what =
            format!("{} x{} {:?} {}x{} n={n}", cpu.level().name(), cpu.threads(), w.format(), w.outputs(), w.inputs());
        let mut y = vec![f32::NAN; wanted.len()];
        cpu.matmul(w, x, n, &mut y);
        assert_same_bits(&y, wanted, &what);
        y.fill(f32::NAN);
        cpu.matmul_sparse(w, x, n, &mut y);
        assert_same_bits(&y, wanted, &format!("sparse {what}"));
    }

    fn check_shapes(shapes: &[(usize, usize)], counts: &[usize], threads: &[usize]) {
        let cpus: Vec<Cpu> =
            Level::available().into_iter().flat_map(|l| threads.iter().map(move |&t| Cpu::new(l, t))).collect();
        let mut rng = Rng(19);
        for &(outputs, inputs) in shapes {
            for format in FORMATS {
                let w = random_matrix(&mut rng, outputs, inputs, format);
                let most = counts.iter().copied().max().unwrap_or(0);
                let x = rng.vec(most * inputs);
                let wanted = naive_matmul(&w, &x, most);
                for cpu in &cpus {
                    for &n in counts {
                        check(cpu, &w, &x[..n * inputs], n, &wanted[..n * outputs]);
                    }
                }
            }
        }
    }

    #[test]
    fn same_bits_for_every_count_of_tokens_format_thread_count_and_instruction_set() {
        if cfg!(miri) {
            return check_shapes(&[(33, 65)], &[1, 3, 9], &[2]);
        }
        let counts: Vec<usize> = (1..=16).chain([33, 128]).collect();
        check_shapes(&[(130, 200), (64, 64)], &counts, &[1, 2, 4]);
    }

    #[test]
    fn same_bits_at_odd_sizes() {
        let lengths: &[usize] = if cfg!(miri) { &[0, 17] } else { &[0, 1, 15, 16, 17, 31, 32, 33, 63, 65] };
        let shapes: Vec<(usize, usize)> = lengths.iter().flat_map(|&o| lengths.iter().map(move |&i| (o, i))).collect();
        check_shapes(&shapes, if cfg!(miri) { &[1, 9] } else { &[0, 1, 2, 5, 8, 13] }, &[1]);
    }

    #[test]
    fn same_bits_over_several_chunks_and_panel_groups() {
        if !cfg!(miri) {
            check_shapes(&[(417, 777)], &[1, 2, 3, 4, 7, 8, 30], &[1, 2, 4]);
        }
    }

    /// Inputs of which about `share` in eight are zero in all tokens, of either sign, and more in single tokens.
    fn sparse_inputs(rng: &mut Rng, n: usize, inputs: usize, share: u32) -> Vec<f32> {
        let mut x = rng.vec(n * inputs);
        for i in 0..inputs {
            let all = rng.next_u32() % 8 < share || (128..256).contains(&i);
            for t in 0..n {
                if all || rng.next_u32().is_multiple_of(8) {
                    x[t * inputs + i] = if rng.next_u32() & 1 == 0 { 0.0 } else { -0.0 };
                }
            }
        }
        x
    }

    #[test]
    fn skipping_zeros_changes_no_bit() {
        let mut rng = Rng(23);
        let (outputs, inputs) = if cfg!(miri) { (33, 130) } else { (417, 700) };
        for format in FORMATS {
            let w = random_matrix(&mut rng, outputs, inputs, format);
            for share in [0, 4, 7, 8] {
                for n in if cfg!(miri) { vec![1, 2] } else { vec![1, 2, 3, 4, 5, 8, 9] } {
                    let x = sparse_inputs(&mut rng, n, inputs, share);
                    let wanted = naive_matmul(&w, &x, n);
                    for_each_isa(|level| check(&Cpu::new(level, 2), &w, &x, n, &wanted));
                }
            }
        }
    }

    #[test]
    fn skipping_zeros_changes_no_bit_when_products_underflow() {
        // Blocks whose sum underflows to -0.0, met or followed by zeros of both signs.
        let tiny = f32::from_bits(1);
        let (outputs, inputs) = (40, 130);
        let cpu = Cpu::new(Level::best(), 1);
        let w = Matrix::pack(outputs, inputs, WeightFormat::F32, &cpu, |o, row| {
            for (i, w) in row.iter_mut().enumerate() {
                *w = if (o + i) % 3 == 0 { -0.25 } else { 0.25 };
            }
        });
        for n in [1, 2, 4] {
            let x: Vec<f32> = (0..n * inputs)
                .map(|i| {
                    [0.0, -0.0, tiny, -tiny, 0.0, 0.0, -0.0][(i % inputs) * 5 % 7 * usize::from(i % inputs % 16 == 3)]
                })
                .collect();
            let wanted = naive_matmul(&w, &x, n);
            for_each_isa(|level| check(&Cpu::new(level, 1), &w, &x, n, &wanted));
        }
    }

    #[test]
    fn products_side_by_side_give_the_same_bits_as_alone() {
        let mut rng = Rng(28);
        let all = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8, WeightFormat::Q4];
        let ws = all.map(|format| random_matrix(&mut rng, 150, 70, format));
        for threads in [1, 2, 4] {
            let cpu = Cpu::new(Level::best(), threads);
            for n in [0, 1, 3, 8, 12] {
                let xs = all.map(|_| rng.vec(n * 70));
                let [mut a, mut b, mut c, mut d] = all.map(|_| vec![f32::NAN; n * 150]);
                let [wa, wb, wc, wd] = &ws;
                let [xa, xb, xc, xd] = &xs;
                cpu.matmuls(
                    n,
                    [
                        Linear { w: wa, x: xa, y: &mut a },
                        Linear { w: wb, x: xb, y: &mut b },
                        Linear { w: wc, x: xc, y: &mut c },
                        Linear { w: wd, x: xd, y: &mut d },
                    ],
                );
                for ((w, x), y) in ws.iter().zip(&xs).zip([a, b, c, d]) {
                    let mut alone = vec![f32::NAN; n * 150];
                    Cpu::new(Level::best(), 1).matmul(w, x, n, &mut alone);
                    assert_same_bits(&y, &alone, "side by side");
                }
            }
        }
    }

    #[test]
    fn infinities_and_nan_in_the_inputs_are_kept() {
        let mut rng = Rng(29);
        let w = random_matrix(&mut rng, 40, 70, WeightFormat::F32);
        let mut x = vec![0.0; 2 * 70];
        (x[3], x[75]) = (f32::INFINITY, f32::NAN);
        let wanted = naive_matmul(&w, &x, 2);
        assert!(wanted[..40].iter().all(|v| v.is_infinite() || v.is_nan()) && wanted[40..].iter().all(|v| v.is_nan()));
        for_each_isa(|level| check(&Cpu::new(level, 1), &w, &x, 2, &wanted));
    }

    #[test]
    fn callers_on_several_threads_share_a_context() {
        let mut rng = Rng(31);
        let w = random_matrix(&mut rng, 300, 130, WeightFormat::F32);
        let x = rng.vec(12 * 130);
        let wanted = naive_matmul(&w, &x, 12);
        let cpu = Cpu::new(Level::best(), 2);
        std::thread::scope(|scope| {
            for n in [1, 3, 12] {
                let (cpu, w, x, wanted) = (&cpu, &w, &x, &wanted);
                scope.spawn(move || {
                    (0..if cfg!(miri) { 1 } else { 50 })
                        .for_each(|_| check(cpu, w, &x[..n * 130], n, &wanted[..n * 300]))
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "matmul: wrong length of `x`")]
    fn a_wrong_length_is_named() {
        let w = random_matrix(&mut Rng(1), 4, 4, WeightFormat::F32);
        Cpu::new(Level::best(), 1).matmul(&w, &[0.0; 3], 1, &mut [0.0; 4]);
    }
}
