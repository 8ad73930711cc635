//! spikelet: text generation with SpikeGPT and RWKV models.
#![deny(unsafe_code)]

pub mod backend;
pub mod config;
pub mod decode;
pub mod error;
pub mod generation_config;
pub mod model;
pub mod ops;
pub mod sampler;
pub mod session_file;
pub mod state;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
