//! spikelet: text generation with SpikeGPT and RWKV models.
#![deny(unsafe_code)]

pub mod ops;
