//! SpikeGPT (Zhu et al. 2023, "SpikeGPT: Generative Pre-trained Language Model with Spiking Neural Networks").
//!
//! RWKV-4's blocks, but what a block adds to the residual stream are spikes: each output drives a layer of leaky
//! integrate-and-fire neurons whose time step is the token and whose membrane is part of the state.
//!
//! Peculiar:
//! - the embedding may be binary: 1 where its weight is at least 0 (also -0.0), else 0. The published 216M model was
//!   trained without that.
//! - in the `rwkv-ffnpre` form block 0 has a second channel mixing, `ffnPre`, in place of time mixing.
//! - `neuron` is `lif`, as the authors have it, `plif` with a learned decay per channel, sigmoid of `blocks.N.lif1.w` and
//!   `lif2.w` (Fang et al. 2021, "Incorporating Learnable Membrane Time Constant"), or `none`: what a block gives joins the
//!   residual stream as it is, which makes it an RWKV-4, the twin that neurons are compared with.
//! - `rescale_every` repeats what the authors' inference script does and their training code does not: it moves the
//!   neurons' inputs away from the threshold they were trained with. It is off unless asked for.

use super::loader::{Embedding, LayerNorm, Loader};
use super::pass::{Activations, Neurons, Pass};
use super::rwkv4::{ChannelMix, Head, Rescale, TimeMix};
use super::{Architecture, Matrices};
use crate::config::{Neuron, SpikeVariant};
use crate::error::Result;

/// What drives the first neurons of a block.
enum First {
    TimeMix(TimeMix),
    /// `ffnPre`, in block 0 of the `rwkv-ffnpre` form.
    ChannelMix(ChannelMix),
}

/// A block; without neurons, one of RWKV-4.
pub struct Block {
    ln1: LayerNorm,
    first: First,
    /// After `first`.
    lif1: Option<Neurons>,
    ln2: LayerNorm,
    ffn: ChannelMix,
    /// After `ffn`.
    lif2: Option<Neurons>,
    halve_after: bool,
}

/// The neurons `{prefix}`, if the model has any.
fn load_neurons(loader: &mut Loader<'_>, prefix: &str) -> Result<Option<Neurons>> {
    let (neuron, width) = (loader.config().neuron, loader.config().hidden_size);
    let decay = match neuron {
        Neuron::None => return Ok(None),
        Neuron::Lif => None,
        Neuron::Plif => {
            let w = loader.vector(&format!("{prefix}.w"), width)?;
            Some(w.into_iter().map(spikelet_simd::sigmoidf).collect())
        }
    };
    Ok(Some(Neurons { membrane: loader.state(format!("{prefix}.membrane"), width, 0.0), decay }))
}

/// `act.x += neurons(act.out)`.
fn add_output(neurons: Option<&Neurons>, site: (usize, usize), pass: &mut Pass<'_>, act: &mut Activations) {
    let Some(neurons) = neurons else {
        return pass.cpu.add(&act.out, &mut act.x);
    };
    pass.lif(neurons, site, &act.out, &mut act.y);
    pass.cpu.add(&act.y, &mut act.x);
}

impl Block {
    /// Loads `blocks.{i}`.
    pub fn load(loader: &mut Loader<'_>, i: usize) -> Result<Self> {
        let config = loader.config();
        let rescale = Rescale::of_layer(i, config.rescale_every);
        let ln1 = loader.layer_norm(&format!("blocks.{i}.ln1"))?;
        let first = if config.variant == SpikeVariant::RwkvFfnPre && i == 0 {
            First::ChannelMix(ChannelMix::load(loader, "blocks.0.ffnPre", rescale.divisor)?)
        } else {
            First::TimeMix(TimeMix::load(loader, &format!("blocks.{i}.att"), rescale.divisor)?)
        };
        Ok(Self {
            ln1,
            first,
            lif1: load_neurons(loader, &format!("blocks.{i}.lif1"))?,
            ln2: loader.layer_norm(&format!("blocks.{i}.ln2"))?,
            ffn: ChannelMix::load(loader, &format!("blocks.{i}.ffn"), rescale.divisor)?,
            lif2: load_neurons(loader, &format!("blocks.{i}.lif2"))?,
            halve_after: rescale.halve_after,
        })
    }

    /// x += LIF1(first(ln1(x))); x += LIF2(ffn(ln2(x))), without the LIFs where the model has no neurons.
    pub fn forward(&self, i: usize, pass: &mut Pass<'_>, act: &mut Activations) {
        let (cpu, n) = (pass.cpu, pass.n());
        self.ln1.apply(cpu, &act.x, n, &mut act.xn);
        match &self.first {
            First::TimeMix(att) => att.forward(pass, act),
            First::ChannelMix(ffn_pre) => ffn_pre.forward(pass, act, None),
        }
        add_output(self.lif1.as_ref(), (i, 0), pass, act);
        self.ln2.apply(cpu, &act.x, n, &mut act.xn);
        self.ffn.forward(pass, act, Some(i));
        add_output(self.lif2.as_ref(), (i, 1), pass, act);
        if self.halve_after {
            cpu.scale(0.5, &mut act.x);
        }
    }
}

/// The whole model.
pub struct SpikeGpt {
    emb: Embedding,
    spike_embedding: bool,
    ln0: LayerNorm,
    blocks: Vec<Block>,
    head: Head,
    hidden: usize,
    intermediate: usize,
    bytes: usize,
}

impl SpikeGpt {
    /// Takes the weights under the authors' names.
    ///
    /// # Errors
    /// Names the tensor that is missing, has another shape or holds a value that is not finite.
    pub fn load(loader: &mut Loader<'_>) -> Result<Self> {
        let config = loader.config();
        let emb = loader.embedding("emb.weight")?;
        let ln0 = loader.layer_norm("blocks.0.ln0")?;
        let blocks = (0..config.num_hidden_layers).map(|i| Block::load(loader, i)).collect::<Result<_>>()?;
        let head = Head::load(loader)?;
        Ok(Self {
            emb,
            spike_embedding: config.spike_embedding,
            ln0,
            blocks,
            head,
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            bytes: loader.bytes(),
        })
    }
}

impl Architecture for SpikeGpt {
    fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations, logits: &mut Vec<f32>) {
        let (cpu, n, d) = (pass.cpu, pass.n(), self.hidden);
        act.prepare(n, d, self.intermediate);
        self.emb.rows(pass.tokens(), d, &mut act.xn);
        if self.spike_embedding {
            cpu.heaviside(&mut act.xn);
        }
        self.ln0.apply(cpu, &act.xn, n, &mut act.x);
        for (i, block) in self.blocks.iter().enumerate() {
            block.forward(i, pass, act);
        }
        self.head.forward(pass, act, logits);
    }

    fn weight_bytes(&self) -> usize {
        self.bytes
    }

    fn matrices(&self) -> Matrices<'_> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let first = match &block.first {
                First::TimeMix(att) => att.matrices(&format!("blocks.{i}.att")),
                First::ChannelMix(ffn_pre) => ffn_pre.matrices(&format!("blocks.{i}.ffnPre")),
            };
            first.into_iter().chain(block.ffn.matrices(&format!("blocks.{i}.ffn")))
        });
        blocks.chain(self.head.matrices()).collect()
    }
}
