//! The recurrences over time: WKV-4 and leaky integrate-and-fire neurons. Channels are independent, so lanes are channels and
//! each vector of channels walks through all tokens with its state in registers.

use crate::shared::SharedMut;
use crate::vecops::exp;
use crate::{Isa, LANES, Op};
use std::ops::Range;

/// Tokens that are fetched ahead of time.
const AHEAD: usize = 8;

/// Several sequences laid one after another, for some of the channels.
pub(crate) struct Sequences<'a> {
    pub lens: &'a [usize],
    pub width: usize,
    /// Vectors of 16 channels; each belongs to one task only.
    pub vectors: Range<usize>,
}

impl Sequences<'_> {
    /// Where a vector's channels lie in row `row` of a `[rows][width]` slice.
    #[inline(always)]
    fn at(&self, row: usize, vector: usize) -> Range<usize> {
        let channels = vector * LANES..self.width.min((vector + 1) * LANES);
        row * self.width + channels.start..row * self.width + channels.end
    }

    #[inline(always)]
    fn load<I: Isa>(&self, isa: I, x: &[f32], row: usize, vector: usize) -> I::V {
        isa.load_part(&x[self.at(row, vector)], 0.0)
    }

    /// Asks for what will be needed some tokens after `row`: a vector's channels of one token and the next lie too far apart for the
    /// processor to foresee them.
    #[inline(always)]
    fn fetch_ahead<I: Isa>(&self, isa: I, x: *const f32, row: usize, vector: usize) {
        isa.prefetch(x.wrapping_add((row + AHEAD) * self.width + vector * LANES), true);
    }

    #[inline(always)]
    fn load_state<I: Isa>(&self, isa: I, x: &SharedMut<'_, f32>, row: usize, vector: usize) -> I::V {
        // SAFETY: the vector's channels belong to this task, and the part ends with this statement.
        isa.load_part(unsafe { x.part(self.at(row, vector)) }, 0.0)
    }

    #[inline(always)]
    fn store<I: Isa>(&self, isa: I, v: I::V, to: &SharedMut<'_, f32>, row: usize, vector: usize) {
        // SAFETY: as in `load_state`.
        isa.store_part(v, unsafe { to.part(self.at(row, vector)) });
    }
}

/// What a recurrence does with one vector of channels over `tokens` of one sequence. A method that is always inlined, where
/// a closure might not be.
trait Recurrence {
    fn walk<I: Isa>(&self, isa: I, sequence: usize, tokens: Range<usize>, vector: usize);
}

#[inline(always)]
fn walk_all<I: Isa>(isa: I, sequences: &Sequences<'_>, recurrence: &impl Recurrence) {
    let mut first = 0;
    for (sequence, &len) in sequences.lens.iter().enumerate() {
        for vector in sequences.vectors.clone() {
            recurrence.walk(isa, sequence, first..first + len, vector);
        }
        first += len;
    }
}

/// WKV-4 with a running maximum `pp` of the exponents, which keeps `exp` in range:
/// `aa` and `bb` are the sums of the paper, divided by `exp(pp)`.
pub(crate) struct Wkv4<'a> {
    pub sequences: Sequences<'a>,
    pub decay: &'a [f32],
    pub first: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub state: &'a SharedMut<'a, f32>,
    pub each: Option<&'a SharedMut<'a, f32>>,
    pub y: &'a SharedMut<'a, f32>,
}

impl Recurrence for Wkv4<'_> {
    #[inline(always)]
    fn walk<I: Isa>(&self, isa: I, sequence: usize, tokens: Range<usize>, vector: usize) {
        let s = &self.sequences;
        let decay = s.load(isa, self.decay, 0, vector);
        let bonus = s.load(isa, self.first, 0, vector);
        let mut aa = s.load_state(isa, self.state, 3 * sequence, vector);
        let mut bb = s.load_state(isa, self.state, 3 * sequence + 1, vector);
        let mut pp = s.load_state(isa, self.state, 3 * sequence + 2, vector);
        for token in tokens {
            for x in [self.k.as_ptr(), self.v.as_ptr(), self.y.start()] {
                s.fetch_ahead(isa, x, token, vector);
            }
            let k = s.load(isa, self.k, token, vector);
            let v = s.load(isa, self.v, token, vector);

            let ww = isa.add(bonus, k);
            let p = isa.max(pp, ww);
            let (e1, e2) = (exp(isa, isa.sub(pp, p)), exp(isa, isa.sub(ww, p)));
            let numerator = isa.fma(e1, aa, isa.mul(e2, v));
            let y = isa.div(numerator, isa.fma(e1, bb, e2));
            s.store(isa, y, self.y, token, vector);

            let ww = isa.add(pp, decay);
            let p = isa.max(ww, k);
            let (e1, e2) = (exp(isa, isa.sub(ww, p)), exp(isa, isa.sub(k, p)));
            aa = isa.fma(e1, aa, isa.mul(e2, v));
            bb = isa.fma(e1, bb, e2);
            pp = p;
            if let Some(each) = self.each {
                s.store(isa, aa, each, 3 * token, vector);
                s.store(isa, bb, each, 3 * token + 1, vector);
                s.store(isa, pp, each, 3 * token + 2, vector);
            }
        }
        s.store(isa, aa, self.state, 3 * sequence, vector);
        s.store(isa, bb, self.state, 3 * sequence + 1, vector);
        s.store(isa, pp, self.state, 3 * sequence + 2, vector);
    }
}

impl Op for Wkv4<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        walk_all(isa, &self.sequences, &self);
    }
}

/// Leaky integrate-and-fire with threshold 1 and a hard reset to 0; the state is the membrane potential.
pub(crate) struct Lif<'a> {
    pub sequences: Sequences<'a>,
    /// k of `h = v + (x - v) k` per channel; `None` is one half, a time constant of 2.
    pub decay: Option<&'a [f32]>,
    pub x: &'a [f32],
    pub state: &'a SharedMut<'a, f32>,
    pub each: Option<&'a SharedMut<'a, f32>>,
    pub y: &'a SharedMut<'a, f32>,
}

impl Recurrence for Lif<'_> {
    #[inline(always)]
    fn walk<I: Isa>(&self, isa: I, sequence: usize, tokens: Range<usize>, vector: usize) {
        let s = &self.sequences;
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        let decay = self.decay.map_or(isa.splat(0.5), |k| s.load(isa, k, 0, vector));
        let mut potential = s.load_state(isa, self.state, sequence, vector);
        for token in tokens {
            for x in [self.x.as_ptr(), self.y.start()] {
                s.fetch_ahead(isa, x, token, vector);
            }
            let x = s.load(isa, self.x, token, vector);
            let h = isa.add(potential, isa.mul(isa.sub(x, potential), decay));
            s.store(isa, isa.select_ge(h, one, one, zero), self.y, token, vector);
            potential = isa.select_ge(h, one, zero, h);
            if let Some(each) = self.each {
                s.store(isa, potential, each, token, vector);
            }
        }
        s.store(isa, potential, self.state, sequence, vector);
    }
}

impl Op for Lif<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        walk_all(isa, &self.sequences, &self);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rng, assert_same_bits};
    use crate::{Cpu, expf, for_each_isa};

    const FRESH: f32 = -1e38;

    /// Inputs, state and outputs of one run over `lens`, all of one width.
    #[derive(Clone)]
    struct Case {
        lens: Vec<usize>,
        width: usize,
        decay: Vec<f32>,
        first: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        /// Decay of neurons that learn theirs.
        leak: Vec<f32>,
    }

    impl Case {
        fn new(lens: &[usize], width: usize) -> Case {
            let mut rng = Rng(width as u64);
            let total: usize = lens.iter().sum::<usize>() * width;
            let decay = rng.vec(width).iter().map(|d| -(2.0 * d).exp()).collect();
            let k = rng.vec(total).iter().map(|k| 12.0 * k).collect();
            let (first, v) = (rng.vec(width), rng.vec(total));
            let leak = rng.vec(width).iter().map(|w| 1.0 / (1.0 + (-3.0 * w).exp())).collect();
            Case { lens: lens.to_vec(), width, decay, first, k, v, leak }
        }

        /// Runs all sequences in passes of `pass` tokens each; returns y, the last state and the state after each token.
        fn run(&self, cpu: &Cpu, op: Kind, pass: usize) -> [Vec<f32>; 3] {
            let (width, rows) = (self.width, op.rows());
            let total: usize = self.lens.iter().sum();
            let (mut y, mut all) = (vec![f32::NAN; total * width], vec![f32::NAN; total * rows * width]);
            let mut states = Vec::new();
            let mut start = 0;
            for &len in &self.lens {
                let mut state = op.fresh(width);
                for t in (start..start + len).step_by(pass) {
                    let n = pass.min(start + len - t);
                    let (tokens, each) = (t * width..(t + n) * width, t * rows * width..(t + n) * rows * width);
                    op.call(cpu, self, &[n], tokens.clone(), &mut state, Some(&mut all[each]), &mut y[tokens]);
                }
                states.extend(state);
                start += len;
            }
            [y, states, all]
        }

        fn run_together(&self, cpu: &Cpu, op: Kind, each: bool) -> [Vec<f32>; 3] {
            let total = self.lens.iter().sum::<usize>() * self.width;
            let (mut y, mut all) = (vec![f32::NAN; total], vec![f32::NAN; total * op.rows()]);
            let mut state: Vec<f32> = self.lens.iter().flat_map(|_| op.fresh(self.width)).collect();
            op.call(cpu, self, &self.lens, 0..total, &mut state, each.then_some(&mut all[..]), &mut y);
            [y, state, all]
        }
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Wkv4,
        Lif,
        Plif,
    }

    impl Kind {
        fn rows(self) -> usize {
            if self == Kind::Wkv4 { 3 } else { 1 }
        }

        fn fresh(self, width: usize) -> Vec<f32> {
            let mut state = vec![0.0; self.rows() * width];
            if self == Kind::Wkv4 {
                state[2 * width..].fill(FRESH);
            }
            state
        }

        #[allow(clippy::too_many_arguments)] // mirrors the methods under test
        fn call(
            self,
            cpu: &Cpu,
            c: &Case,
            lens: &[usize],
            at: std::ops::Range<usize>,
            state: &mut [f32],
            each: Option<&mut [f32]>,
            y: &mut [f32],
        ) {
            match self {
                Kind::Wkv4 => cpu.wkv4(lens, c.width, &c.decay, &c.first, &c.k[at.clone()], &c.v[at], state, each, y),
                Kind::Lif => cpu.lif(lens, c.width, None, &c.k[at], state, each, y),
                Kind::Plif => cpu.lif(lens, c.width, Some(&c.leak), &c.k[at], state, each, y),
            }
        }
    }

    #[allow(clippy::needless_range_loop)] // `i` is a channel of many slices
    fn naive_wkv4(c: &Case) -> [Vec<f32>; 3] {
        let (mut y, mut states, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut token = 0;
        for &len in &c.lens {
            let mut state = Kind::Wkv4.fresh(c.width);
            for _ in 0..len {
                for i in 0..c.width {
                    let (k, v) = (c.k[token * c.width + i], c.v[token * c.width + i]);
                    let (aa, bb, pp) = (state[i], state[c.width + i], state[2 * c.width + i]);
                    let ww = c.first[i] + k;
                    let p = pp.max(ww);
                    let (e1, e2) = (expf(pp - p), expf(ww - p));
                    y.push(e1.mul_add(aa, e2 * v) / e1.mul_add(bb, e2));
                    let ww = pp + c.decay[i];
                    let p = ww.max(k);
                    let (e1, e2) = (expf(ww - p), expf(k - p));
                    state[i] = e1.mul_add(aa, e2 * v);
                    state[c.width + i] = e1.mul_add(bb, e2);
                    state[2 * c.width + i] = p;
                }
                all.extend(&state);
                token += 1;
            }
            states.extend(state);
        }
        [y, states, all]
    }

    fn naive_lif(c: &Case) -> [Vec<f32>; 3] {
        naive_plif(&Case { leak: vec![0.5; c.width], ..c.clone() })
    }

    #[allow(clippy::needless_range_loop)] // `i` is a channel of many slices
    fn naive_plif(c: &Case) -> [Vec<f32>; 3] {
        let (mut y, mut states, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut token = 0;
        for &len in &c.lens {
            let mut state = vec![0.0f32; c.width];
            for _ in 0..len {
                for i in 0..c.width {
                    let h = state[i] + (c.k[token * c.width + i] - state[i]) * c.leak[i];
                    y.push(if h >= 1.0 { 1.0 } else { 0.0 });
                    state[i] = if h >= 1.0 { 0.0 } else { h };
                }
                all.extend(&state);
                token += 1;
            }
            states.extend(state);
        }
        [y, states, all]
    }

    fn check(found: &[Vec<f32>; 3], wanted: &[Vec<f32>; 3], what: &str) {
        for (i, part) in ["y", "state", "state after each token"].iter().enumerate() {
            assert_same_bits(&found[i], &wanted[i], &format!("{what}: {part}"));
        }
    }

    #[test]
    fn whole_ragged_and_token_by_token_give_the_same_bits() {
        let widths = if cfg!(miri) { vec![17] } else { vec![1, 15, 16, 17, 33, 768] };
        for_each_isa(|level| {
            let naive_wkv4: fn(&Case) -> _ = naive_wkv4;
            for (op, naive) in [(Kind::Wkv4, naive_wkv4), (Kind::Lif, naive_lif), (Kind::Plif, naive_plif)] {
                for &width in &widths {
                    let case = Case::new(&[5, 1, 0, 70], width);
                    let wanted = naive(&case);
                    for threads in [1, 2] {
                        let cpu = Cpu::new(level, threads);
                        check(&case.run_together(&cpu, op, true), &wanted, level.name());
                        let [y, state, _] = case.run_together(&cpu, op, false);
                        assert_same_bits(&y, &wanted[0], "without the state after each token");
                        assert_same_bits(&state, &wanted[1], "without the state after each token");
                        for pass in [1, 3, 64] {
                            check(&case.run(&cpu, op, pass), &wanted, level.name());
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_neuron_fires_at_exactly_the_threshold_and_starts_again() {
        for_each_isa(|level| {
            let cpu = Cpu::new(level, 1);
            let (mut state, mut y, mut each) = ([0.0; 1], [f32::NAN; 4], [f32::NAN; 4]);
            cpu.lif(&[4], 1, None, &[1.0, 1.5, 1.0, 2.0], &mut state, Some(&mut each), &mut y);
            assert_eq!(y, [0.0, 1.0, 0.0, 1.0]);
            assert_eq!(each, [0.5, 0.0, 0.5, 0.0]);
            assert_eq!(state, [0.0]);
        });
    }

    #[test]
    fn the_first_token_of_a_fresh_wkv_state_is_its_value() {
        for_each_isa(|level| {
            let (mut state, mut y) = ([0.0, 0.0, FRESH], [f32::NAN; 1]);
            Cpu::new(level, 1).wkv4(&[1], 1, &[-0.5], &[0.3], &[2.0], &[0.7], &mut state, None, &mut y);
            assert_eq!((y, state), ([0.7], [0.7, 1.0, 2.0]));
        });
    }
}
