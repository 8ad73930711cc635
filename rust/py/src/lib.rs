//! Python binding of spikelet.

use pyo3::prelude::*;

mod train_ops;

#[pymodule]
mod _spikelet {
    #[pymodule_export]
    use super::train_ops::{lif_backward, lif_forward, mix_backward, mix_forward};
    #[pymodule_export]
    use super::train_ops::{wkv4_backward, wkv4_forward};
}
