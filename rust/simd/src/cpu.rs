//! [`Cpu`]: an instruction set, threads, and every operation that models are made of.

use crate::buffer::Arena;
use crate::pool::Pool;
use crate::products::Scratch;
use crate::recurrence::{Lif, Sequences, Wkv4};
use crate::shared::SharedMut;
use crate::vecops::{Add, Binary, Heaviside, LayerNorm, Map, Map2, ReluSquared, Scale, SigmoidMul, TokenMix, Unary};
use crate::{LANES, Level};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Elements of an elementwise operation that take some 5 to 10 microseconds: fewer stay on the calling thread.
pub(crate) const SMALL_ROWS: usize = 32 << 10;
/// Tasks per thread: more than one, so that a thread held up by another process leaves its share to the others.
const TASKS_PER_THREAD: usize = 4;
/// Execution context: an instruction set and a pool of threads. Shared by all passes over a model, also from several threads at once.
///
/// Slices are row-major, `[tokens][width]`; their lengths are asserted. After the first few calls nothing allocates.
pub struct Cpu {
    level: Level,
    pool: Pool,
    arena: Arena,
    /// Buffers not in use; calls at the same time take different ones.
    scratch: Mutex<Vec<Scratch>>,
}

impl Cpu {
    /// A context of `threads` threads, the calling one included; for 1 there is no pool and no synchronisation.
    ///
    /// # Panics
    /// If `threads` is 0.
    pub fn new(level: Level, threads: usize) -> Cpu {
        Cpu { level, pool: Pool::new(threads), arena: Arena::default(), scratch: Mutex::default() }
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Threads that take part in an operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Where matrices packed on this context take their memory.
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Calls `task(i)` for every `i < tasks` on the threads of this context, the calling one included.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, task);
    }

    /// Calls `task(i, item)` for every item, on all threads, which share them out one by one.
    pub fn each<T: Send>(&self, items: &mut [T], task: &(dyn Fn(usize, &mut T) + Sync)) {
        let (len, items) = (items.len(), &SharedMut::new(items));
        self.run(len, &|i| {
            // SAFETY: each task has its own item.
            let item = unsafe { items.part(i..i + 1) };
            task(i, &mut item[0]);
        });
    }

    /// Splits `0..count` into tasks of `step` or a multiple; all in one if `work` is small.
    pub(crate) fn split(&self, count: usize, step: usize, small: bool, task: &(dyn Fn(Range<usize>) + Sync)) {
        if count == 0 {
            return;
        }
        if small || self.threads() == 1 {
            return task(0..count);
        }
        let size = count.div_ceil(self.threads() * TASKS_PER_THREAD).next_multiple_of(step);
        self.run(count.div_ceil(size), &|i| task(i * size..count.min((i + 1) * size)));
    }

    /// Buffers of a product, kept between calls.
    pub(crate) fn take_scratch(&self) -> Scratch {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give_scratch(&self, scratch: Scratch) {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }

    /// `y = (x - mean) / sqrt(variance + eps) * weight + bias` over each of `n` rows of `weight.len()` channels.
    pub fn layer_norm(&self, x: &[f32], n: usize, weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        check("layer_norm", &[("x", x.len(), n * width), ("bias", bias.len(), width), ("y", y.len(), n * width)]);
        let y = &SharedMut::new(y);
        self.rows(n, width, &|rows| {
            // SAFETY: each task has its own rows.
            let y = unsafe { y.part(rows.clone()) };
            self.level.dispatch(LayerNorm { x: &x[rows], weight, bias, eps, y });
        });
    }

    /// Token shift: `y = x * mu + prev * (1 - mu)` for each pair of `mu` and `y`, where `prev` is `x` of the token before.
    ///
    /// `x` and each `y` are `[sum of lens][width]`, several sequences one after another; `before` is `[lens.len()][width]` and
    /// comes before their first tokens.
    pub fn token_mix<const K: usize>(
        &self,
        lens: &[usize],
        before: &[f32],
        x: &[f32],
        mixes: [(&[f32], &mut [f32]); K],
    ) {
        let tokens = lens.iter().sum::<usize>();
        for (mu, y) in &mixes {
            let size = tokens * mu.len();
            check(
                "token_mix",
                &[("before", before.len(), lens.len() * mu.len()), ("x", x.len(), size), ("y", y.len(), size)],
            );
        }
        if x.is_empty() {
            return;
        }
        let mu = mixes.each_ref().map(|(mu, _)| *mu);
        let y = &mixes.map(|(_, y)| SharedMut::new(y));
        self.split(tokens, 1, x.len() * K < SMALL_ROWS, &|tokens| {
            self.level.dispatch(TokenMix { lens, before, x, mu, y, tokens });
        });
    }

    /// `x = max(x, 0)^2`.
    pub fn relu_squared(&self, x: &mut [f32]) {
        self.unary(x, ReluSquared);
    }

    /// `y = y * sigmoid(r)`.
    pub fn sigmoid_mul(&self, r: &[f32], y: &mut [f32]) {
        self.binary("sigmoid_mul", r, y, SigmoidMul);
    }

    /// `y = y + x`.
    pub fn add(&self, x: &[f32], y: &mut [f32]) {
        self.binary("add", x, y, Add);
    }

    /// `y = y * s`.
    pub fn scale(&self, s: f32, y: &mut [f32]) {
        self.unary(y, Scale(s));
    }

    /// `x = 1` where `x >= 0` (also for -0.0), else 0.
    pub fn heaviside(&self, x: &mut [f32]) {
        self.unary(x, Heaviside);
    }

    /// WKV-4 over several independent sequences laid one after another in `k`, `v` and `y`, `[sum of lens][width]`.
    ///
    /// `state` is `[lens.len()][3][width]`: aa, bb, pp of each sequence (0, 0, -1e38 for a fresh one), moved on in place; `each`, if
    /// given, is `[sum of lens][3][width]` and gets the state after every token. `decay` is `-exp(time_decay)`, `first` is `time_first`.
    #[allow(clippy::too_many_arguments)] // the operation has these inputs
    pub fn wkv4(
        &self,
        lens: &[usize],
        width: usize,
        decay: &[f32],
        first: &[f32],
        k: &[f32],
        v: &[f32],
        state: &mut [f32],
        each: Option<&mut [f32]>,
        y: &mut [f32],
    ) {
        let tokens: usize = lens.iter().sum();
        let size = tokens * width;
        check(
            "wkv4",
            &[("decay", decay.len(), width), ("first", first.len(), width), ("k", k.len(), size), ("v", v.len(), size)],
        );
        check("wkv4", &[("state", state.len(), lens.len() * 3 * width), ("y", y.len(), size)]);
        check("wkv4", &[("each", each.as_ref().map_or(3 * size, |e| e.len()), 3 * size)]);
        let (state, each, y) = (&SharedMut::new(state), each.map(SharedMut::new), &SharedMut::new(y));
        // An element costs about as much as ten of an elementwise operation.
        self.split(width.div_ceil(LANES), 1, size * 10 < SMALL_ROWS, &|vectors| {
            let sequences = Sequences { lens, width, vectors };
            self.level.dispatch(Wkv4 { sequences, decay, first, k, v, state, each: each.as_ref(), y });
        });
    }

    /// Leaky integrate-and-fire neurons over several sequences: `h = s + (x - s) k`, `y = 1` and `s = 0` where `h >= 1`, else `y = 0` and `s = h`.
    ///
    /// `decay` is `[width]` and gives k; without, k is one half.
    /// `x` and `y` are `[sum of lens][width]`; `state` is `[lens.len()][width]`, moved on in place; `each`, if given, is
    /// `[sum of lens][width]` and gets the state after every token.
    #[allow(clippy::too_many_arguments)] // as above
    pub fn lif(
        &self,
        lens: &[usize],
        width: usize,
        decay: Option<&[f32]>,
        x: &[f32],
        state: &mut [f32],
        each: Option<&mut [f32]>,
        y: &mut [f32],
    ) {
        let size = lens.iter().sum::<usize>() * width;
        check("lif", &[("decay", decay.map_or(width, <[f32]>::len), width)]);
        check("lif", &[("x", x.len(), size), ("state", state.len(), lens.len() * width), ("y", y.len(), size)]);
        check("lif", &[("each", each.as_ref().map_or(size, |e| e.len()), size)]);
        let (state, each, y) = (&SharedMut::new(state), each.map(SharedMut::new), &SharedMut::new(y));
        self.split(width.div_ceil(LANES), 1, size < SMALL_ROWS, &|vectors| {
            let sequences = Sequences { lens, width, vectors };
            self.level.dispatch(Lif { sequences, decay, x, state, each: each.as_ref(), y });
        });
    }

    /// Calls `task` with ranges of elements that are whole rows of `width`.
    fn rows(&self, n: usize, width: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        if width > 0 {
            self.split(n, 1, n * width < SMALL_ROWS, &|rows| task(rows.start * width..rows.end * width));
        }
    }

    fn unary(&self, x: &mut [f32], op: impl Unary) {
        let (len, x) = (x.len(), &SharedMut::new(x));
        self.split(len, LANES, len < SMALL_ROWS, &|range| {
            // SAFETY: each task has its own range.
            self.level.dispatch(Map(op, unsafe { x.part(range) }));
        });
    }

    fn binary(&self, name: &str, x: &[f32], y: &mut [f32], op: impl Binary) {
        check(name, &[("y", y.len(), x.len())]);
        let (len, y) = (y.len(), &SharedMut::new(y));
        self.split(len, LANES, len < SMALL_ROWS, &|range| {
            // SAFETY: each task has its own range.
            let y = unsafe { y.part(range.clone()) };
            self.level.dispatch(Map2(op, &x[range], y));
        });
    }
}

/// Lengths are the caller's program, not its data: a wrong one is a mistake to be found at once.
#[track_caller]
pub(crate) fn check(op: &str, lengths: &[(&str, usize, usize)]) {
    for (name, found, wanted) in lengths {
        assert_eq!(found, wanted, "{op}: wrong length of `{name}` (left: found, right: needed)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_has_its_own_call() {
        for threads in [1, 2, 5] {
            let cpu = Cpu::new(Level::best(), threads);
            for len in [0, 1, 2, 40] {
                let mut items: Vec<String> = (0..len).map(|i| format!("{i}:")).collect();
                cpu.each(&mut items, &|i, item| item.push_str(&i.to_string()));
                assert!(items.iter().enumerate().all(|(i, item)| *item == format!("{i}:{i}")), "{items:?}");
            }
        }
    }
}
