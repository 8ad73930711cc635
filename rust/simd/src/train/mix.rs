//! Token shift and mix, forward and backward.

use super::{Element, Item, Kernel, LANES, Lanes, SeqDims, Shared, fma, load, run_items, sum_rows};

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
