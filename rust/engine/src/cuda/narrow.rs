//! Passes of a few tokens: the phases of a model, and how they are launched. `kernels/generate/narrow` has the kernels.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use spikelet_simd::WeightFormat;

use super::driver::{Buffer, Device, Kernel};
use super::weights::PackedMatrix;
use crate::error::{Error, Result};

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Embed = 0,
    Mix = 1,
    Channel = 2,
    Add = 3,
    Head = 4,
}

/// Of [`Kind::Add`]: what is added drives neurons first.
pub const NEURONS: u32 = 1;
/// Of [`Kind::Add`]: it is the value of channel mixing.
pub const GATED: u32 = 2;
/// Of [`Kind::Add`]: the residual stream is halved after it.
pub const HALVE: u32 = 4;
/// Of [`Kind::Mix`] and [`Kind::Channel`]: the inputs of one matrix at a time are staged.
const ONE_MATRIX: u32 = 8;
/// From this bit on `flags` hold a number: the spans of inputs that are staged at a time.
const STAGED_SPANS: u32 = 16;

/// One phase, as kernels are told of it; addresses are 0 where there is nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Phase {
    pub kind: u32,
    pub width: u32,
    pub matrices: u32,
    pub items: u32,
    pub round_items: u32,
    pub spans: u32,
    pub outlier_spans: u32,
    pub flags: u32,
    pub matrix: [PackedMatrix; 3],
    /// Weight and bias of the layer norm.
    pub norm: [u64; 2],
    pub mix: [u64; 3],
    pub decay: u64,
    pub first: u64,
    pub table: u64,
    pub table_format: u32,
    pub epsilon: f32,
    pub shift: u32,
    pub state: u32,
}

/// What phases leave for each other, as kernels are told of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Workspace {
    pub x: u64,
    pub normed: u64,
    pub y: u64,
    pub wide: u64,
    pub gate: u64,
    pub logits: u64,
    pub hidden: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Params {
    phase: Phase,
    following: u64,
    count: u32,
    unused: u32,
    arrived: u64,
    stuck: u64,
    pass: u64,
    work: Workspace,
}

const _: () = assert!(size_of::<Phase>() == 256 && size_of::<Params>() == 352);

impl Phase {
    /// A phase of these matrices; `width` is that of the residual stream.
    pub fn new(kind: Kind, width: usize, matrices: &[PackedMatrix]) -> Self {
        let mut phase = Self { kind: kind as u32, width: width as u32, ..Self::default() };
        phase.matrices = matrices.len() as u32;
        phase.matrix[..matrices.len()].copy_from_slice(matrices);
        let groups = matrices.iter().map(PackedMatrix::groups);
        phase.items = if kind == Kind::Mix { groups.max() } else { groups.reduce(|a, b| a + b) }.unwrap_or(0);
        phase.spans = matrices.iter().map(PackedMatrix::spans).max().unwrap_or(0);
        phase.outlier_spans = matrices.iter().map(PackedMatrix::outlier_spans).max().unwrap_or(0);
        phase
    }

    fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }

    /// Units of one item.
    fn item_units(&self) -> u32 {
        (self.spans + self.outlier_spans) * if self.is(Kind::Mix) { self.matrices } else { 1 }
    }

    fn staged_spans(&self) -> u32 {
        self.flags >> STAGED_SPANS
    }

    /// How many parts of the inputs are staged one after another.
    fn parts(&self) -> u32 {
        match self.flags & ONE_MATRIX {
            0 if self.is(Kind::Add) => self.spans.div_ceil(self.staged_spans()),
            0 => 1,
            _ => self.matrices,
        }
    }

    /// Bytes of shared memory that a block needs: `SharedPlan` in `phase.cuh`.
    fn shared_bytes(&self, format: WeightFormat, columns: u32) -> u32 {
        const STAGED_FLOATS: u32 = 68 * 4;
        let integers = format == WeightFormat::Q8;
        let raw = if self.is(Kind::Add) { 0 } else { (self.width.div_ceil(16) | 1) * 16 * 4 };
        let staged = if self.flags & ONE_MATRIX == 0 { self.matrices } else { 1 };
        let staged = staged * self.staged_spans() * 4 * if integers { 80 } else { STAGED_FLOATS };
        let outliers = self.matrices * self.outlier_spans * 4 * STAGED_FLOATS;
        let partials = self.round_items * self.item_units() * (columns + u32::from(integers)) * 40 * 4;
        let partials = partials * if self.parts() > 1 { 1 } else { 2 };
        let folded = self.round_items * 6 * 8 * columns * 4;
        columns * (raw + staged + outliers) + partials + folded
    }

    /// Chooses what each of `blocks` blocks has in its shared memory. None: it does not find room even in the smallest parts.
    fn fit(self, format: WeightFormat, columns: u32, blocks: u32, room: u32) -> Option<Self> {
        let mut forms = vec![Self { flags: self.flags | self.spans << STAGED_SPANS, ..self }];
        match self.matrices {
            2.. => forms.push(Self { flags: forms[0].flags | ONE_MATRIX, ..self }),
            _ if self.is(Kind::Add) => {
                let halves = (1..).map(|i| self.spans >> i).take_while(|&spans| spans > 0);
                forms.extend(halves.map(|spans| Self { flags: self.flags | spans << STAGED_SPANS, ..self }));
            }
            _ => {}
        }
        forms.into_iter().find_map(|form| form.fit_items(format, columns, blocks, room))
    }

    /// Chooses how many items a block works on at a time: as many as keep its warps busy, as far as there are so many and they find room.
    fn fit_items(mut self, format: WeightFormat, columns: u32, blocks: u32, room: u32) -> Option<Self> {
        let wanted = if columns == 8 { 24 } else { 36 };
        let here = self.items.div_ceil(blocks.max(1)).max(1);
        self.round_items = (wanted / self.item_units().max(1)).clamp(1, here);
        while self.shared_bytes(format, columns) > room {
            self.round_items = self.round_items.checked_sub(1).filter(|&items| items > 0)?;
        }
        Some(self)
    }
}

/// Shared memory that kernels have besides.
const STATIC_SHARED: u32 = 1024;
/// What kernels there are: the most columns of each.
const COLUMNS: [u32; 3] = [1, 4, 8];

/// The phases of a model for passes of up to so many tokens.
struct Form {
    columns: u32,
    kernel: Kernel,
    phases: Vec<Phase>,
    /// The same on the card, for launches of several.
    on_card: Buffer<Phase>,
    /// Blocks of a launch, and the most shared memory that a phase needs.
    blocks: u32,
    shared_bytes: u32,
}

/// All phases of a model, and the kernels that run them.
pub struct Narrow {
    device: Arc<Device>,
    format: WeightFormat,
    forms: Vec<Form>,
}

/// How a pass is launched. All ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A launch for every phase.
    Chain,
    /// The same, recorded once and launched as one.
    Graph,
    /// One launch for all, whose blocks wait for each other.
    Cooperative,
}

/// Where the card finds what belongs to a pass.
#[derive(Clone, Copy, Debug)]
pub struct PassMemory {
    pub pass: u64,
    pub work: Workspace,
    /// Two words: of how many blocks have come to a barrier, and whether one of them was stuck.
    pub barrier: u64,
}

impl Narrow {
    /// # Errors
    /// [`Error::Device`] if the device is lost, [`Error::Unsupported`] if a block has no room for a single token.
    pub fn new(device: &Arc<Device>, format: WeightFormat, phases: &[Phase]) -> Result<Self> {
        let room = device.shared_memory_per_block().saturating_sub(STATIC_SHARED);
        let blocks = device.multiprocessors();
        let name = match format {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::F16 => "f16",
            _ => "q8",
        };
        let mut forms = Vec::new();
        for columns in COLUMNS {
            let fitted = phases.iter().map(|phase| phase.fit(format, columns, blocks, room));
            let Some(phases) = fitted.collect::<Option<Vec<_>>>() else { break };
            let kernel = device.kernel(&format!("spk_narrow_{name}_{columns}"))?;
            let on_card = device.upload(&phases)?;
            let shared_bytes = phases.iter().map(|phase| phase.shared_bytes(format, columns)).max().unwrap_or(0);
            forms.push(Form { columns, kernel, phases, on_card, blocks, shared_bytes });
        }
        if forms.is_empty() {
            return Err(Error::Unsupported {
                what: format!("a model of this width on {}", device.name()),
                reason: format!("a block has only {room} bytes of shared memory there; load it with device \"cpu\""),
            });
        }
        Ok(Self { device: Arc::clone(device), format, forms })
    }

    /// Most tokens of a pass.
    pub fn most_tokens(&self) -> usize {
        self.forms.last().map_or(0, |form| form.columns as usize)
    }

    /// Blocks that come to the barriers of a cooperative pass, all of them together.
    pub fn arrivals(&self, tokens: usize, lines: usize) -> u32 {
        let form = self.form(tokens);
        let phases = form.phases.len() - usize::from(lines == 0);
        form.blocks * (phases - 1) as u32
    }

    fn form(&self, tokens: usize) -> &Form {
        let fits = self.forms.iter().find(|form| form.columns as usize >= tokens);
        fits.expect("as many tokens as a pass may have")
    }

    /// Whether the card runs all blocks of a cooperative pass at once.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost.
    pub fn can_cooperate(&self) -> Result<bool> {
        for form in &self.forms {
            if self.device.resident_blocks(&form.kernel, form.shared_bytes)? < form.blocks {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has the card run a pass that was described to it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost.
    pub fn run(&self, driver: Driver, tokens: usize, lines: usize, memory: &PassMemory) -> Result<()> {
        match driver {
            Driver::Chain | Driver::Graph => self.chain(tokens, lines, memory),
            Driver::Cooperative => self.cooperative(tokens, lines, memory),
        }
    }

    fn params(phase: &Phase, memory: &PassMemory) -> Params {
        let PassMemory { pass, work, barrier } = *memory;
        Params { phase: *phase, count: 1, pass, work, arrived: barrier, stuck: barrier + 4, ..Params::default() }
    }

    fn chain(&self, tokens: usize, lines: usize, memory: &PassMemory) -> Result<()> {
        for i in 0..self.form(tokens).phases.len() {
            let is_head = self.form(tokens).phases[i].is(Kind::Head);
            if is_head && lines == 0 {
                continue;
            }
            // Lines are the columns of the head.
            let form = self.form(if is_head { lines } else { tokens });
            let phase = &form.phases[i];
            let items = if phase.is(Kind::Embed) { tokens as u32 } else { phase.items };
            let shared_bytes = phase.shared_bytes(self.format, form.columns);
            let params = Self::params(phase, memory);
            // SAFETY: the kernel takes these parameters. What a phase points to was laid out for it by `CudaModel`, which
            // keeps it; the pass and the workspace are of the runner that asks, for as many tokens as a pass may have.
            #[allow(unsafe_code)]
            unsafe { self.device.launch(&form.kernel, items.min(form.blocks), shared_bytes, &params) }?;
        }
        Ok(())
    }

    fn cooperative(&self, tokens: usize, lines: usize, memory: &PassMemory) -> Result<()> {
        let form = self.form(tokens);
        let count = form.phases.len() - usize::from(lines == 0);
        let mut params = Self::params(&form.phases[0], memory);
        params.count = count as u32;
        params.following = form.on_card.pointer_at(1);
        // SAFETY: as in `chain`; `following` has the phases after the first.
        #[allow(unsafe_code)]
        unsafe {
            self.device.launch_cooperative(&form.kernel, form.blocks, form.shared_bytes, &params)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fits in a block of an H200.
    fn fitted(kind: Kind, width: usize, shapes: &[(usize, usize)], columns: u32) -> Option<Phase> {
        let matrices = shapes.iter().map(|&(outputs, inputs)| PackedMatrix::of_shape(outputs, inputs));
        let matrices: Vec<_> = matrices.collect();
        let room = (227 << 10) - STATIC_SHARED;
        let phase = Phase::new(kind, width, &matrices).fit(WeightFormat::Bf16, columns, 132, room)?;
        assert!(phase.shared_bytes(WeightFormat::Bf16, columns) <= room && phase.round_items > 0);
        Some(phase)
    }

    #[test]
    fn inputs_are_staged_whole_where_there_is_room_and_else_in_parts() {
        let parts = |d: usize, columns| {
            let f = 4 * d;
            let mix = fitted(Kind::Mix, d, &[(d, d); 3], columns)?;
            let channel = fitted(Kind::Channel, d, &[(f, d), (d, d)], columns)?;
            let add = fitted(Kind::Add, d, &[(d, f)], columns)?;
            Some([mix.parts(), channel.parts(), add.parts()])
        };
        assert_eq!(parts(768, 8), Some([1, 1, 1]));
        assert_eq!(parts(2048, 4), Some([1, 1, 1]));
        assert_eq!(parts(2048, 8), Some([3, 1, 2]));
        assert_eq!(parts(2560, 8).map(|p| p[0]), Some(3));
        assert_eq!(parts(4096, 8), None);
        assert_eq!(parts(5120, 4).map(|p| p[0]), Some(3));
    }
}
