//! The runner on CPU.

use std::sync::Arc;

use spikelet_simd::Cpu;

use super::{PassRow, Runner, check_rows};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model::{Activations, Model, Observer, Pass, StateBuffers, Trace};
use crate::state::{Slot, StatePool};

/// Most tokens of a pass: enough for the matrix kernels to reach their peak, few enough for the activations of large
/// models to stay small.
const MAX_PASS_TOKENS: usize = 512;

/// A model with states and buffers of its own.
pub struct CpuRunner {
    model: Arc<Model>,
    states: StatePool,
    act: Activations,
    state_buffers: StateBuffers,
    logits: Vec<f32>,
}

impl CpuRunner {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        let states = StatePool::new(model.state_layout().clone());
        Self { model, states, act: Activations::default(), state_buffers: StateBuffers::default(), logits: Vec::new() }
    }

    /// The model that is run.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Like [`forward`](Runner::forward), and adds what the neurons did to `trace`. For a single row.
    ///
    /// # Errors
    /// [`Error::TokenId`](crate::Error::TokenId) for an id outside the vocabulary.
    pub fn forward_traced(&mut self, row: PassRow<'_>, trace: &mut Trace) -> Result<()> {
        self.pass(&[row], Some(trace), None)
    }

    /// Like [`forward`](Runner::forward), and lets `observer` see what the matrices are multiplied with.
    ///
    /// # Errors
    /// [`Error::TokenId`](crate::Error::TokenId) for an id outside the vocabulary.
    pub fn forward_observed(&mut self, row: PassRow<'_>, observer: &mut Observer) -> Result<()> {
        self.pass(&[row], None, Some(observer))
    }

    fn pass(&mut self, rows: &[PassRow<'_>], trace: Option<&mut Trace>, observer: Option<&mut Observer>) -> Result<()> {
        check_rows(rows, self.model.config().vocab_size, MAX_PASS_TOKENS)?;
        self.logits.clear();
        if rows.is_empty() {
            return Ok(());
        }
        let Self { model, states, act, state_buffers, logits } = self;
        let mut pass = Pass::new(model.cpu(), rows, states, state_buffers, trace);
        if let Some(observer) = observer {
            pass = pass.observed_by(observer);
        }
        let architecture = model.architecture().expect("a runner on the CPU is of a model on the CPU");
        architecture.forward(&mut pass, act, logits);
        Ok(())
    }
}

impl Runner for CpuRunner {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn max_pass_tokens(&self) -> usize {
        MAX_PASS_TOKENS
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        Ok(self.states.alloc())
    }

    fn free_slot(&mut self, slot: Slot) {
        self.states.free(slot);
    }

    fn reset_slot(&mut self, slot: Slot) -> Result<()> {
        self.states.reset(slot);
        Ok(())
    }

    fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.states.copy(from, to);
        Ok(())
    }

    fn read_state(&self, slot: Slot) -> Result<Vec<f32>> {
        Ok(self.states.get(slot).to_vec())
    }

    fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
        self.states.write(slot, state)
    }

    fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        self.pass(rows, None, None)
    }

    fn cpu(&self) -> Option<&Cpu> {
        Some(self.model.cpu())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn hidden(&self) -> &[f32] {
        &self.act.wanted
    }
}
