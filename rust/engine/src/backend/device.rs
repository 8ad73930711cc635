//! A runner on whatever device the model computes on.

use spikelet_simd::Cpu;

use super::{CpuRunner, DrawSpec, Drawn, PassRow, Runner};
use crate::config::ModelConfig;
use crate::cuda::CudaRunner;
use crate::error::{Error, Result};
use crate::model::{Observer, Trace};
use crate::state::Slot;

/// Runs a model where it was loaded.
pub enum DeviceRunner {
    /// On the CPU.
    Cpu(Box<CpuRunner>),
    /// On a GPU.
    Cuda(Box<CudaRunner>),
}

/// The same call, wherever it goes.
macro_rules! either {
    ($self:expr, $runner:ident => $call:expr) => {
        match $self {
            DeviceRunner::Cpu($runner) => $call,
            DeviceRunner::Cuda($runner) => $call,
        }
    };
}

impl DeviceRunner {
    /// Like [`forward`](Runner::forward), and adds what the neurons did to `trace`. For a single row, on the CPU.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id outside the vocabulary, [`Error::Unsupported`] on a GPU.
    pub fn forward_traced(&mut self, row: PassRow<'_>, trace: &mut Trace) -> Result<()> {
        match self {
            Self::Cpu(runner) => runner.forward_traced(row, trace),
            Self::Cuda(_) => Err(cpu_only("a trace of the neurons")),
        }
    }

    /// Like [`forward`](Runner::forward), and lets `observer` see what the matrices are multiplied with. On the CPU.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id outside the vocabulary, [`Error::Unsupported`] on a GPU.
    pub fn forward_observed(&mut self, row: PassRow<'_>, observer: &mut Observer) -> Result<()> {
        match self {
            Self::Cpu(runner) => runner.forward_observed(row, observer),
            Self::Cuda(_) => Err(cpu_only("watching the products of passes")),
        }
    }
}

/// An error for what a GPU's memory does not show.
pub(crate) fn cpu_only(what: &str) -> Error {
    Error::Unsupported {
        what: format!("{what} on a GPU"),
        reason: "load the model with device \"cpu\", which computes the same bits".into(),
    }
}

impl Runner for DeviceRunner {
    fn config(&self) -> &ModelConfig {
        either!(self, runner => runner.config())
    }

    fn max_pass_tokens(&self) -> usize {
        either!(self, runner => runner.max_pass_tokens())
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        either!(self, runner => runner.alloc_slot())
    }

    fn free_slot(&mut self, slot: Slot) {
        either!(self, runner => runner.free_slot(slot));
    }

    fn reset_slot(&mut self, slot: Slot) -> Result<()> {
        either!(self, runner => runner.reset_slot(slot))
    }

    fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()> {
        either!(self, runner => runner.copy_slot(from, to))
    }

    fn read_state(&self, slot: Slot) -> Result<Vec<f32>> {
        either!(self, runner => runner.read_state(slot))
    }

    fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
        either!(self, runner => runner.write_state(slot, state))
    }

    fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        either!(self, runner => runner.forward(rows))
    }

    fn forward_deferred(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        either!(self, runner => runner.forward_deferred(rows))
    }

    fn fetch(&mut self, logits: bool, hidden: bool) -> Result<()> {
        either!(self, runner => runner.fetch(logits, hidden))
    }

    fn draws(&self) -> bool {
        either!(self, runner => runner.draws())
    }

    fn draw(&mut self, specs: &[DrawSpec], drawn: &mut Vec<Option<Drawn>>) -> Result<()> {
        either!(self, runner => runner.draw(specs, drawn))
    }

    fn cpu(&self) -> Option<&Cpu> {
        either!(self, runner => runner.cpu())
    }

    fn logits(&self) -> &[f32] {
        either!(self, runner => runner.logits())
    }

    fn hidden(&self) -> &[f32] {
        either!(self, runner => runner.hidden())
    }
}
