//! A record of what the neurons did: spikes, membranes and zeros, for those who study them.

/// Spikes, membranes and relu² densities of a run over T tokens.
///
/// Sites of a layer: 0 are the neurons after time mixing, 1 those after channel mixing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    layers: usize,
    hidden: usize,
    /// Per layer and site, `[T][hidden]`, 0 or 1.
    spikes: Vec<Vec<u8>>,
    /// Per layer and site, `[T][hidden]`, after the reset.
    membranes: Vec<Vec<f32>>,
    /// Per layer, `[T]`: share of channel mixing's keys above zero.
    density: Vec<Vec<f32>>,
}

impl Trace {
    /// An empty record for a model of `layers` × `hidden`.
    pub fn new(layers: usize, hidden: usize) -> Self {
        Self {
            layers,
            hidden,
            spikes: vec![Vec::new(); layers * 2],
            membranes: vec![Vec::new(); layers * 2],
            density: vec![Vec::new(); layers],
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Neurons per site.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Number of tokens recorded.
    pub fn tokens(&self) -> usize {
        self.density.first().map_or(0, Vec::len)
    }

    /// Spikes as `[layers][2][T][hidden]`, 0 or 1. Empty for a model without spiking neurons.
    pub fn spikes(&self) -> Vec<u8> {
        self.spikes.concat()
    }

    /// Membranes after each token's reset, as `[layers][2][T][hidden]`. Empty for a model without spiking neurons.
    pub fn membranes(&self) -> Vec<f32> {
        self.membranes.concat()
    }

    /// Share of channel mixing's keys above zero, as `[layers][T]`: the rows of `ffn.value` that were read.
    pub fn relu_squared_density(&self) -> Vec<f32> {
        self.density.concat()
    }

    /// Mean of the spikes as `[layers][2]`. Empty for a model without spiking neurons.
    pub fn firing_rates(&self) -> Vec<f32> {
        self.spikes
            .iter()
            .filter(|site| !site.is_empty())
            .map(|site| (site.iter().map(|&s| u64::from(s)).sum::<u64>() as f64 / site.len() as f64) as f32)
            .collect()
    }

    pub(super) fn record_spikes(&mut self, (layer, site): (usize, usize), spikes: &[f32], membranes: &[f32]) {
        let at = layer * 2 + site;
        self.spikes[at].extend(spikes.iter().map(|&s| s as u8));
        self.membranes[at].extend_from_slice(membranes);
    }

    pub(super) fn record_density(&mut self, layer: usize, wide: &[f32], n: usize) {
        for token in wide.chunks_exact(wide.len() / n) {
            let active = token.iter().filter(|&&k| k != 0.0).count();
            self.density[layer].push(active as f32 / token.len() as f32);
        }
    }
}
