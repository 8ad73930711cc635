//! Tokens drawn where the logits are: those that the CPU's sampler draws, with the same log probabilities.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use spikelet_simd::log_of_sum;

use super::driver::{Buffer, Device, Kernel};
use crate::backend::{DrawSpec, Drawn};
use crate::error::Result;

const GREEDY: u32 = 1;
const LATE_TEMPERATURE: u32 = 2;
/// Lines for which there is room from the beginning.
const LINES: usize = 16;

/// `DrawSpec` of kernels/generate/draw.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Spec {
    line: u32,
    known: u32,
    key: [u32; 2],
    position: [u32; 2],
    row: u32,
    flags: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    unused: u32,
}

/// `Drawn` of kernels/generate/draw.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Found {
    id: u32,
    trouble: u32,
    logit: f32,
    not_finite: u32,
    greatest: f32,
    sum: f32,
    stuck: u32,
    unused: u32,
}

/// `Draw` of kernels/generate/draw.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Params {
    specs: u64,
    logits: u64,
    drawn: u64,
    boards: u64,
    stuck: u64,
    vocab: u32,
    parts: u32,
}

/// Bytes of `Board`, in which the blocks of a line tell each other what they found.
const BOARD: usize = 45712;
/// Most blocks that draw from one line.
const MOST_PARTS: u32 = 32;

/// Draws from lines of logits in a card's memory.
pub struct DeviceSampler {
    device: Arc<Device>,
    kernel: Kernel,
    specs: Buffer<u8>,
    found: Buffer<u8>,
    /// Zeros between launches.
    boards: Buffer<u8>,
    /// Blocks that the card runs at once.
    resident: u32,
    /// What goes there and comes back.
    host_specs: Vec<Spec>,
    host_found: Vec<Found>,
}

impl DeviceSampler {
    /// One for a device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if it has no room, or is lost.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let kernel = device.kernel("spk_draw")?;
        Ok(Self {
            resident: device.resident_blocks(&kernel, 0)?,
            kernel,
            boards: device.zeros(LINES * BOARD)?,
            specs: device.zeros(LINES * size_of::<Spec>())?,
            found: device.zeros(LINES * size_of::<Found>())?,
            host_specs: Vec::with_capacity(LINES),
            host_found: Vec::with_capacity(LINES),
            device: Arc::clone(device),
        })
    }

    /// Draws as `specs` say from `logits`, `[lines][vocab]`, and puts a token for each into `drawn`; none where the CPU has to look. With
    /// the tokens comes whether a word is set that the host wants to know of: number `stuck.1` of `stuck.0`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device is lost.
    ///
    /// # Panics
    /// If a line is not there.
    pub fn draw(
        &mut self,
        logits: &Buffer<f32>,
        vocab: usize,
        specs: &[DrawSpec],
        stuck: Option<(&Buffer<u32>, usize)>,
        drawn: &mut Vec<Option<Drawn>>,
    ) -> Result<bool> {
        drawn.clear();
        assert!(stuck.is_none_or(|(words, index)| index < words.len()), "the word is not there");
        if specs.is_empty() {
            return Ok(false);
        }
        let parts = self.parts(specs.len());
        let Self { device, host_specs, host_found, .. } = self;
        host_specs.clear();
        host_specs.extend(specs.iter().map(|spec| {
            assert!((spec.line + 1) * vocab <= logits.len() && spec.known <= vocab, "line {} is not there", spec.line);
            Spec::from(spec)
        }));
        host_found.resize(specs.len(), Found::zeroed());
        let (going, coming): (&[u8], &mut [u8]) =
            (bytemuck::cast_slice(host_specs), bytemuck::cast_slice_mut(host_found));
        if going.len() > self.specs.len() {
            let lines = specs.len().next_power_of_two();
            self.specs = device.zeros(lines * size_of::<Spec>())?;
            self.found = device.zeros(lines * size_of::<Found>())?;
            self.boards = device.zeros(lines * BOARD)?;
        }
        device.write(&self.specs, 0, going)?;
        let params = Params {
            specs: self.specs.pointer(),
            logits: logits.pointer(),
            drawn: self.found.pointer(),
            boards: self.boards.pointer(),
            stuck: stuck.map_or(0, |(words, index)| words.pointer_at(index)),
            vocab: vocab as u32,
            parts,
        };
        let blocks = (parts + 1) * specs.len() as u32;
        // SAFETY: there is a spec, an answer and a board for all blocks of a line, and the lines and the word that they name are there.
        #[allow(unsafe_code)]
        unsafe {
            match parts {
                1 => device.launch(&self.kernel, blocks, 0, &params)?,
                _ => device.launch_cooperative(&self.kernel, blocks, 0, &params)?,
            }
        }
        device.read(&self.found, 0, coming)?;
        drawn.extend(host_found.iter().map(Found::outcome));
        Ok(host_found.iter().any(|found| found.stuck != 0))
    }
}

impl DeviceSampler {
    /// Blocks that draw from each of so many lines, beside the one that sums: all together half of those that run at once, which is more than
    /// enough.
    fn parts(&self, lines: usize) -> u32 {
        let each = self.resident as usize / 2 / lines;
        (each.saturating_sub(1) as u32).clamp(1, MOST_PARTS)
    }
}

impl From<&DrawSpec> for Spec {
    fn from(spec: &DrawSpec) -> Self {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let greedy = if spec.temperature == 0.0 { GREEDY } else { 0 };
        let late = if spec.late_temperature { LATE_TEMPERATURE } else { 0 };
        Self {
            line: spec.line as u32,
            known: spec.known as u32,
            key: halves(spec.seed),
            position: halves(spec.position),
            row: spec.row,
            flags: greedy | late,
            temperature: spec.temperature,
            top_k: u32::try_from(spec.top_k).unwrap_or(u32::MAX),
            top_p: spec.top_p,
            unused: 0,
        }
    }
}

impl Found {
    fn outcome(&self) -> Option<Drawn> {
        let logprob = self.logit - log_of_sum(self.greatest, self.sum);
        let good = self.trouble == 0 && self.not_finite == 0 && logprob.is_finite();
        good.then_some(Drawn { id: self.id, logprob })
    }
}
