//! Products of packed weights on a [`Cpu`]: what is prepared before them, and how threads share them.

use crate::cpu::{Cpu, SMALL_ROWS, check};
use crate::matmul::{self, Blocked, Product, STREAM_TOKENS, Stream};
use crate::pack::{Outliers, PANEL};
use crate::qmatmul::{Dots, Encode, code_stride};
use crate::qtile::{BLOCK, Codes, grow};
use crate::shared::SharedMut;
use crate::tile::{Dense, Picks, Steps};
use crate::{Level, Matrix};
use std::ops::Range;

/// Work smaller than this (some 5 to 10 microseconds) stays on the calling thread: weights times tokens.
const SMALL_PRODUCT: usize = 128 << 10;
/// Bytes multiply this much faster than floating point.
const BYTE_SPEED: usize = 4;
/// Panels that one task of a streamed product takes at least, so that the kernel can run them side by side.
const PANELS_AT_ONCE: usize = 4;
/// Zeros are skipped if no more than this share of the inputs is left: rows that lie apart are read from memory at a third of the
/// speed by one thread, which several together make up for. Where arithmetic takes longer than memory, nearly any share pays.
const SPARSE_SHARE_ALONE: (usize, usize) = (1, 3);
const SPARSE_SHARE: (usize, usize) = (1, 2);
const SPARSE_SHARE_BUSY: (usize, usize) = (3, 4);

/// One of several products that are computed side by side.
pub struct Linear<'a> {
    /// `[outputs, inputs]`.
    pub w: &'a Matrix,
    /// `[n][inputs]`.
    pub x: &'a [f32],
    /// `[n][outputs]`, written.
    pub y: &'a mut [f32],
}

/// Buffers that a product prepares its inputs in.
#[derive(Default)]
pub(crate) struct Scratch {
    x: Vec<f32>,
    picks: Picks,
    codes: Codes,
}

impl Cpu {
    /// `y[n][outputs] = x[n][inputs] . W^T`. The bits of a token's outputs depend on its inputs and the weights only.
    pub fn matmul(&self, w: &Matrix, x: &[f32], n: usize, y: &mut [f32]) {
        self.matmuls(n, [Linear { w, x, y }]);
    }

    /// Several products at once, for which threads need to meet only once. The same bits as one after another.
    pub fn matmuls<const K: usize>(&self, n: usize, products: [Linear<'_>; K]) {
        products.iter().for_each(|p| check_product(p.w, p.x, n, p.y));
        if n == 0 {
            return;
        }
        if n > STREAM_TOKENS {
            return products.into_iter().for_each(|p| self.many(p, n));
        }
        let mut scratches: [Scratch; K] = std::array::from_fn(|_| self.take_scratch());
        let mut parts = products.into_iter().zip(&mut scratches);
        let prepared: [Prepared<'_>; K] = std::array::from_fn(|_| {
            let (product, scratch) = parts.next().expect("as many scratches as products");
            self.prepare(product, n, scratch)
        });
        self.run_prepared(&prepared);
        scratches.into_iter().for_each(|scratch| self.give_scratch(scratch));
    }

    /// The product of [`Cpu::matmul`], to the bit, faster if many inputs are zero in all of up to 8 tokens: their weights are not read.
    pub fn matmul_sparse(&self, w: &Matrix, x: &[f32], n: usize, y: &mut [f32]) {
        check_product(w, x, n, y);
        if n == 0 || n > STREAM_TOKENS || w.inputs() == 0 || w.format().is_quantized() {
            return self.matmul(w, x, n, y);
        }
        let mut scratch = self.take_scratch();
        let Scratch { x: gathered, picks, .. } = &mut scratch;
        let width = w.inputs();
        let busy = n > STREAM_TOKENS / 2 && w.format().bits_per_weight() <= 16.0;
        let share = match self.threads() {
            _ if busy => SPARSE_SHARE_BUSY,
            1 => SPARSE_SHARE_ALONE,
            _ => SPARSE_SHARE,
        };
        if let Some(picked) = picks.find(x, n, width, width * share.0 / share.1) {
            let stride = matmul::stream_stride(picked.len());
            grow(gathered, n * stride);
            for (from, to) in x.chunks_exact(width).zip(gathered.chunks_exact_mut(stride)) {
                picked.gather(from, to);
            }
            let (x, y) = (&gathered[..n * stride], &SharedMut::new(y));
            let work = w.outputs() * picked.len() * n;
            self.split(panels(w), PANELS_AT_ONCE, work < SMALL_PRODUCT, &|panels| {
                let product = Product { w, x, x_stride: stride, n, steps: picked, fresh: true, y, panels };
                self.level().dispatch(Stream(product));
            });
        } else {
            self.matmul(w, x, n, y);
        }
        self.give_scratch(scratch);
    }

    /// Lays out the inputs of up to 8 tokens as the kernels read them.
    fn prepare<'a>(&self, product: Linear<'a>, n: usize, scratch: &'a mut Scratch) -> Prepared<'a> {
        let Linear { w, x, y } = product;
        let y = SharedMut::new(y);
        if w.format().is_quantized() {
            let Scratch { x: gathered, codes, .. } = scratch;
            self.encode(w, x, n, codes);
            let outliers = w.outliers().map(|outliers| gather(outliers, x, w.inputs(), n, gathered));
            return Prepared { w, n, y, x: Inputs::Codes { codes, outliers } };
        }
        let (width, stride) = (w.inputs(), matmul::stream_stride(w.inputs()));
        if n == 1 || matmul::streams_as_is(width) {
            return Prepared { w, n, y, x: Inputs::Floats { x, stride: width } };
        }
        grow(&mut scratch.x, n * stride);
        for (from, to) in x.chunks_exact(width.max(1)).zip(scratch.x.chunks_exact_mut(stride)) {
            to[..width].copy_from_slice(from);
        }
        Prepared { w, n, y, x: Inputs::Floats { x: &scratch.x[..n * stride], stride } }
    }

    fn run_prepared(&self, products: &[Prepared<'_>]) {
        let count = products.iter().map(|p| panels(p.w)).sum();
        let small = products.iter().map(Prepared::work).sum::<usize>() < SMALL_PRODUCT;
        self.split(count, PANELS_AT_ONCE, small, &|range| {
            let mut first = 0;
            for product in products {
                let end = first + panels(product.w);
                let here = range.start.max(first)..range.end.min(end);
                if !here.is_empty() {
                    product.run(self.level(), here.start - first..here.end - first);
                }
                first = end;
            }
        });
    }

    /// Turns activations into integers.
    fn encode(&self, w: &Matrix, x: &[f32], n: usize, to: &mut Codes) {
        let width = w.inputs();
        to.prepare(n, width.div_ceil(BLOCK), code_stride(width));
        let Codes { codes, scales, sums } = to;
        let (codes, scales, sums) = (&SharedMut::new(codes), &SharedMut::new(scales), &SharedMut::new(sums));
        let outliers = w.outliers().map_or(&[] as &[u32], |o| &o.inputs);
        self.split(n, 1, x.len() < SMALL_ROWS, &|tokens| {
            self.level().dispatch(Encode { x, width, outliers, tokens, codes, scales, sums });
        });
    }

    /// A product with more than 8 tokens.
    fn many(&self, product: Linear<'_>, n: usize) {
        let Linear { w, x, y } = product;
        let (width, outputs) = (w.inputs(), w.outputs());
        let mut scratch = self.take_scratch();
        let small = outputs * width * n < SMALL_PRODUCT;
        if w.format().is_quantized() {
            let Scratch { codes, x: gathered, .. } = &mut scratch;
            self.encode(w, x, n, codes);
            let to = &SharedMut::new(y);
            self.split(panels(w), 1, small, &|panels| {
                self.level().dispatch_dot(Dots { w, x: codes, n, y: to, panels });
            });
            if let Some(outliers) = w.outliers() {
                let columns = &outliers.columns;
                let (x, stride) = gather(outliers, x, width, n, gathered);
                // A few columns: they stream, some tokens at a time.
                for (x, y) in x.chunks(STREAM_TOKENS * stride).zip(y.chunks_mut((STREAM_TOKENS * outputs).max(1))) {
                    let (n, y) = (y.len() / outputs, &SharedMut::new(y));
                    self.split(panels(w), PANELS_AT_ONCE, small, &|panels| {
                        let steps = Dense { inputs: columns.inputs() };
                        let product = Product { w: columns, x, x_stride: stride, n, steps, fresh: false, y, panels };
                        self.level().dispatch(Stream(product));
                    });
                }
            }
        } else {
            let len = matmul::blocked_len(width, n);
            grow(&mut scratch.x, len);
            let to = &SharedMut::new(&mut scratch.x[..len]);
            self.split(n, 1, x.len() < SMALL_ROWS, &|tokens| {
                for t in tokens {
                    matmul::copy_blocked(&x[t * width..(t + 1) * width], n, t, to);
                }
            });
            let (x, y) = (&scratch.x[..len], &SharedMut::new(y));
            self.split(panels(w), 1, small, &|panels| {
                let steps = Dense { inputs: width };
                self.level().dispatch(Blocked(Product { w, x, x_stride: 0, n, steps, fresh: true, y, panels }));
            });
        }
        self.give_scratch(scratch);
    }
}

/// A product of up to 8 tokens whose inputs are ready.
struct Prepared<'a> {
    w: &'a Matrix,
    n: usize,
    y: SharedMut<'a, f32>,
    x: Inputs<'a>,
}

enum Inputs<'a> {
    /// Row `t` starts at `t * stride`.
    Floats { x: &'a [f32], stride: usize },
    /// With the inputs of outlier columns, and the distance between tokens.
    Codes { codes: &'a Codes, outliers: Option<(&'a [f32], usize)> },
}

impl Prepared<'_> {
    /// How long it takes.
    fn work(&self) -> usize {
        let work = self.w.outputs() * self.w.inputs() * self.n;
        if matches!(self.x, Inputs::Codes { .. }) { work / BYTE_SPEED } else { work }
    }

    /// Some panels of the outputs.
    fn run(&self, level: Level, panels: Range<usize>) {
        let Prepared { w, n, ref y, ref x } = *self;
        match *x {
            Inputs::Floats { x, stride } => {
                let steps = Dense { inputs: w.inputs() };
                level.dispatch(Stream(Product { w, x, x_stride: stride, n, steps, fresh: true, y, panels }));
            }
            Inputs::Codes { codes, outliers } => {
                level.dispatch_dot(Dots { w, x: codes, n, y, panels: panels.clone() });
                if let (Some((x, x_stride)), Some(Outliers { columns, .. })) = (outliers, w.outliers()) {
                    let steps = Dense { inputs: columns.inputs() };
                    level.dispatch(Stream(Product { w: columns, x, x_stride, n, steps, fresh: false, y, panels }));
                }
            }
        }
    }
}

fn panels(w: &Matrix) -> usize {
    w.outputs().div_ceil(PANEL)
}

/// Collects the inputs of outlier columns, `[n][stride]`.
fn gather<'a>(outliers: &Outliers, x: &[f32], width: usize, n: usize, to: &'a mut Vec<f32>) -> (&'a [f32], usize) {
    let stride = matmul::stream_stride(outliers.inputs.len());
    grow(to, n * stride);
    for (from, to) in x.chunks_exact(width).zip(to.chunks_exact_mut(stride)) {
        to.iter_mut().zip(&outliers.inputs).for_each(|(to, &i)| *to = from[i as usize]);
    }
    (&to[..n * stride], stride)
}

#[track_caller]
fn check_product(w: &Matrix, x: &[f32], n: usize, y: &[f32]) {
    check("matmul", &[("x", x.len(), n * w.inputs()), ("y", y.len(), n * w.outputs())]);
}
