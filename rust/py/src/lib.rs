//! Python binding of spikelet.

use pyo3::prelude::*;

#[pymodule]
mod _spikelet {}
