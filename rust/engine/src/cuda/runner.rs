//! The runner on a GPU.

use std::sync::Arc;

use crate::backend::{PassRow, Runner};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model::Model;
use crate::state::Slot;

/// A model on a GPU with states and buffers of its own.
pub struct CudaRunner {
    model: Arc<Model>,
}

impl CudaRunner {
    pub(crate) fn new(model: Arc<Model>) -> Result<Self> {
        Ok(Self { model })
    }
}

impl Runner for CudaRunner {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn max_pass_tokens(&self) -> usize {
        512
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        Ok(0)
    }

    fn free_slot(&mut self, _slot: Slot) {}

    fn reset_slot(&mut self, _slot: Slot) -> Result<()> {
        Ok(())
    }

    fn copy_slot(&mut self, _from: Slot, _to: Slot) -> Result<()> {
        Ok(())
    }

    fn read_state(&self, _slot: Slot) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn write_state(&mut self, _slot: Slot, _state: &[f32]) -> Result<()> {
        Ok(())
    }

    fn forward(&mut self, _rows: &[PassRow<'_>]) -> Result<()> {
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &[]
    }

    fn hidden(&self) -> &[f32] {
        &[]
    }
}
