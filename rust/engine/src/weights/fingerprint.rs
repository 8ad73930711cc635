//! A short name for a model's weights, quick to find: what else is made for a model says by it for which.
//!
//! SHA-256 over all tensors in ascending order of the authors' names: name, 0x00, type as safetensors calls it, 0x00, shape as
//! decimal numbers joined by `,`, 0x00, and the first 4096 bytes (or all) of the data. It is read in milliseconds however large
//! the model is, and every training step and every rounding changes it.

use sha2::{Digest, Sha256};

use super::tensor::TensorView;

/// Bytes of each tensor that count.
const HEAD: usize = 4096;

/// The fingerprint of these tensors, which come in ascending order of their names.
pub(super) fn fingerprint<'a>(tensors: impl Iterator<Item = TensorView<'a>>) -> String {
    let mut hash = Sha256::new();
    for TensorView { name, dtype, shape, bytes } in tensors {
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        for part in [name, dtype.name(), &shape] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(&bytes[..bytes.len().min(HEAD)]);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    /// Computed apart from this crate, from the description above.
    #[test]
    fn fingerprints_never_change() {
        let long = [7; 5000];
        let tensor = |name, dtype, shape, bytes| TensorView { name, dtype, shape, bytes };
        let tensors = [
            tensor("a.weight", Dtype::F16, &[2, 2][..], &[1, 2, 3, 4, 5, 6, 7, 8][..]),
            tensor("b", Dtype::U8, &[5000], &long),
            tensor("c", Dtype::F32, &[], &[0, 0, 128, 63]),
        ];
        assert_eq!(
            fingerprint(tensors.into_iter()),
            "07d38f0536e20d8c517cf4e1acc006aa3388800535d07689c07f4dae9d4690ce"
        );
        let mut other = long;
        other[4096] = 8;
        let changed = [tensors[0], tensor("b", Dtype::U8, &[5000], &other), tensors[2]];
        assert_eq!(fingerprint(tensors.into_iter()), fingerprint(changed.into_iter()), "only the beginning counts");
    }
}
