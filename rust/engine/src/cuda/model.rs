//! A model's weights in a card's memory, and the phases that a pass goes through.

use std::sync::Arc;

use spikelet_simd::{Cpu, WeightFormat, expf, sigmoidf};

use super::driver::Device;
use super::narrow::{GATED, HALVE, Kind, NEURONS, Narrow, Phase};
use super::weights::{CudaLoader, Kept};
use crate::config::{ModelConfig, ModelType, Neuron, SpikeVariant};
use crate::error::Result;
use crate::model::{LoadProgress, NO_KEY_YET, Rescale};
use crate::state::StateLayout;
use crate::weights::Checkpoint;

/// A model in a card's memory.
pub struct CudaModel {
    device: Arc<Device>,
    format: WeightFormat,
    phases: Vec<Phase>,
    narrow: Narrow,
    kept: Kept,
}

impl CudaModel {
    /// Brings a model's weights to a card, and lays out its state as the model on the CPU does.
    ///
    /// # Errors
    /// Those of reading; [`Error::Device`](crate::Error::Device) where there is no room.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        config: &ModelConfig,
        format: WeightFormat,
        device: Arc<Device>,
        cpu: &Cpu,
        progress: LoadProgress<'_>,
    ) -> Result<(Self, StateLayout)> {
        assert!(format != WeightFormat::Q4, "integers of 4 bits were refused before");
        let mut loader = CudaLoader::new(checkpoint, config, format, &device, cpu, progress)?;
        let phases = phases(&mut loader)?;
        let (layout, kept) = loader.finish()?;
        let narrow = Narrow::new(&device, format, &phases)?;
        Ok((Self { device, format, phases, narrow, kept }, layout))
    }

    /// The card.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Bytes of weights in its memory.
    pub fn weight_bytes(&self) -> usize {
        self.kept.matrix_bytes()
    }

    /// What a pass goes through; the addresses in it are good as long as this is alive.
    pub(super) fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Of the matrices.
    pub(super) fn format(&self) -> WeightFormat {
        self.format
    }

    /// The way of a pass of a few tokens.
    pub(super) fn narrow(&self) -> &Narrow {
        &self.narrow
    }
}

/// All phases, in order: see `kernels/generate/narrow/phase.cuh`.
fn phases(loader: &mut CudaLoader<'_>) -> Result<Vec<Phase>> {
    let config = loader.config();
    let mut phases = vec![embed(loader)?];
    for i in 0..config.num_hidden_layers {
        let rescale = Rescale::of_layer(i, config.rescale_every);
        let spikes = config.model_type == ModelType::SpikeGpt;
        let ffn_pre = spikes && i == 0 && config.variant == SpikeVariant::RwkvFfnPre;
        let first = if ffn_pre {
            let norm = norm(loader, "blocks.0.ln1")?;
            channel_mix(loader, norm, "blocks.0.ffnPre", rescale.divisor)?
        } else {
            let norm = norm(loader, &format!("blocks.{i}.ln1"))?;
            time_mix(loader, norm, &format!("blocks.{i}.att"), rescale.divisor)?
        };
        phases.extend(with_neurons(loader, first, &format!("blocks.{i}.lif1"))?);
        let norm = norm(loader, &format!("blocks.{i}.ln2"))?;
        let [channel, mut add] = channel_mix(loader, norm, &format!("blocks.{i}.ffn"), rescale.divisor)?;
        if rescale.halve_after {
            add.flags |= HALVE;
        }
        phases.extend(with_neurons(loader, [channel, add], &format!("blocks.{i}.lif2"))?);
    }
    phases.push(head(loader)?);
    Ok(phases)
}

fn norm(loader: &mut CudaLoader<'_>, prefix: &str) -> Result<[u64; 2]> {
    let width = loader.config().hidden_size;
    Ok([loader.vector(&format!("{prefix}.weight"), width)?, loader.vector(&format!("{prefix}.bias"), width)?])
}

fn embed(loader: &mut CudaLoader<'_>) -> Result<Phase> {
    let (table, format) = loader.embedding("emb.weight")?;
    let norm = norm(loader, "blocks.0.ln0")?;
    let config = loader.config();
    let phase = Phase::new(Kind::Embed, config.hidden_size, &[]);
    Ok(Phase { norm, table, table_format: format as u32, epsilon: config.layer_norm_epsilon, ..phase })
}

/// Time mixing, and the addition of what it gives.
fn time_mix(loader: &mut CudaLoader<'_>, norm: [u64; 2], prefix: &str, divisor: f32) -> Result<[Phase; 2]> {
    let config = loader.config();
    let d = config.hidden_size;
    let decay = loader.vector_of(&format!("{prefix}.time_decay"), d, |w| -expf(w))?;
    let shift = loader.state(format!("{prefix}.shift"), d, 0.0);
    let state = loader.state(format!("{prefix}.aa"), d, 0.0);
    loader.state(format!("{prefix}.bb"), d, 0.0);
    loader.state(format!("{prefix}.pp"), d, NO_KEY_YET);
    let mut mix = [0; 3];
    for (mix, name) in mix.iter_mut().zip(["k", "v", "r"]) {
        *mix = loader.vector(&format!("{prefix}.time_mix_{name}"), d)?;
    }
    let first = loader.vector(&format!("{prefix}.time_first"), d)?;
    let mut linear = |name: &str, divisor: f32| loader.linear(&format!("{prefix}.{name}.weight"), d, d, divisor);
    let matrices = [linear("key", 1.0)?, linear("value", 1.0)?, linear("receptance", 1.0)?];
    let output = linear("output", divisor)?;
    let epsilon = config.layer_norm_epsilon;
    let phase = Phase::new(Kind::Mix, d, &matrices);
    Ok([
        Phase { norm, mix, decay, first, shift, state, epsilon, ..phase },
        Phase { shift, ..Phase::new(Kind::Add, d, &[output]) },
    ])
}

/// Channel mixing, and the addition of what it gives.
fn channel_mix(loader: &mut CudaLoader<'_>, norm: [u64; 2], prefix: &str, divisor: f32) -> Result<[Phase; 2]> {
    let config = loader.config();
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let shift = loader.state(format!("{prefix}.shift"), d, 0.0);
    let mix =
        [loader.vector(&format!("{prefix}.time_mix_k"), d)?, loader.vector(&format!("{prefix}.time_mix_r"), d)?, 0];
    let key = loader.linear(&format!("{prefix}.key.weight"), f, d, 1.0)?;
    let receptance = loader.linear(&format!("{prefix}.receptance.weight"), d, d, 1.0)?;
    let value = loader.linear(&format!("{prefix}.value.weight"), d, f, divisor)?;
    let epsilon = config.layer_norm_epsilon;
    let phase = Phase::new(Kind::Channel, d, &[key, receptance]);
    Ok([
        Phase { norm, mix, shift, epsilon, ..phase },
        Phase { shift, flags: GATED, ..Phase::new(Kind::Add, d, &[value]) },
    ])
}

/// Puts the neurons `{prefix}`, if the model has any, before an addition.
fn with_neurons(loader: &mut CudaLoader<'_>, [phase, mut add]: [Phase; 2], prefix: &str) -> Result<[Phase; 2]> {
    let config = loader.config();
    if config.model_type == ModelType::SpikeGpt && config.neuron != Neuron::None {
        if config.neuron == Neuron::Plif {
            add.decay = loader.vector_of(&format!("{prefix}.w"), config.hidden_size, sigmoidf)?;
        }
        add.state = loader.state(format!("{prefix}.membrane"), config.hidden_size, 0.0);
        add.flags |= NEURONS;
    }
    Ok([phase, add])
}

fn head(loader: &mut CudaLoader<'_>) -> Result<Phase> {
    let norm = norm(loader, "ln_out")?;
    let config = loader.config();
    let head = loader.linear("head.weight", config.vocab_size, config.hidden_size, 1.0)?;
    let phase = Phase::new(Kind::Head, config.hidden_size, &[head]);
    Ok(Phase { norm, epsilon: config.layer_norm_epsilon, ..phase })
}
