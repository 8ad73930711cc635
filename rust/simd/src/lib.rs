//! Exact CPU kernels.
