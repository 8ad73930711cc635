//! The prophet: a small network that guesses what its model will say next, for drafts.
//!
//! It goes on where the model stands. From the model's residual stream h after a token (before `ln_out`) and the next token t:
//!
//! ```text
//! x = fuse · [ln_hidden(h) ; ln_emb(emb(t))]       emb: the model's embedding
//! x = blocks(x)                                    RWKV-4's or SpikeGPT's
//! y = up · x                                       or x, where it is as wide as the model
//! logits = head · ln_out(x)                        over draft_ids: the token after t
//! ```
//!
//! Peculiar:
//! - the state is zero at the start of every draft. A draft reads the last few true pairs (h, t), which is all of the past that it
//!   needs, as h knows the rest; so nothing of it has to be rolled back.
//! - from then on `y` takes the place of h, and the guess that of t.
//! - it can guess only `draft_ids`, the most frequent tokens: the head is most of a small network's cost. A tied head is these
//!   rows of the model's, and reads `ln_out(y)`.
//! - block 0 has no `ln0`: `fuse` has read what was normed.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use spikelet_simd::quant::{QuantizedView, blocks_of, code_bytes_of};
use spikelet_simd::{Cpu, Matrix, WeightFormat};

use super::Model;
use super::loader::{Embedding, LayerNorm, Loader};
use super::pass::{Activations, Pass, StateBuffers, prepare};
use super::spikegpt::Block;
use crate::backend::{LogitsWanted, PassRow};
use crate::error::{Error, Result};
use crate::state::{Slot, StateLayout, StatePool};
use crate::weights::{MatrixView, ProphetConfig, ProphetFiles, matrix_format, prophet_folder};

/// A prophet of fewer bytes in its file runs on one thread: its matrices lie in the caches of one core, and are read in less time
/// than threads take to meet.
const MANY_THREADS_FROM: usize = 1 << 20;

/// A loaded prophet of a loaded model. Like the model it never changes and may be shared.
pub struct Prophet {
    model: Arc<Model>,
    config: ProphetConfig,
    draft_ids: Vec<u32>,
    /// Where that is not the model's own.
    cpu: Option<Cpu>,
    layout: StateLayout,
    emb: Embedding,
    ln_hidden: LayerNorm,
    ln_emb: LayerNorm,
    fuse: Matrix,
    blocks: Vec<Block>,
    up: Option<Matrix>,
    ln_out: LayerNorm,
    head: Matrix,
    bytes: usize,
}

impl Prophet {
    /// The prophet in the model's folder, if there is one.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn of(model: &Arc<Model>) -> Result<Option<Arc<Self>>> {
        let folder = prophet_folder(&model.checkpoint);
        if folder.join("config.json").exists() { Self::load(&folder, model).map(Some) } else { Ok(None) }
    }

    /// Loads the prophet in `folder`, which must be this model's. Its matrices get the model's format; in a q4 model q8, as
    /// the model's head.
    ///
    /// # Errors
    /// [`Error::Config`] names both models if it was made for another one, and the key that is missing, unknown or wrong;
    /// [`Error::Tensor`] names the tensor.
    pub fn load(folder: &Path, model: &Arc<Model>) -> Result<Arc<Self>> {
        let ProphetFiles { config, checkpoint, draft_ids } = ProphetFiles::open(folder, &model.checkpoint)?;
        let checkpoint = Arc::new(checkpoint);
        let format = match model.format {
            WeightFormat::Q4 => WeightFormat::Q8,
            format => format,
        };
        let progress = &mut |_: u64, _: u64| ControlFlow::Continue(());
        let blocks_config = checkpoint.config().clone();
        let weights: usize =
            checkpoint.names().map(|name| checkpoint.get(name).map_or(0, |tensor| tensor.bytes.len())).sum();
        let cpu = (weights < MANY_THREADS_FROM).then(|| Cpu::new(model.cpu.level(), 1));
        let mut loader =
            Loader::new(&checkpoint, &blocks_config, format, cpu.as_ref().unwrap_or(&model.cpu), progress)?;
        let (wide, narrow) = (config.target_hidden_size, config.hidden_size);
        let ln_hidden = loader.layer_norm_over("ln_hidden", wide)?;
        let ln_emb = loader.layer_norm_over("ln_emb", wide)?;
        let fuse = loader.linear("fuse.weight", narrow, 2 * wide, 1.0)?;
        let blocks = (0..config.num_hidden_layers).map(|i| Block::load(&mut loader, i)).collect::<Result<_>>()?;
        let up = (wide != narrow).then(|| loader.linear("up.weight", wide, narrow, 1.0)).transpose()?;
        let ln_out = loader.layer_norm_over("ln_out", if config.tied_head { wide } else { narrow })?;
        let (head, mut bytes) = if config.tied_head {
            let head = rows_of_head(model, &draft_ids)?;
            let bytes = head.bytes();
            (head, bytes)
        } else {
            (loader.linear("head.weight", config.draft_vocab_size, narrow, 1.0)?, 0)
        };
        bytes += loader.bytes();
        let layout = loader.finish()?;
        Ok(Arc::new(Self {
            emb: Embedding::of(&model.checkpoint, &model.config, model.format, "emb.weight"),
            model: Arc::clone(model),
            cpu,
            config,
            draft_ids,
            layout,
            ln_hidden,
            ln_emb,
            fuse,
            blocks,
            up,
            ln_out,
            head,
            bytes,
        }))
    }

    /// The model it guesses for.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What it computes with.
    pub fn cpu(&self) -> &Cpu {
        self.cpu.as_ref().unwrap_or(&self.model.cpu)
    }

    /// Its shape.
    pub fn config(&self) -> &ProphetConfig {
        &self.config
    }

    /// The tokens it can guess, ascending: what its logits are of.
    pub fn draft_ids(&self) -> &[u32] {
        &self.draft_ids
    }

    /// Bytes of packed weights that a guess reads.
    pub fn weight_bytes(&self) -> usize {
        self.bytes
    }

    /// What it takes to run it.
    pub fn runner(self: &Arc<Self>) -> ProphetRunner {
        ProphetRunner {
            states: StatePool::new(self.layout.clone()),
            prophet: Arc::clone(self),
            slots: Vec::new(),
            act: Activations::default(),
            state_buffers: StateBuffers::default(),
            normed: Vec::new(),
            fused: Vec::new(),
            stand_ins: Vec::new(),
            logits: Vec::new(),
        }
    }
}

/// Rows of the model's head, in the head's format.
fn rows_of_head(model: &Model, ids: &[u32]) -> Result<Matrix> {
    const NAME: &str = "head.weight";
    let (vocab, wide) = (model.config.vocab_size, model.config.hidden_size);
    let format = matrix_format(NAME, model.format, false).unwrap_or(model.format);
    let view = model.checkpoint.matrix(NAME, vocab, wide)?;
    let MatrixView::Quantised { view: whole, .. } = view else {
        // A prophet and its model may be loaded in a format that cannot hold what is stored; the model's load has refused that.
        return Ok(Matrix::pack(ids.len(), wide, format, &model.cpu, |row, out| {
            view.row_to_f32(ids[row] as usize, out)
        }));
    };
    if whole.format != format {
        return Ok(Matrix::pack(ids.len(), wide, format, &model.cpu, |row, out| {
            whole.row_to_f32(ids[row] as usize, out)
        }));
    }
    // As it is stored, so that the logits are those of the model to the bit.
    let gather = |bytes: &[u8], width: usize| -> Vec<u8> {
        ids.iter().flat_map(|&id| &bytes[id as usize * width..(id as usize + 1) * width]).copied().collect()
    };
    let codes = gather(whole.codes, code_bytes_of(format, wide));
    let scales = gather(whole.scales, 2 * blocks_of(wide));
    let outlier_weights = gather(whole.outlier_weights, 2 * whole.outliers.len());
    let rows = QuantizedView {
        outputs: ids.len(),
        codes: &codes,
        scales: &scales,
        outlier_weights: &outlier_weights,
        ..whole
    };
    Ok(Matrix::pack_quantized(&model.cpu, &rows))
}

/// A prophet with states and buffers of its own, which runs the drafts of a batch of rows side by side.
pub struct ProphetRunner {
    prophet: Arc<Prophet>,
    states: StatePool,
    /// That of each row.
    slots: Vec<Slot>,
    act: Activations,
    state_buffers: StateBuffers,
    /// `[n][wide]`, `[n][2 wide]`.
    normed: Vec<f32>,
    fused: Vec<f32>,
    stand_ins: Vec<f32>,
    logits: Vec<f32>,
}

impl ProphetRunner {
    /// The prophet that is run.
    pub fn prophet(&self) -> &Arc<Prophet> {
        &self.prophet
    }

    /// Begins drafts for `rows` rows, whose states are zero.
    pub fn begin(&mut self, rows: usize) {
        while self.slots.len() < rows {
            let slot = self.states.alloc();
            self.slots.push(slot);
        }
        self.slots.iter().take(rows).for_each(|&slot| self.states.reset(slot));
    }

    /// Takes some rows on by some pairs each: `(row, tokens)`, and for every token the hidden state before it in `hidden`,
    /// `[tokens of all rows][width of the model]`. Leaves, for each row in this order, the logits over the prophet's
    /// `draft_ids` of the token after its last, and what stands in for the hidden state there.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id outside the vocabulary. Nothing has changed then.
    ///
    /// # Panics
    /// If a row is none of those that were begun, has no tokens or comes twice, or the number of hidden states is another.
    pub fn step(&mut self, rows: &[(usize, &[u32])], hidden: &[f32]) -> Result<()> {
        let Self { prophet, states, slots, act, state_buffers, normed, fused, stand_ins, logits } = self;
        let Prophet { config, ln_hidden, ln_emb, fuse, blocks, up, ln_out, head, .. } = &**prophet;
        let (wide, narrow) = (config.target_hidden_size, config.hidden_size);
        let vocab_size = config.vocab_size;
        stand_ins.clear();
        logits.clear();
        if rows.is_empty() {
            return Ok(());
        }
        let mut tokens = rows.iter().flat_map(|(_, tokens)| *tokens);
        if let Some(&id) = tokens.find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id: u64::from(id), vocab_size });
        }
        let pass_rows: Vec<PassRow<'_>> = rows
            .iter()
            .map(|&(row, tokens)| {
                assert!(!tokens.is_empty(), "a row of a pass has no tokens");
                PassRow { slot: slots[row], tokens, logits: LogitsWanted::Last, keep: &slots[row..=row] }
            })
            .collect();
        let mut pass = Pass::new(prophet.cpu(), &pass_rows, states, state_buffers, None);
        let (cpu, n) = (pass.cpu, pass.n());
        assert_eq!(hidden.len(), n * wide, "a hidden state for every token (left: found, right: needed)");
        act.prepare(n, narrow, config.intermediate_size);
        prepare(normed, n * wide);
        prepare(fused, n * 2 * wide);

        ln_hidden.apply(cpu, hidden, n, normed);
        interleave(normed, wide, fused, 0);
        // The stand-ins' place is free until the end.
        prepare(stand_ins, n * wide);
        prophet.emb.rows(pass.tokens(), wide, stand_ins);
        if config.spike_embedding {
            cpu.heaviside(stand_ins);
        }
        ln_emb.apply(cpu, stand_ins, n, normed);
        interleave(normed, wide, fused, wide);
        pass.linear(fuse, fused, &mut act.x);
        for (i, block) in blocks.iter().enumerate() {
            block.forward(i, &mut pass, act);
        }

        let last = &mut act.mixed[0];
        let lines = pass.wanted_lines(&act.x, last);
        prepare(stand_ins, lines * wide);
        match up {
            Some(up) => cpu.matmul(up, last, lines, stand_ins),
            None => stand_ins.copy_from_slice(last),
        }
        let read: &[f32] = if config.tied_head { stand_ins } else { last };
        prepare(normed, read.len());
        ln_out.apply(cpu, read, lines, normed);
        prepare(logits, lines * head.outputs());
        cpu.matmul(head, normed, lines, logits);
        Ok(())
    }

    /// Logits of the last step, `[rows][draft_ids]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// What stands in for the model's hidden states after the last step, `[rows][width of the model]`.
    pub fn stand_ins(&self) -> &[f32] {
        &self.stand_ins
    }
}

/// Lays lines of `width` into lines twice as wide, `at` elements from their beginning.
fn interleave(lines: &[f32], width: usize, wider: &mut [f32], at: usize) {
    for (from, to) in lines.chunks_exact(width).zip(wider.chunks_exact_mut(2 * width)) {
        to[at..at + width].copy_from_slice(from);
    }
}
