//! Architectures, one file each, and what they share: how weights come in and how a pass runs.

mod device;
mod loader;
mod observer;
mod pass;
mod prophet;
mod reading;
mod rwkv4;
mod spikegpt;
mod trace;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spikelet_simd::{Cpu, Level, Matrix, WeightFormat, physical_cores};

pub use self::device::DeviceChoice;
pub use self::observer::{InputStatistics, Observer, calibrate};
pub use self::pass::{Activations, Pass, StateBuffers};
pub use self::prophet::{Prophet, ProphetRunner};
pub use self::reading::LoadProgress;
pub use self::trace::Trace;

use self::device::{Place, why_not};
pub(crate) use self::loader::Embedding;
pub(crate) use self::reading::Reading;
pub(crate) use self::rwkv4::{NO_KEY_YET, Rescale};

use self::loader::Loader;
use crate::backend::{CpuRunner, DeviceRunner};
use crate::config::{ModelConfig, ModelType};
use crate::cuda::{CudaModel, CudaRunner};
use crate::error::{Error, Result};
use crate::state::StateLayout;
use crate::weights::{Checkpoint, Dtype, OpenOptions};

/// A model's arithmetic over one pass: what each file of this module provides.
pub trait Architecture: Send + Sync {
    /// Takes the tokens of a pass through the model: moves the states on, and leaves the wanted logits in `logits` as
    /// `[lines][vocab]`.
    fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations, logits: &mut Vec<f32>);

    /// Bytes of packed weights.
    fn weight_bytes(&self) -> usize;

    /// Every matrix that tokens are multiplied with.
    fn matrices(&self) -> Matrices<'_>;
}

/// Matrices by the names of their tensors.
pub type Matrices<'a> = Vec<(String, &'a Matrix)>;

/// Choices made when a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Format of the matrices in memory; the file's own when `None`.
    pub format: Option<WeightFormat>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Threads to compute with, at most one per processor; the physical cores when `None`. On a GPU they draft and draw.
    pub threads: Option<usize>,
    /// Instruction set; the best of this CPU, or the one named by `SPIKELET_ISA`, when `None`.
    pub level: Option<Level>,
    /// What files that do not say it hold: the architecture, and whether SpikeGPT's embedding is binary.
    pub open: OpenOptions,
    /// Replaces the configuration's `rescale_every`, the switch for compatibility with the authors' inference script.
    pub rescale_every: Option<usize>,
}

/// A loaded model. It never changes, so any number of threads may run it at once, each with its own [`DeviceRunner`].
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    config: ModelConfig,
    format: WeightFormat,
    cpu: Cpu,
    layout: StateLayout,
    compute: Compute,
    /// Why there.
    reason: String,
}

/// The weights, where they are computed with.
enum Compute {
    Cpu(Box<dyn Architecture>),
    Cuda(Box<CudaModel>),
}

impl Model {
    /// Loads a model folder, a safetensors file or an authors' `.pth` file.
    ///
    /// # Errors
    /// Says which file, tensor or option is wrong, what was found and what was needed.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Self>> {
        Self::load_with(path, options, &mut |_, _| ControlFlow::Continue(()))
    }

    /// The same, telling how far it is: at first, about every 20 ms, and when all is read. `Break` stops it with
    /// [`Error::Cancelled`].
    ///
    /// # Errors
    /// As above.
    pub fn load_with(path: &Path, options: &LoadOptions, progress: LoadProgress<'_>) -> Result<Arc<Self>> {
        let checkpoint = Arc::new(Checkpoint::open_with(path, options.open)?);
        let mut config = checkpoint.config().clone();
        if let Some(every) = options.rescale_every {
            config.rescale_every = every;
        }
        let level = match options.level {
            Some(level) => level,
            None => Level::detect()
                .map_err(|error| Error::Unsupported { what: "SPIKELET_ISA".into(), reason: error.to_string() })?,
        };
        let threads = options.threads.unwrap_or_else(physical_cores);
        if threads == 0 {
            return Err(Error::Option { name: "threads".into(), value: "0".into(), needed: "at least 1".into() });
        }
        // More threads than processors only take the processors from each other.
        let threads = threads.min(std::thread::available_parallelism().map_or(threads, usize::from));
        let stored = config.quantization.unwrap_or(match checkpoint.dtype() {
            Dtype::Bf16 => WeightFormat::Bf16,
            Dtype::F16 => WeightFormat::F16,
            _ => WeightFormat::F32,
        });
        let format = options.format.unwrap_or(stored);
        let cpu = Cpu::new(level, threads);
        let Place { device, mut reason, may_fall_back } = options.device.find(format)?;
        let loaded = device
            .map(|device| CudaModel::load(&checkpoint, &config, format, device, &cpu, &mut *progress))
            .transpose();
        let (compute, layout) = match loaded {
            Ok(Some((model, layout))) => (Compute::Cuda(Box::new(model)), layout),
            Err(error @ (Error::Device { .. } | Error::Unsupported { .. })) if may_fall_back => {
                reason = why_not(&error);
                load_on_cpu(&checkpoint, &config, format, &cpu, progress)?
            }
            Ok(None) => load_on_cpu(&checkpoint, &config, format, &cpu, progress)?,
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self { checkpoint, config, format, cpu, layout, compute, reason }))
    }

    /// A runner with states of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU has no room for it, or is lost.
    pub fn runner(self: &Arc<Self>) -> Result<DeviceRunner> {
        let model = Arc::clone(self);
        Ok(match self.compute {
            Compute::Cpu(_) => DeviceRunner::Cpu(Box::new(CpuRunner::new(model))),
            Compute::Cuda(_) => DeviceRunner::Cuda(Box::new(CudaRunner::new(model)?)),
        })
    }

    /// Where it computes: `cpu`, or a GPU such as `cuda:0`.
    pub fn device(&self) -> String {
        match self.cuda() {
            Some(model) => DeviceChoice::Cuda(model.device().ordinal()).to_string(),
            None => DeviceChoice::Cpu.to_string(),
        }
    }

    /// Why there.
    pub fn device_reason(&self) -> &str {
        &self.reason
    }

    /// The configuration in force.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The files it came from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where it came from.
    pub fn path(&self) -> PathBuf {
        self.checkpoint.path().to_path_buf()
    }

    /// Format of the matrices in memory.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// What the model computes with on the CPU; one on a GPU drafts and draws with it.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Names and places of the parts of a state.
    pub fn state_layout(&self) -> &StateLayout {
        &self.layout
    }

    /// Bytes of weights that lie in memory, packed for the kernels.
    pub fn weight_bytes(&self) -> usize {
        match &self.compute {
            Compute::Cpu(architecture) => architecture.weight_bytes(),
            Compute::Cuda(model) => model.weight_bytes(),
        }
    }

    /// The weights of a model that computes on the CPU.
    pub(crate) fn architecture(&self) -> Option<&dyn Architecture> {
        match &self.compute {
            Compute::Cpu(architecture) => Some(&**architecture),
            Compute::Cuda(_) => None,
        }
    }

    /// The weights of a model that computes on a GPU.
    pub(crate) fn cuda(&self) -> Option<&CudaModel> {
        match &self.compute {
            Compute::Cpu(_) => None,
            Compute::Cuda(model) => Some(model),
        }
    }
}

fn load_on_cpu(
    checkpoint: &Arc<Checkpoint>,
    config: &ModelConfig,
    format: WeightFormat,
    cpu: &Cpu,
    progress: LoadProgress<'_>,
) -> Result<(Compute, StateLayout)> {
    let mut loader = Loader::new(checkpoint, config, format, cpu, progress)?;
    let architecture: Box<dyn Architecture> = match config.model_type {
        ModelType::Rwkv4 => Box::new(rwkv4::Rwkv4::load(&mut loader)?),
        ModelType::SpikeGpt => Box::new(spikegpt::SpikeGpt::load(&mut loader)?),
    };
    Ok((Compute::Cpu(architecture), loader.finish()?))
}
