//! The Python package's compiled module: conversion, docstrings and the GIL; what it does lies in the engine.

mod args;
mod batch;
mod config;
mod errors;
mod files;
mod generation;
mod gpu;
mod load;
mod model;
mod options;
mod progress;
mod session;
mod shared;
mod speculative;
mod state;
mod stats;
mod stream;
mod table;
mod tokenizer;
mod trace;
mod train_ops;

use pyo3::prelude::*;

/// The engine of spikelet. Use it through the `spikelet` package.
#[pymodule]
mod _spikelet {
    #[pymodule_export]
    use super::config::ModelConfig;
    #[pymodule_export]
    use super::files::{
        convert, cpu_features, default_options, inspect, measure_fma_peak, measure_int8_peak, measure_read_bandwidth,
        quantize,
    };
    #[pymodule_export]
    use super::generation::{Completion, Generation};
    #[pymodule_export]
    use super::gpu::gpu_features;
    #[pymodule_export]
    use super::load::load_model;
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::speculative::SpeculativeConfig;
    #[pymodule_export]
    use super::state::State;
    #[pymodule_export]
    use super::stats::GenerationStats;
    #[pymodule_export]
    use super::table::build_ngram_table;
    #[pymodule_export]
    use super::tokenizer::Tokenizer;
    #[pymodule_export]
    use super::trace::Trace;
    #[pymodule_export]
    use super::train_ops::{
        lif_backward, lif_forward, mix_backward, mix_forward, sigmoid, wkv4_backward, wkv4_forward,
    };

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name Python gives to a package's version")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
