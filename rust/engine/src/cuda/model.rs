//! A model's weights in a card's memory.

use std::sync::Arc;

use spikelet_simd::WeightFormat;

use super::driver::Device;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::LoadProgress;
use crate::state::StateLayout;
use crate::weights::Checkpoint;

/// A model in a card's memory.
pub struct CudaModel {
    device: Arc<Device>,
}

impl CudaModel {
    /// Brings a model's weights to a card, and lays out its state.
    ///
    /// # Errors
    /// Those of reading; [`Error::Device`] where there is no room.
    pub fn load(
        _checkpoint: &Arc<Checkpoint>,
        _config: &ModelConfig,
        _format: WeightFormat,
        device: Arc<Device>,
        _progress: LoadProgress<'_>,
    ) -> Result<(Self, StateLayout)> {
        let device = format!("cuda:{}", device.ordinal());
        Err(Error::Device { device, reason: "this version does not compute on GPUs yet".into() })
    }

    /// The card.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Bytes of weights in its memory.
    pub fn weight_bytes(&self) -> usize {
        0
    }
}
