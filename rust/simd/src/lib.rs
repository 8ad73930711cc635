//! Exact CPU kernels.

pub mod train;
