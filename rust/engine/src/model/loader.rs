//! Brings named tensors into the form that the kernels read, and lays out the state as the layers ask for it.

use std::ops::Range;
use std::sync::Arc;

use spikelet_simd::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use spikelet_simd::{Cpu, Matrix, WeightFormat};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::state::StateLayout;
use crate::weights::Checkpoint;

/// Weights and bias of a layer norm.
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// Normalises `n` tokens.
    pub fn apply(&self, cpu: &Cpu, x: &[f32], n: usize, y: &mut [f32]) {
        cpu.layer_norm(x, n, &self.weight, &self.bias, self.epsilon, y);
    }
}

/// The table of token embeddings `[vocab, hidden]`, read where it lies in the mapped file.
pub struct Embedding {
    checkpoint: Arc<Checkpoint>,
    name: &'static str,
    format: WeightFormat,
}

impl Embedding {
    /// The rows of a pass's tokens, `[n][hidden]`, rounded to the format of the model's matrices. Only the signs of a binary
    /// embedding count, so that is not rounded: a small negative weight would become -0, which fires.
    pub fn rows(&self, tokens: impl Iterator<Item = u32>, hidden: usize, out: &mut [f32]) {
        let table = self.checkpoint.get(self.name).expect("the table was found when the model was loaded");
        for (token, line) in tokens.zip(out.chunks_exact_mut(hidden)) {
            table.row_to_f32(token as usize, line);
        }
        match self.format {
            WeightFormat::F32 | WeightFormat::Q8 | WeightFormat::Q4 => {}
            WeightFormat::Bf16 => out.iter_mut().for_each(|x| *x = bf16_to_f32(f32_to_bf16(*x))),
            WeightFormat::F16 => out.iter_mut().for_each(|x| *x = f16_to_f32(f32_to_f16(*x))),
        }
    }
}

/// Hands tensors to the layers under construction.
pub struct Loader<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    config: &'a ModelConfig,
    format: WeightFormat,
    cpu: &'a Cpu,
    layout: StateLayout,
    /// Bytes of the matrices packed so far.
    bytes: usize,
}

impl<'a> Loader<'a> {
    pub fn new(checkpoint: &'a Arc<Checkpoint>, config: &'a ModelConfig, format: WeightFormat, cpu: &'a Cpu) -> Self {
        Self { checkpoint, config, format, cpu, layout: StateLayout::default(), bytes: 0 }
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// Bytes of the matrices packed so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn into_layout(self) -> StateLayout {
        self.layout
    }

    /// Asks for a place in the state.
    pub fn state(&mut self, name: String, len: usize, fresh: f32) -> Range<usize> {
        self.layout.push(name, len, fresh)
    }

    /// A vector of `len` elements, whatever axes of size 1 it is stored with.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(name, len)
    }

    /// The layer norm `{prefix}.weight`, `{prefix}.bias` over the hidden width.
    pub fn layer_norm(&self, prefix: &str) -> Result<LayerNorm> {
        let len = self.config.hidden_size;
        Ok(LayerNorm {
            weight: self.vector(&format!("{prefix}.weight"), len)?,
            bias: self.vector(&format!("{prefix}.bias"), len)?,
            epsilon: self.config.layer_norm_epsilon,
        })
    }

    /// A matrix stored `[outputs, inputs]`, every element divided by `divisor`, a power of two.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize, divisor: f32) -> Result<Matrix> {
        let view = self.checkpoint.expect(name, &[outputs, inputs])?;
        self.checkpoint.check_finite(&view)?;
        let factor = divisor.recip();
        let overflow = std::sync::atomic::AtomicBool::new(false);
        let limit = match self.format {
            WeightFormat::F16 => 65_520.0,
            _ => f32::INFINITY,
        };
        let row = |row: usize, out: &mut [f32]| {
            view.row_to_f32(row, out);
            if factor != 1.0 {
                out.iter_mut().for_each(|w| *w *= factor);
            }
            if out.iter().any(|w| w.abs() >= limit) {
                overflow.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let matrix = Matrix::pack(outputs, inputs, self.format, self.cpu, row);
        if overflow.into_inner() {
            return Err(Error::Tensor {
                path: self.checkpoint.path().to_path_buf(),
                tensor: name.into(),
                reason: "it holds values beyond the range of f16; load it as bf16 or f32".into(),
            });
        }
        self.bytes += matrix.bytes();
        Ok(matrix)
    }

    /// The table of token embeddings.
    pub fn embedding(&self, name: &'static str) -> Result<Embedding> {
        let view = self.checkpoint.expect(name, &[self.config.vocab_size, self.config.hidden_size])?;
        self.checkpoint.check_finite(&view)?;
        let format = if self.config.spike_embedding { WeightFormat::F32 } else { self.format };
        Ok(Embedding { checkpoint: Arc::clone(self.checkpoint), name, format })
    }
}
