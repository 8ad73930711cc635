//! Token shift and mix, forward and backward.

use super::{Element, Item, Kernel, Lanes, Run, SeqDims, load, run_items, store, sum_rows};
use crate::Isa;
use crate::shared::SharedMut;

/// Mixes that one token shift feeds: key, value, receptance.
const MAX_MIXES: usize = 3;

/// This item's channels of every mix; 0 beyond the last.
#[inline(always)]
fn load_mixes<I: Isa>(isa: I, mixes: &[&[f32]], item: Item) -> [I::V; MAX_MIXES] {
    let mut found = [isa.splat(0.0); MAX_MIXES];
    for (v, mix) in found.iter_mut().zip(mixes) {
        *v = load(isa, &mix[item.channels()]);
    }
    found
}

struct Forward<'a, T> {
    dims: SeqDims,
    x: &'a [f32],
    last: &'a [f32],
    mixes: &'a [&'a [f32]],
    out: Vec<SharedMut<'a, T>>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    fn scratch(&self) -> usize {
        0
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, _: &mut [Lanes]) {
        let mixes = load_mixes(isa, self.mixes, item);
        let mut before = load(isa, &self.last[item.membrane()]);
        for t in 0..self.dims.time {
            let x = load(isa, &self.x[item.token(t)]);
            for (out, &mix) in self.out.iter().zip(&mixes) {
                store(isa, out, item.token(t), isa.fma(mix, isa.sub(x, before), before));
            }
            before = x;
        }
    }
}

struct Backward<'a, T> {
    dims: SeqDims,
    x: &'a [f32],
    last: &'a [f32],
    mixes: &'a [&'a [f32]],
    gout: &'a [&'a [T]],
    gx: SharedMut<'a, f32>,
    glast: SharedMut<'a, f32>,
    /// One `[batch, channels]` per mix, summed over the batch afterwards.
    gmixes: Vec<SharedMut<'a, f32>>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    fn dims(&self) -> SeqDims {
        self.dims
    }

    fn scratch(&self) -> usize {
        0
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, item: Item, _: &mut [Lanes]) {
        let zero = isa.splat(0.0);
        let mixes = load_mixes(isa, self.mixes, item);
        let mut gmixes = [zero; MAX_MIXES];
        // What token t + 1 sends back to token t, its predecessor.
        let mut from_next = zero;
        for t in (0..self.dims.time).rev() {
            let x = load(isa, &self.x[item.token(t)]);
            let before = if t == 0 { &self.last[item.membrane()] } else { &self.x[item.token(t - 1)] };
            let change = isa.sub(x, load(isa, before));
            let mut gx = from_next;
            from_next = zero;
            for ((gout, &mix), gmix) in self.gout.iter().zip(&mixes).zip(&mut gmixes) {
                let g = load(isa, &gout[item.token(t)]);
                let own = isa.mul(g, mix);
                gx = isa.add(gx, own);
                from_next = isa.add(from_next, isa.sub(g, own));
                *gmix = isa.fma(g, change, *gmix);
            }
            store(isa, &self.gx, item.token(t), gx);
        }
        store(isa, &self.glast, item.membrane(), from_next);
        for (out, &gmix) in self.gmixes.iter().zip(&gmixes) {
            store(isa, out, item.membrane(), gmix);
        }
    }
}

/// Token shift and mix: `out[j] = mixes[j] * x + (1 - mixes[j]) * previous x`, for up to three mixes.
///
/// `x` and each `out` are `[batch, time, channels]`, each mix `[channels]`; `last` `[batch, channels]` precedes the
/// first token.
pub fn mix_forward<T: Element>(
    dims: SeqDims,
    x: &[f32],
    last: &[f32],
    mixes: &[&[f32]],
    out: &mut [&mut [T]],
    how: Run,
) {
    check(dims, x, last, mixes);
    assert!(out.len() == mixes.len() && out.iter().all(|o| o.len() == dims.len()), "out shape");
    let out = out.iter_mut().map(|o| SharedMut::new(o)).collect();
    run_items(&Forward { dims, x, last, mixes, out }, how);
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
    how: Run,
) {
    check(dims, x, last, mixes);
    assert!(gout.len() == mixes.len() && gout.iter().all(|g| g.len() == dims.len()), "gout shape");
    assert!(grads.x.len() == dims.len() && grads.last.len() == dims.rows(), "gx, glast shape");
    assert_eq!(grads.mixes.len(), mixes.len() * dims.channels, "gmixes is [mixes, channels]");
    let mut partial = vec![0.0; mixes.len() * dims.rows()];
    let kernel = Backward {
        dims,
        x,
        last,
        mixes,
        gout,
        gx: SharedMut::new(grads.x),
        glast: SharedMut::new(grads.last),
        gmixes: partial.chunks_exact_mut(dims.rows()).map(SharedMut::new).collect(),
    };
    run_items(&kernel, how);
    let sums = grads.mixes.chunks_exact_mut(dims.channels);
    for (sum, rows) in sums.zip(partial.chunks_exact(dims.rows())) {
        sum_rows(rows, sum);
    }
}

fn check(dims: SeqDims, x: &[f32], last: &[f32], mixes: &[&[f32]]) {
    assert!((1..=MAX_MIXES).contains(&mixes.len()), "one to three mixes");
    assert!(x.len() == dims.len() && last.len() == dims.rows(), "x, last shape");
    assert!(mixes.iter().all(|m| m.len() == dims.channels), "mix shape");
}

#[cfg(test)]
mod tests {
    use super::super::Bf16Bits;
    use super::super::sealed::Sealed;
    use super::super::tests::{SIZES, numbers, same_bits_everywhere};
    use super::*;

    #[test]
    fn forward_mixes_each_token_with_the_one_before() {
        for dims in SIZES {
            let (x, last) = (numbers(1, dims.len()), numbers(2, dims.rows()));
            let mixes = [numbers(3, dims.channels), numbers(4, dims.channels)];
            let mixes = [&mixes[0][..], &mixes[1][..]];
            let found = same_bits_everywhere(|how| {
                let mut out = [vec![f32::NAN; dims.len()], vec![f32::NAN; dims.len()]];
                let [a, b] = &mut out;
                mix_forward(dims, &x, &last, &mixes, &mut [&mut a[..], &mut b[..]], how);
                out.to_vec()
            });
            for (out, mix) in found.iter().zip(mixes) {
                for (i, found) in out.iter().enumerate() {
                    let (row, channel) = (i / dims.channels, i % dims.channels);
                    let before = match row % dims.time {
                        0 => last[row / dims.time * dims.channels + channel],
                        _ => x[i - dims.channels],
                    };
                    let expected = mix[channel] * x[i] + (1.0 - mix[channel]) * before;
                    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
                }
            }
            let mut narrow = vec![0; dims.len()];
            let how = Run { level: crate::Level::best(), threads: 1 };
            mix_forward(dims, &x, &last, &mixes[..1], &mut [&mut narrow[..]], how);
            let rounded: Vec<Bf16Bits> = found[0].iter().map(|&x| Bf16Bits::narrow(x)).collect();
            assert_eq!(narrow, rounded);
        }
    }

    #[test]
    fn backward_is_the_transpose_of_forward() {
        // The mix is linear in (x, last) and in its mix vector: for each, <forward(d), g> = <d, backward(g)>.
        let inner = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        for dims in SIZES {
            let (x, last, mix) = (numbers(1, dims.len()), numbers(2, dims.rows()), numbers(3, dims.channels));
            let gout = numbers(4, dims.len());
            let found = same_bits_everywhere(|how| {
                let mut gx = vec![f32::NAN; dims.len()];
                let mut glast = vec![f32::NAN; dims.rows()];
                let mut gmix = vec![f32::NAN; dims.channels];
                let grads = MixGrads { x: &mut gx, last: &mut glast, mixes: &mut gmix };
                mix_backward(dims, &x, &last, &[&mix], &[&gout], grads, how);
                vec![gx, glast, gmix]
            });
            let how = Run { level: crate::Level::best(), threads: 1 };
            let forward = |mix: &[f32]| {
                let mut out = vec![f32::NAN; dims.len()];
                mix_forward(dims, &x, &last, &[mix], &mut [&mut out[..]], how);
                inner(&out, &gout)
            };
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{a} {b}");
            close(forward(&mix), inner(&x, &found[0]) + inner(&last, &found[1]));
            let zero = vec![0.0; dims.channels];
            close(forward(&mix) - forward(&zero), inner(&mix, &found[2]));
        }
    }
}
