//! RWKV-4 (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3).
//!
//! A block adds time mixing and then channel mixing to the residual stream. Both look back one token by a learned mix of
//! this token and the one before (token shift); time mixing looks back further by a decaying average of values weighted
//! by exponentials of keys (the WKV operator), held in aa, bb and pp so that no exponential overflows.
//!
//! Peculiar: `ln0` follows the embedding and belongs to block 0; `time_decay` is stored as log(-w).

use std::ops::Range;

use spikelet_simd::Matrix;

use super::loader::{Embedding, LayerNorm, Loader};
use super::pass::{Activations, Pass, prepare};
use super::{Architecture, Matrices};
use crate::error::Result;

/// Before the first token no key has been seen: a maximum that every key exceeds, whose exponential is zero.
pub const NO_KEY_YET: f32 = -1e38;

/// `{prefix}.{name}.weight` for each name.
fn named<'a, const N: usize>(prefix: &str, matrices: [(&str, &'a Matrix); N]) -> Matrices<'a> {
    matrices.map(|(name, matrix)| (format!("{prefix}.{name}.weight"), matrix)).into()
}

/// r, k, v from the shifted input; `output(sigmoid(r) * wkv(k, v))` (equations 11 to 18).
pub struct TimeMix {
    mix_k: Vec<f32>,
    mix_v: Vec<f32>,
    mix_r: Vec<f32>,
    /// -exp(time_decay), `[hidden]`: added to the log weight of the past at every token.
    decay: Vec<f32>,
    /// time_first, `[hidden]`: the bonus of the token itself.
    first: Vec<f32>,
    key: Matrix,
    value: Matrix,
    receptance: Matrix,
    output: Matrix,
    /// State: the input of the token before.
    shift: Range<usize>,
    /// State: aa, bb and pp.
    wkv: Range<usize>,
}

impl TimeMix {
    /// Loads `{prefix}.time_mix_k` and so on; `divisor` scales the output down.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, divisor: f32) -> Result<Self> {
        let d = loader.config().hidden_size;
        let mut decay = loader.vector(&format!("{prefix}.time_decay"), d)?;
        decay.iter_mut().for_each(|w| *w = -spikelet_simd::expf(*w));
        let shift = loader.state(format!("{prefix}.shift"), d, 0.0);
        let aa = loader.state(format!("{prefix}.aa"), d, 0.0);
        loader.state(format!("{prefix}.bb"), d, 0.0);
        let pp = loader.state(format!("{prefix}.pp"), d, NO_KEY_YET);
        Ok(Self {
            mix_k: loader.vector(&format!("{prefix}.time_mix_k"), d)?,
            mix_v: loader.vector(&format!("{prefix}.time_mix_v"), d)?,
            mix_r: loader.vector(&format!("{prefix}.time_mix_r"), d)?,
            decay,
            first: loader.vector(&format!("{prefix}.time_first"), d)?,
            key: loader.linear(&format!("{prefix}.key.weight"), d, d, 1.0)?,
            value: loader.linear(&format!("{prefix}.value.weight"), d, d, 1.0)?,
            receptance: loader.linear(&format!("{prefix}.receptance.weight"), d, d, 1.0)?,
            output: loader.linear(&format!("{prefix}.output.weight"), d, d, divisor)?,
            shift,
            wkv: aa.start..pp.end,
        })
    }

    /// The matrices and their tensors' names.
    pub fn matrices(&self, prefix: &str) -> Matrices<'_> {
        let Self { key, value, receptance, output, .. } = self;
        named(prefix, [("key", key), ("value", value), ("receptance", receptance), ("output", output)])
    }

    /// From `act.xn` to `act.out`.
    pub fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations) {
        let Activations { xn, mixed, k, v, r, y, out, .. } = act;
        let cpu = pass.cpu;
        let [mixed_k, mixed_v, mixed_r] = mixed;
        let mixes = [(&*self.mix_k, &mut **mixed_k), (&self.mix_v, mixed_v), (&self.mix_r, mixed_r)];
        pass.token_mix(&self.shift, xn, mixes);
        pass.linears([(&self.key, mixed_k, k), (&self.value, mixed_v, v), (&self.receptance, mixed_r, r)]);
        pass.wkv4(&self.wkv, &self.decay, &self.first, k, v, y);
        cpu.sigmoid_mul(r, y);
        pass.linear(&self.output, y, out);
    }
}

/// `sigmoid(r) * value(relu(k)²)` from the shifted input (equations 19 to 21).
pub struct ChannelMix {
    mix_k: Vec<f32>,
    mix_r: Vec<f32>,
    key: Matrix,
    receptance: Matrix,
    value: Matrix,
    /// State: the input of the token before.
    shift: Range<usize>,
}

impl ChannelMix {
    /// Loads `{prefix}.time_mix_k` and so on; `divisor` scales the value down.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, divisor: f32) -> Result<Self> {
        let (d, f) = (loader.config().hidden_size, loader.config().intermediate_size);
        let shift = loader.state(format!("{prefix}.shift"), d, 0.0);
        Ok(Self {
            mix_k: loader.vector(&format!("{prefix}.time_mix_k"), d)?,
            mix_r: loader.vector(&format!("{prefix}.time_mix_r"), d)?,
            key: loader.linear(&format!("{prefix}.key.weight"), f, d, 1.0)?,
            receptance: loader.linear(&format!("{prefix}.receptance.weight"), d, d, 1.0)?,
            value: loader.linear(&format!("{prefix}.value.weight"), d, f, divisor)?,
            shift,
        })
    }

    /// The matrices and their tensors' names.
    pub fn matrices(&self, prefix: &str) -> Matrices<'_> {
        named(prefix, [("key", &self.key), ("receptance", &self.receptance), ("value", &self.value)])
    }

    /// From `act.xn` to `act.out`. `layer` is for a trace; block 0 of SpikeGPT's ffnPre form has two of these and
    /// traces the second.
    pub fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations, layer: Option<usize>) {
        let Activations { xn, mixed, r, out, wide, .. } = act;
        let cpu = pass.cpu;
        let [mixed_k, _, mixed_r] = mixed;
        pass.token_mix(&self.shift, xn, [(&self.mix_k, mixed_k), (&self.mix_r, mixed_r)]);
        pass.linears([(&self.key, mixed_k, wide), (&self.receptance, mixed_r, r)]);
        cpu.relu_squared(wide);
        if let Some(layer) = layer {
            pass.note_relu_squared(layer, wide);
        }
        // More than half of `wide` is exactly zero in trained models: those rows of `value` are not read.
        pass.linear_sparse(&self.value, wide, out);
        cpu.sigmoid_mul(r, out);
    }
}

/// `head(ln_out(x))` for the positions that need it.
pub struct Head {
    ln_out: LayerNorm,
    head: Matrix,
}

impl Head {
    pub fn load(loader: &mut Loader<'_>) -> Result<Self> {
        let (vocab, d) = (loader.config().vocab_size, loader.config().hidden_size);
        Ok(Self { ln_out: loader.layer_norm("ln_out")?, head: loader.linear("head.weight", vocab, d, 1.0)? })
    }

    /// The matrix and its tensor's name.
    pub fn matrices(&self) -> Matrices<'_> {
        vec![("head.weight".into(), &self.head)]
    }

    /// From `act.x` to `logits`.
    pub fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations, logits: &mut Vec<f32>) {
        let chosen = &mut act.wanted;
        let lines = pass.wanted_lines(&act.x, chosen);
        prepare(logits, lines * self.head.outputs());
        if lines > 0 {
            let normed = &mut act.xn[..chosen.len()];
            self.ln_out.apply(pass.cpu, chosen, lines, normed);
            pass.observe(&self.head, normed);
            pass.cpu.matmul(&self.head, normed, lines, logits);
        }
    }
}

/// How `rescale_every` treats a layer: by what its outputs are divided, and whether the residual stream is halved after it.
///
/// The authors' inference scripts do this to keep 16-bit activations in range. It changes nothing in RWKV-4, whose
/// layer norms undo it, and something in SpikeGPT, whose neurons compare with a fixed threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rescale {
    pub divisor: f32,
    pub halve_after: bool,
}

impl Rescale {
    pub fn of_layer(layer: usize, every: usize) -> Self {
        if every == 0 {
            return Self { divisor: 1.0, halve_after: false };
        }
        // Beyond 2^126 the divisor would leave f32; no model is that deep.
        let halvings = (layer / every).min(126) as i32;
        Self { divisor: 2f32.powi(halvings), halve_after: (layer + 1).is_multiple_of(every) }
    }
}

struct Block {
    ln1: LayerNorm,
    att: TimeMix,
    ln2: LayerNorm,
    ffn: ChannelMix,
    halve_after: bool,
}

/// The whole model.
pub struct Rwkv4 {
    emb: Embedding,
    ln0: LayerNorm,
    blocks: Vec<Block>,
    head: Head,
    hidden: usize,
    intermediate: usize,
    bytes: usize,
}

impl Rwkv4 {
    /// Takes the weights under the authors' names.
    ///
    /// # Errors
    /// Names the tensor that is missing, has another shape or holds a value that is not finite.
    pub fn load(loader: &mut Loader<'_>) -> Result<Self> {
        let config = loader.config();
        let emb = loader.embedding("emb.weight")?;
        let ln0 = loader.layer_norm("blocks.0.ln0")?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let rescale = Rescale::of_layer(i, config.rescale_every);
            blocks.push(Block {
                ln1: loader.layer_norm(&format!("blocks.{i}.ln1"))?,
                att: TimeMix::load(loader, &format!("blocks.{i}.att"), rescale.divisor)?,
                ln2: loader.layer_norm(&format!("blocks.{i}.ln2"))?,
                ffn: ChannelMix::load(loader, &format!("blocks.{i}.ffn"), rescale.divisor)?,
                halve_after: rescale.halve_after,
            });
        }
        let head = Head::load(loader)?;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        Ok(Self { emb, ln0, blocks, head, hidden, intermediate, bytes: loader.bytes() })
    }
}

impl Architecture for Rwkv4 {
    fn forward(&self, pass: &mut Pass<'_>, act: &mut Activations, logits: &mut Vec<f32>) {
        let (cpu, n, d) = (pass.cpu, pass.n(), self.hidden);
        act.prepare(n, d, self.intermediate);
        self.emb.rows(pass.tokens(), d, &mut act.xn);
        self.ln0.apply(cpu, &act.xn, n, &mut act.x);
        for (i, block) in self.blocks.iter().enumerate() {
            block.ln1.apply(cpu, &act.x, n, &mut act.xn);
            block.att.forward(pass, act);
            cpu.add(&act.out, &mut act.x);
            block.ln2.apply(cpu, &act.x, n, &mut act.xn);
            block.ffn.forward(pass, act, Some(i));
            cpu.add(&act.out, &mut act.x);
            if block.halve_after {
                cpu.scale(0.5, &mut act.x);
            }
        }
        self.head.forward(pass, act, logits);
    }

    fn weight_bytes(&self) -> usize {
        self.bytes
    }

    fn matrices(&self) -> Matrices<'_> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let ffn = block.ffn.matrices(&format!("blocks.{i}.ffn"));
            block.att.matrices(&format!("blocks.{i}.att")).into_iter().chain(ffn)
        });
        blocks.chain(self.head.matrices()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescaling_halves_every_sixth_layer() {
        let at = |layer| Rescale::of_layer(layer, 6);
        assert_eq!(at(4), Rescale { divisor: 1.0, halve_after: false });
        assert_eq!(at(5), Rescale { divisor: 1.0, halve_after: true });
        assert_eq!(at(6), Rescale { divisor: 2.0, halve_after: false });
        assert_eq!(at(17), Rescale { divisor: 4.0, halve_after: true });
        assert_eq!(Rescale::of_layer(17, 0), Rescale { divisor: 1.0, halve_after: false });
    }
}
