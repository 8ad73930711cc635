//! The runner on a GPU.

use std::collections::HashMap;
use std::sync::Arc;

use spikelet_simd::Cpu;

use super::CudaModel;
use super::draw::DeviceSampler;
use super::driver::{Buffer, Device, Graph};
use super::narrow::{Driver, PassMemory, Workspace};
use super::pass::{Description, MAX_TOKENS, PASS_BYTES};
use super::slots::Slots;
use super::wide::{Wide, WidePass};
use crate::backend::{DrawSpec, Drawn, PassRow, Runner, check_rows};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::state::Slot;

/// Models of up to so many bytes are bound by how long their phases wait, not by memory: all phases of a pass are one launch. A guess: not
/// yet measured.
const SMALL_MODEL: usize = 1 << 30;

/// A model on a GPU with states and buffers of its own.
pub struct CudaRunner {
    model: Arc<Model>,
    device: Arc<Device>,
    driver: Driver,
    slots: Slots,
    pass: Buffer<u8>,
    work: Work,
    wide: Wide,
    description: Description,
    /// Blocks that have come to barriers so far.
    arrived: u32,
    /// Passes that were recorded, by tokens and lines. Nothing else of a pass is part of them.
    graphs: HashMap<(usize, usize), Graph>,
    sampler: DeviceSampler,
    /// Lines that the last launch of phases has left in the memory of `wide`, if it was of many tokens, else of `work`.
    lines: usize,
    many: bool,
    logits: Vec<f32>,
    hidden: Vec<f32>,
}

/// Memory that phases work in, for as many tokens as a pass of a few has.
struct Work {
    /// Residual stream, its normed form, result of WKV, gate: `[tokens][hidden]` each.
    narrow: [Buffer<f32>; 4],
    /// Key of channel mixing.
    wide: Buffer<f32>,
    logits: Buffer<f32>,
    hidden: Buffer<f32>,
    barrier: Buffer<u32>,
}

impl Work {
    fn new(device: &Arc<Device>, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let of = |width: usize| device.zeros(tokens * width);
        let d = config.hidden_size;
        Ok(Self {
            narrow: [of(d)?, of(d)?, of(d)?, of(d)?],
            wide: of(config.intermediate_size)?,
            logits: of(config.vocab_size)?,
            hidden: of(d)?,
            barrier: device.zeros(2)?,
        })
    }

    fn pointers(&self) -> Workspace {
        let [x, normed, y, gate] = self.narrow.each_ref().map(Buffer::pointer);
        let (wide, logits, hidden) = (self.wide.pointer(), self.logits.pointer(), self.hidden.pointer());
        Workspace { x, normed, y, wide, gate, logits, hidden }
    }
}

impl CudaRunner {
    /// # Errors
    /// [`Error::Device`] if there is no room, or the device is lost.
    pub(crate) fn new(model: Arc<Model>) -> Result<Self> {
        let cuda = of(&model);
        let device = Arc::clone(cuda.device());
        let driver = choose(cuda)?;
        let slots = Slots::new(&device, model.state_layout())?;
        let pass = device.zeros(PASS_BYTES)?;
        let work = Work::new(&device, model.config(), cuda.narrow().most_tokens())?;
        let wide = Wide::new(&device, cuda.format(), cuda.phases())?;
        Ok(Self {
            driver,
            slots,
            pass,
            work,
            wide,
            description: Description::default(),
            arrived: 0,
            graphs: HashMap::new(),
            sampler: DeviceSampler::new(&device)?,
            lines: 0,
            many: false,
            logits: Vec::new(),
            hidden: Vec::new(),
            device,
            model,
        })
    }

    /// Launches passes in this way from now on, in place of the one that was thought to be quickest or was named by
    /// `SPIKELET_CUDA_DRIVER`.
    pub fn drive_by(&mut self, driver: Driver) {
        self.driver = driver;
    }

    /// The pass of a few tokens that was described.
    fn narrow(&mut self) -> Result<()> {
        let narrow = of(&self.model).narrow();
        let (tokens, lines) = (self.description.tokens(), self.description.lines());
        let memory =
            PassMemory { pass: self.pass.pointer(), work: self.work.pointers(), barrier: self.work.barrier.pointer() };
        match self.driver {
            Driver::Chain => narrow.run(Driver::Chain, tokens, lines, &memory)?,
            Driver::Graph => {
                // The memory stays where it is as long as the runner lives, so what is recorded stays good.
                if !self.graphs.contains_key(&(tokens, lines)) {
                    let graph = self.device.capture(&mut || narrow.run(Driver::Chain, tokens, lines, &memory))?;
                    self.graphs.insert((tokens, lines), graph);
                }
                self.graphs[&(tokens, lines)].launch()?;
            }
            Driver::Cooperative => {
                narrow.run(Driver::Cooperative, tokens, lines, &memory)?;
                self.arrived = self.arrived.wrapping_add(narrow.arrivals(tokens, lines));
            }
        }
        (self.lines, self.many) = (lines, false);
        Ok(())
    }

    /// The pass of many tokens that was described.
    fn wide(&mut self) -> Result<()> {
        let (tokens, rows, lines) = (self.description.tokens(), self.description.rows(), self.description.lines());
        let pass = WidePass { pass: self.pass.pointer(), tokens, rows, lines };
        self.wide.run(of(&self.model).phases(), &pass, self.driver != Driver::Chain)?;
        (self.lines, self.many) = (lines, true);
        Ok(())
    }

    /// Waits for the last pass, and brings its logits here.
    fn fetch_logits(&mut self) -> Result<()> {
        let [from, _] = left(&self.work, self.wide.lines().filter(|_| self.many));
        append(&self.device, from, self.lines * self.model.config().vocab_size, &mut self.logits)?;
        self.check_barriers()
    }

    /// The same of the residual stream.
    fn fetch_hidden(&mut self) -> Result<()> {
        let [_, from] = left(&self.work, self.wide.lines().filter(|_| self.many));
        append(&self.device, from, self.lines * self.model.config().hidden_size, &mut self.hidden)
    }

    /// After a wait for the card: an error if blocks have waited for each other in vain.
    fn check_barriers(&self) -> Result<()> {
        if self.driver != Driver::Cooperative {
            return Ok(());
        }
        let mut stuck = [0];
        self.device.read(&self.work.barrier, 1, &mut stuck)?;
        if stuck == [0] { Ok(()) } else { Err(self.stuck()) }
    }

    fn stuck(&self) -> Error {
        Error::Device {
            device: self.model.device(),
            reason: "blocks of a kernel waited for each other in vain; SPIKELET_CUDA_DRIVER=graph does without".into(),
        }
    }
}

fn of(model: &Model) -> &CudaModel {
    model.cuda().expect("a runner on a GPU is of a model on a GPU")
}

/// How passes are launched: as `SPIKELET_CUDA_DRIVER` says, else as is thought to be quickest.
fn choose(model: &CudaModel) -> Result<Driver> {
    let named = std::env::var("SPIKELET_CUDA_DRIVER").ok().filter(|name| !name.is_empty());
    match named.as_deref() {
        Some("chain") => Ok(Driver::Chain),
        Some("graph") => Ok(Driver::Graph),
        Some("cooperative") => Ok(Driver::Cooperative),
        None if model.weight_bytes() <= SMALL_MODEL && model.narrow().can_cooperate()? => Ok(Driver::Cooperative),
        None => Ok(Driver::Graph),
        Some(other) => Err(Error::Option {
            name: "SPIKELET_CUDA_DRIVER".into(),
            value: other.into(),
            needed: "chain, graph or cooperative".into(),
        }),
    }
}

/// Where a pass has left logits and residual stream.
fn left<'a>(few: &'a Work, many: Option<&'a [Buffer<f32>; 2]>) -> [&'a Buffer<f32>; 2] {
    many.map_or([&few.logits, &few.hidden], |[logits, hidden]| [logits, hidden])
}

/// Reads the first `len` numbers of a buffer to the end of `to`.
fn append(device: &Device, from: &Buffer<f32>, len: usize, to: &mut Vec<f32>) -> Result<()> {
    let start = to.len();
    to.resize(start + len, 0.0);
    device.read(from, 0, &mut to[start..])
}

impl Runner for CudaRunner {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn max_pass_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        self.slots.alloc()
    }

    fn free_slot(&mut self, slot: Slot) {
        self.slots.free(slot);
    }

    fn reset_slot(&mut self, slot: Slot) -> Result<()> {
        self.slots.reset(slot)
    }

    fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.slots.copy(from, to)
    }

    fn read_state(&self, slot: Slot) -> Result<Vec<f32>> {
        let state = self.slots.read(slot)?;
        self.check_barriers()?;
        Ok(state)
    }

    fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
        self.slots.write(slot, state)
    }

    fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        self.forward_deferred(rows)?;
        self.fetch(true, true)
    }

    fn forward_deferred(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        check_rows(rows, self.model.config().vocab_size, MAX_TOKENS)?;
        self.logits.clear();
        self.hidden.clear();
        self.lines = 0;
        self.description.fill(rows, &self.slots, self.arrived);
        self.device.write(&self.pass, 0, self.description.bytes())?;
        match self.description.tokens() {
            0 => Ok(()),
            tokens if tokens <= of(&self.model).narrow().most_tokens() => self.narrow(),
            _ => self.wide(),
        }
    }

    fn fetch(&mut self, logits: bool, hidden: bool) -> Result<()> {
        if self.lines == 0 {
            return Ok(());
        }
        if hidden {
            self.fetch_hidden()?;
        }
        if logits {
            self.fetch_logits()?;
        }
        self.lines = 0;
        Ok(())
    }

    fn draws(&self) -> bool {
        true
    }

    fn draw(&mut self, specs: &[DrawSpec], drawn: &mut Vec<Option<Drawn>>) -> Result<()> {
        if self.lines == 0 {
            drawn.clear();
            drawn.resize(specs.len(), None);
            return Ok(());
        }
        let stuck = (self.driver == Driver::Cooperative).then_some((&self.work.barrier, 1));
        let vocab_size = self.model.config().vocab_size;
        let [logits, _] = left(&self.work, self.wide.lines().filter(|_| self.many));
        match self.sampler.draw(logits, vocab_size, specs, stuck, drawn)? {
            false => Ok(()),
            true => Err(self.stuck()),
        }
    }

    fn cpu(&self) -> Option<&Cpu> {
        Some(self.model.cpu())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }
}
