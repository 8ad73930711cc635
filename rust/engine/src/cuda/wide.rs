//! Passes of many tokens: the same phases as [`narrow`](super::narrow), each as two to three launches. `kernels/generate/wide` has the
//! kernels.

use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use spikelet_simd::WeightFormat;

use super::driver::{Buffer, Device, Graph, Kernel};
use super::narrow::{GATED, Kind, Phase};
use super::weights::PackedMatrix;
use crate::error::Result;

/// Inputs that are one chain; rows of activations lie whole ones apart.
const BLOCK: usize = 64;
/// Threads of kernels that work on activations, as warps.
const WARPS: usize = 8;
/// Channels of a block that walks tokens.
const WALKERS: usize = 32;
/// Tokens that there is memory for at first.
const FIRST: usize = 32;

/// Recorded passes that are kept at a time.
const MOST_GRAPHS: usize = 64;

/// Outputs and tokens of a tile.
#[derive(Clone, Copy)]
struct Tile {
    outputs: usize,
    tokens: usize,
}

/// What a matrix is multiplied with, as kernels are told of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Input {
    floats: u64,
    codes: u64,
    scales: u64,
    outliers: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Params {
    phase: Phase,
    pass: u64,
    count: u32,
    rows: u32,
    input: [Input; 3],
    x: u64,
    normed: u64,
    key: u64,
    value: u64,
    gate: u64,
    y: u64,
    wide: u64,
    out: u64,
    logits: u64,
    hidden: u64,
}

const _: () = assert!(size_of::<Params>() == 448);

/// A pass that was described to the card.
#[derive(Clone, Copy, Debug)]
pub struct WidePass {
    /// Where the description lies.
    pub pass: u64,
    pub tokens: usize,
    pub rows: usize,
    pub lines: usize,
}

struct Kernels {
    embed: Kernel,
    inputs: Kernel,
    encode: Kernel,
    wkv: Kernel,
    neurons: Kernel,
    large: (Kernel, Tile),
    small: (Kernel, Tile),
}

/// How much memory a token takes.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    hidden: usize,
    vocab: usize,
    /// Inputs of channel mixing's value, in whole blocks.
    wide: usize,
    /// The most inputs of a matrix, and the most outliers, in whole blocks.
    inputs: usize,
    outliers: usize,
}

/// Memory that phases work in.
struct Work {
    tokens: usize,
    floats: [Buffer<f32>; 8],
    inputs: Vec<Buffer<f32>>,
    codes: Vec<[Buffer<u8>; 3]>,
}

/// The way of a pass of many tokens.
pub struct Wide {
    device: Arc<Device>,
    integers: bool,
    kernels: Kernels,
    sizes: Sizes,
    work: Option<Work>,
    /// Of the lines that were wanted last, `[lines][..]`.
    lines: Option<(usize, [Buffer<f32>; 2])>,
    /// Passes of one token a row, which come again and again, by tokens and lines. They are of the memory that there is now.
    graphs: HashMap<(usize, usize), Graph>,
}

fn whole_blocks(inputs: usize) -> usize {
    inputs.next_multiple_of(BLOCK)
}

/// What a kernel has in shared memory of `width` channels of two tokens.
fn shared_bytes(width: usize) -> u32 {
    (2 * (width.div_ceil(16) | 1) * 16 * 4) as u32
}

impl Kernels {
    fn new(device: &Device, format: WeightFormat) -> Result<Self> {
        let integers = format == WeightFormat::Q8;
        let name = match format {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::F16 => "f16",
            _ => "q8",
        };
        let product = |size: &str| device.kernel(&format!("spk_wide_product_{size}_{name}"));
        let (large, small) = if integers {
            (Tile { outputs: 64, tokens: 64 }, Tile { outputs: 64, tokens: 16 })
        } else {
            (Tile { outputs: 128, tokens: 64 }, Tile { outputs: 32, tokens: 32 })
        };
        Ok(Self {
            embed: device.kernel("spk_wide_embed")?,
            inputs: device.kernel(if integers { "spk_wide_inputs_q8" } else { "spk_wide_inputs_float" })?,
            encode: device.kernel("spk_wide_encode")?,
            wkv: device.kernel("spk_wide_wkv")?,
            neurons: device.kernel("spk_wide_neurons")?,
            large: (product("large")?, large),
            small: (product("small")?, small),
        })
    }

    /// The kernel of a product, and its number of blocks. Large tiles, unless some multiprocessors would have none: the bits are the
    /// same.
    fn product(&self, phase: &Phase, count: usize, multiprocessors: u32) -> (&Kernel, u32) {
        let blocks = |tile: Tile| {
            let tiles = matrices(phase).iter().map(|m| (m.outputs as usize).div_ceil(tile.outputs)).sum::<usize>();
            (tiles * count.div_ceil(tile.tokens)) as u32
        };
        match blocks(self.large.1) {
            large if large >= multiprocessors => (&self.large.0, large),
            _ => (&self.small.0, blocks(self.small.1)),
        }
    }
}

fn matrices(phase: &Phase) -> &[PackedMatrix] {
    &phase.matrix[..phase.matrices as usize]
}

impl Sizes {
    fn of(phases: &[Phase]) -> Self {
        let mut sizes = Self::default();
        for phase in phases {
            sizes.hidden = phase.width as usize;
            for matrix in matrices(phase) {
                sizes.inputs = sizes.inputs.max(whole_blocks(matrix.inputs as usize));
                sizes.outliers = sizes.outliers.max(whole_blocks(matrix.outliers as usize));
            }
            if phase.kind == Kind::Channel as u32 {
                sizes.wide = sizes.wide.max(whole_blocks(phase.matrix[0].outputs as usize));
            }
            if phase.kind == Kind::Head as u32 {
                sizes.vocab = phase.matrix[0].outputs as usize;
            }
        }
        sizes
    }
}

impl Work {
    fn new(device: &Arc<Device>, sizes: &Sizes, integers: bool, tokens: usize) -> Result<Self> {
        // Zeros, because what lies between a token's last number and the next token stays as it is.
        let of = |width: usize| device.zeros::<f32>(tokens * width);
        let (hidden, blocks) = (sizes.hidden, whole_blocks(sizes.hidden));
        let floats = [
            of(hidden)?,
            of(hidden)?,
            of(hidden)?,
            of(hidden)?,
            of(hidden)?,
            of(blocks)?,
            of(sizes.wide)?,
            of(hidden)?,
        ];
        let (mut inputs, mut codes) = (Vec::new(), Vec::new());
        for i in 0..3 {
            // One matrix may have more inputs than there are channels: channel mixing's value, the only one of its phase.
            let width = if i == 0 { sizes.inputs } else { blocks };
            if integers {
                codes.push([
                    device.zeros(tokens * width)?,
                    device.zeros(tokens * width / BLOCK * 4)?,
                    device.zeros(tokens * sizes.outliers * 4)?,
                ]);
            } else {
                inputs.push(of(blocks)?);
            }
        }
        Ok(Self { tokens, floats, inputs, codes })
    }

    fn input(&self, i: usize) -> Input {
        match (self.inputs.get(i), self.codes.get(i)) {
            (_, Some([codes, scales, outliers])) => {
                Input { floats: 0, codes: codes.pointer(), scales: scales.pointer(), outliers: outliers.pointer() }
            }
            (Some(floats), None) => Input { floats: floats.pointer(), ..Input::default() },
            (None, None) => Input::default(),
        }
    }

    fn params(&self, pass: &WidePass) -> Params {
        let [x, normed, key, value, gate, y, wide, out] = self.floats.each_ref().map(Buffer::pointer);
        Params {
            pass: pass.pass,
            count: pass.tokens as u32,
            rows: pass.rows as u32,
            input: std::array::from_fn(|i| self.input(i)),
            x,
            normed,
            key,
            value,
            gate,
            y,
            wide,
            out,
            ..Params::default()
        }
    }
}

impl Wide {
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device is lost.
    pub fn new(device: &Arc<Device>, format: WeightFormat, phases: &[Phase]) -> Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            integers: format == WeightFormat::Q8,
            kernels: Kernels::new(device, format)?,
            sizes: Sizes::of(phases),
            work: None,
            lines: None,
            graphs: HashMap::new(),
        })
    }

    /// Logits and hidden states of the last pass, `[lines][..]`, and of how many lines.
    pub fn lines(&self) -> Option<&[Buffer<f32>; 2]> {
        self.lines.as_ref().map(|(_, buffers)| buffers)
    }

    /// Has the card run a pass that was described to it. With `record`, as a graph where it is likely to come again.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no room for its activations, or the device is lost.
    pub fn run(&mut self, phases: &[Phase], pass: &WidePass, record: bool) -> Result<()> {
        self.make_room(pass)?;
        if !record || pass.tokens != pass.rows {
            return self.launches(phases, pass);
        }
        let key = (pass.tokens, pass.lines);
        if !self.graphs.contains_key(&key) {
            if self.graphs.len() >= MOST_GRAPHS {
                self.graphs.clear();
            }
            let graph = self.device.capture(&mut || self.launches(phases, pass))?;
            self.graphs.insert(key, graph);
        }
        self.graphs[&key].launch()
    }

    fn launches(&self, phases: &[Phase], pass: &WidePass) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let mut params = work.params(pass);
        if let Some((_, [logits, hidden])) = &self.lines {
            (params.logits, params.hidden) = (logits.pointer(), hidden.pointer());
        }
        for phase in phases {
            if phase.kind == Kind::Head as u32 {
                if pass.lines == 0 {
                    continue;
                }
                params.count = pass.lines as u32;
            }
            params.phase = *phase;
            self.phase(params)?;
        }
        Ok(())
    }

    /// Takes memory for a pass if there is too little.
    fn make_room(&mut self, pass: &WidePass) -> Result<()> {
        if self.work.as_ref().is_none_or(|work| work.tokens < pass.tokens) {
            self.graphs.clear();
            self.work = None;
            let tokens = pass.tokens.next_power_of_two().max(FIRST);
            self.work = Some(Work::new(&self.device, &self.sizes, self.integers, tokens)?);
        }
        if self.lines.as_ref().is_none_or(|(lines, _)| *lines < pass.lines) && pass.lines > 0 {
            self.graphs.clear();
            self.lines = None;
            let lines = pass.lines.next_power_of_two();
            let of = |width: usize| self.device.zeros(lines * width);
            self.lines = Some((lines, [of(self.sizes.vocab)?, of(self.sizes.hidden)?]));
        }
        Ok(())
    }

    fn phase(&self, mut params: Params) -> Result<()> {
        let Params { phase, count, rows, .. } = params;
        let Kernels { embed, inputs, encode, wkv, neurons, .. } = &self.kernels;
        let (width, count, shared) = (phase.width as usize, count as usize, shared_bytes(phase.width as usize));
        let columns = rows * width.div_ceil(WALKERS) as u32;
        let (product, blocks) = self.kernels.product(&phase, count, self.device.multiprocessors());
        if phase.kind == Kind::Embed as u32 {
            return self.launch(embed, count as u32, shared, &params);
        }
        if phase.kind != Kind::Add as u32 {
            self.launch(inputs, count as u32, shared, &params)?;
            self.launch(product, blocks, 0, &params)?;
            return if phase.kind == Kind::Mix as u32 { self.launch(wkv, columns, 0, &params) } else { Ok(()) };
        }
        if self.integers {
            let tasks = count * (phase.matrix[0].inputs as usize).div_ceil(BLOCK);
            self.launch(encode, tasks.div_ceil(WARPS) as u32, 0, &params)?;
        } else {
            params.input[0].floats = if phase.flags & GATED == 0 { params.y } else { params.wide };
        }
        self.launch(product, blocks, 0, &params)?;
        self.launch(neurons, columns, 0, &params)
    }

    fn launch(&self, kernel: &Kernel, blocks: u32, shared_bytes: u32, params: &Params) -> Result<()> {
        // SAFETY: the kernel takes these parameters. What a phase points to was laid out for it by `CudaModel`, which keeps it; the pass is
        // of the runner that asks, and there is room for its tokens and lines.
        #[allow(unsafe_code)]
        unsafe {
            self.device.launch(kernel, blocks, shared_bytes, params)
        }
    }
}
