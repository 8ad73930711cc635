//! What a model file computes with: one pass over ragged rows, its buffers, and where state is read and left.

use std::ops::Range;

use spikelet_simd::{Cpu, Linear, Matrix};

use super::observer::Observer;
use super::trace::Trace;
use crate::backend::{LogitsWanted, PassRow};
use crate::state::StatePool;

/// Intermediate results of a pass, `[n tokens][width]` each, kept between passes so that none allocates.
#[derive(Debug, Default)]
pub struct Activations {
    /// The residual stream.
    pub x: Vec<f32>,
    /// The residual stream after a layer norm.
    pub xn: Vec<f32>,
    /// Mixes of `xn` with that of the token before, the inputs of projections: for key, value and receptance.
    pub mixed: [Vec<f32>; 3],
    /// Key of time mixing.
    pub k: Vec<f32>,
    /// Value of time mixing.
    pub v: Vec<f32>,
    /// Receptance.
    pub r: Vec<f32>,
    /// Result of the recurrence, and spikes.
    pub y: Vec<f32>,
    /// What a block adds to the residual stream, before its neuron if there is one.
    pub out: Vec<f32>,
    /// Key of channel mixing, `[n][intermediate]`.
    pub wide: Vec<f32>,
    /// The residual stream at the end, of the tokens whose logits are wanted.
    pub wanted: Vec<f32>,
}

impl Activations {
    /// Gives every buffer the length for `n` tokens. Debug builds poison them, so that a read before a write shows.
    pub fn prepare(&mut self, n: usize, hidden: usize, intermediate: usize) {
        let Self { x, xn, mixed, k, v, r, y, out, wide, wanted: _ } = self;
        let [mixed_k, mixed_v, mixed_r] = mixed;
        for buffer in [x, xn, mixed_k, mixed_v, mixed_r, k, v, r, y, out] {
            prepare(buffer, n * hidden);
        }
        prepare(wide, n * intermediate);
    }
}

/// Sets the length of a buffer whose content will be written before it is read.
pub fn prepare(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
    if cfg!(debug_assertions) {
        buffer.fill(f32::NAN);
    }
}

/// Buffers for the state of the recurrences of a pass.
#[derive(Debug, Default)]
pub struct StateBuffers {
    /// Tokens of each row.
    lens: Vec<usize>,
    /// The field's value per row, moved on token by token.
    current: Vec<f32>,
    /// The field's value after each token.
    each: Vec<f32>,
}

/// A layer of leaky integrate-and-fire neurons.
#[derive(Debug)]
pub struct Neurons {
    /// State: the membranes.
    pub membrane: Range<usize>,
    /// k of `h = v + (x - v) k` per channel, where it is learned; else one half.
    pub decay: Option<Vec<f32>>,
}

/// One pass over the rows of a batch: their tokens laid one after another, `n` in all.
pub struct Pass<'a> {
    /// Where the arithmetic is done.
    pub cpu: &'a Cpu,
    rows: &'a [PassRow<'a>],
    states: &'a mut StatePool,
    buffers: &'a mut StateBuffers,
    trace: Option<&'a mut Trace>,
    observer: Option<&'a mut Observer>,
    n: usize,
    /// Whether some row keeps a state per token, or a trace wants them.
    every_state: bool,
}

impl<'a> Pass<'a> {
    /// Starts a pass.
    pub fn new(
        cpu: &'a Cpu,
        rows: &'a [PassRow<'a>],
        states: &'a mut StatePool,
        buffers: &'a mut StateBuffers,
        trace: Option<&'a mut Trace>,
    ) -> Self {
        buffers.lens.clear();
        buffers.lens.extend(rows.iter().map(|row| row.tokens.len()));
        let n = buffers.lens.iter().sum();
        let every_state = trace.is_some() || rows.iter().any(|row| row.keep.len() > 1);
        Self { cpu, rows, states, buffers, trace, observer: None, n, every_state }
    }

    /// Lets an observer see what every matrix is multiplied with.
    pub fn observed_by(self, observer: &'a mut Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Number of tokens in the pass.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The tokens of all rows, one row after another.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.rows.iter().flat_map(|row| row.tokens.iter().copied())
    }

    /// `y[n][outputs] = x[n][inputs] · Wᵀ`.
    pub fn linear(&mut self, w: &Matrix, x: &[f32], y: &mut [f32]) {
        self.observe(w, x);
        self.cpu.matmul(w, x, self.n, y);
    }

    /// Several such products, of (W, x, y): side by side, so that threads need to meet only once.
    pub fn linears<const K: usize>(&mut self, products: [(&Matrix, &[f32], &mut [f32]); K]) {
        products.iter().for_each(|(w, x, _)| self.observe(w, x));
        self.cpu.matmuls(self.n, products.map(|(w, x, y)| Linear { w, x, y }));
    }

    /// The same where many inputs are zero in all tokens.
    pub fn linear_sparse(&mut self, w: &Matrix, x: &[f32], y: &mut [f32]) {
        self.observe(w, x);
        self.cpu.matmul_sparse(w, x, self.n, y);
    }

    /// Tells an observer what `w` is multiplied with. Every product goes through here.
    pub fn observe(&mut self, w: &Matrix, x: &[f32]) {
        if let Some(observer) = self.observer.as_deref_mut() {
            observer.note(w, x);
        }
    }

    /// Token shift: each `y` is the mix, by its `mu`, of `x` with that of the token before; before the first token of a row
    /// comes the state's value. The state becomes `x` of the last token.
    pub fn token_mix<const K: usize>(&mut self, field: &Range<usize>, x: &[f32], mixes: [(&[f32], &mut [f32]); K]) {
        self.load(field);
        let StateBuffers { lens, current, .. } = &*self.buffers;
        self.cpu.token_mix(lens, current, x, mixes);
        let width = field.len();
        let mut end = 0;
        for row in self.rows {
            end += row.tokens.len();
            // One slot takes the last token's value, several take one each.
            let tokens = end - row.keep.len()..end;
            for (token, &slot) in tokens.zip(row.keep) {
                self.states.get_mut(slot)[field.clone()].copy_from_slice(&x[token * width..(token + 1) * width]);
            }
        }
    }

    /// WKV-4 over each row; `field` holds aa, bb and pp one after another.
    pub fn wkv4(&mut self, field: &Range<usize>, decay: &[f32], first: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
        self.load(field);
        self.prepare_each(field);
        let StateBuffers { lens, current, each } = &mut *self.buffers;
        let each = self.every_state.then_some(each.as_mut_slice());
        self.cpu.wkv4(lens, decay.len(), decay, first, k, v, current, each, y);
        self.store(field);
    }

    /// Leaky integrate-and-fire neurons over each row: `y` gets the spikes of input `x`. `site` says which neurons, as
    /// (layer, 0 or 1), for a trace.
    pub fn lif(&mut self, neurons: &Neurons, site: (usize, usize), x: &[f32], y: &mut [f32]) {
        let Neurons { membrane: field, decay } = neurons;
        self.load(field);
        self.prepare_each(field);
        let StateBuffers { lens, current, each } = &mut *self.buffers;
        let each_state = self.every_state.then_some(each.as_mut_slice());
        self.cpu.lif(lens, field.len(), decay.as_deref(), x, current, each_state, y);
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.record_spikes(site, y, each);
        }
        self.store(field);
    }

    /// Tells a trace the squared-relu activations `[n][intermediate]` of a layer.
    pub fn note_relu_squared(&mut self, layer: usize, wide: &[f32]) {
        let n = self.n;
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.record_density(layer, wide, n);
        }
    }

    /// Collects the lines of `x` that need logits into `lines` and returns how many there are.
    pub fn wanted_lines(&self, x: &[f32], lines: &mut Vec<f32>) -> usize {
        let width = x.len() / self.n;
        lines.clear();
        let mut start = 0;
        for row in self.rows {
            let end = start + row.tokens.len();
            let first = match row.logits {
                LogitsWanted::None => end,
                LogitsWanted::Last => end - 1,
                LogitsWanted::All => start,
            };
            lines.extend_from_slice(&x[first * width..end * width]);
            start = end;
        }
        lines.len() / width
    }

    /// Reads a field of every row's base slot.
    fn load(&mut self, field: &Range<usize>) {
        let current = &mut self.buffers.current;
        current.clear();
        for row in self.rows {
            current.extend_from_slice(&self.states.get(row.slot)[field.clone()]);
        }
    }

    /// Makes room for a field's value after each token, if they are wanted.
    fn prepare_each(&mut self, field: &Range<usize>) {
        prepare(&mut self.buffers.each, if self.every_state { self.n * field.len() } else { 0 });
    }

    /// Leaves a field in the slots that every row keeps.
    fn store(&mut self, field: &Range<usize>) {
        let width = field.len();
        let mut start = 0;
        for (i, row) in self.rows.iter().enumerate() {
            if let [slot] = row.keep {
                let value = &self.buffers.current[i * width..(i + 1) * width];
                self.states.get_mut(*slot)[field.clone()].copy_from_slice(value);
            } else {
                for (t, &slot) in row.keep.iter().enumerate() {
                    let value = &self.buffers.each[(start + t) * width..(start + t + 1) * width];
                    self.states.get_mut(slot)[field.clone()].copy_from_slice(value);
                }
            }
            start += row.tokens.len();
        }
    }
}
