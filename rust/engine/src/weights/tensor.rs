//! A stored tensor: its type, its shape, its bytes as they lie in the file, and their way into f32.

use spikelet_simd::convert::{bf16_to_f32, f16_to_f32};

/// Types of stored tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes per value.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::Bf16 | Dtype::F16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F64 => "F64",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    /// The type of a name in a safetensors header.
    pub fn by_name(name: &str) -> Option<Dtype> {
        use Dtype::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
        [F32, Bf16, F16, F64, I64, I32, I16, I8, U8, Bool].into_iter().find(|d| d.name() == name)
    }

    /// Whether weights can have this type.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::Bf16 | Dtype::F16 | Dtype::F64)
    }
}

/// Bytes of a tensor, `None` if that number does not exist.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))
}

/// A tensor as it lies in the file: little-endian, row-major, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The original authors' name.
    pub name: &'a str,
    /// The type of the values.
    pub dtype: Dtype,
    /// The shape as stored.
    pub shape: &'a [usize],
    /// The values; may be unaligned.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// Number of values.
    pub fn numel(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// All values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.numel()];
        decode(self.dtype, self.bytes, &mut out);
        out
    }

    /// Row `row` of a matrix (all but the first dimension taken as one) as f32.
    ///
    /// # Panics
    /// If the row does not exist or `out` has not the length of a row.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        let rows = self.shape.first().copied().unwrap_or(1);
        assert!(row < rows, "row {row} of `{}`, which has {rows}", self.name);
        let width = self.bytes.len() / rows;
        assert_eq!(out.len() * self.dtype.size(), width, "length of a row of `{}`", self.name);
        decode(self.dtype, &self.bytes[row * width..(row + 1) * width], out);
    }

    /// Index and value of the first value that is NaN or infinite (in f32 when stored as f64).
    pub(crate) fn first_not_finite(&self) -> Option<(usize, f32)> {
        if !self.dtype.is_float() {
            return None;
        }
        // Blocks small enough for the cache; only one that has such a value is decoded.
        const BLOCK: usize = 2048;
        for (i, bytes) in self.bytes.chunks(BLOCK * self.dtype.size()).enumerate() {
            if !all_finite(self.dtype, bytes) {
                let mut values = vec![0.0; bytes.len() / self.dtype.size()];
                decode(self.dtype, bytes, &mut values);
                let at = values.iter().position(|v| !v.is_finite())?;
                return Some((i * BLOCK + at, values[at]));
            }
        }
        None
    }
}

/// Whether none of these little-endian numbers is NaN or infinite, as f32.
pub(crate) fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    match dtype {
        Dtype::F32 => none(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::Bf16 => none(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => none(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F64 => none(bytes, |b| !(f64::from_le_bytes(b) as f32).is_finite()),
        _ => true,
    }
}

fn none<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
    // Without an early exit, so that it becomes vector code.
    !bytes.as_chunks::<N>().0.iter().fold(false, |any, &b| any | bad(b))
}

/// Little-endian values of any type as f32.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size(), "bytes of {} {} values", out.len(), dtype.name());
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::Bf16 => each(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        Dtype::F16 => each(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::I8 => each(bytes, out, |b: [u8; 1]| f32::from(i8::from_le_bytes(b))),
        Dtype::U8 => each(bytes, out, |b: [u8; 1]| f32::from(b[0])),
        Dtype::Bool => each(bytes, out, |b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (o, &b) in out.iter_mut().zip(chunks) {
        *o = value(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn view<'a>(dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> TensorView<'a> {
        TensorView { name: "t", dtype, shape, bytes }
    }

    #[test]
    fn values_of_every_type_become_f32_at_any_alignment() {
        let mut bytes = vec![0u8];
        bytes.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        assert_eq!(view(Dtype::F32, &[2], &bytes[1..]).to_f32(), [1.5, -2.0]);
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(view(Dtype::Bf16, &[2], &bytes).to_f32(), [1.5, -2.0]);
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(view(Dtype::F16, &[2], &bytes).to_f32(), [1.5, -2.0]);
        let bytes: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(view(Dtype::F64, &[2], &bytes).to_f32(), [1.5, -2.0]);
        let bytes: Vec<u8> = [7i64, -2].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(view(Dtype::I64, &[2], &bytes).to_f32(), [7.0, -2.0]);
        assert_eq!(view(Dtype::I8, &[2], &[255, 3]).to_f32(), [-1.0, 3.0]);
        assert_eq!(view(Dtype::Bool, &[2], &[0, 1]).to_f32(), [0.0, 1.0]);
    }

    #[test]
    fn a_row_is_cut_out() {
        let bytes: Vec<u8> = (0..6).flat_map(|v| (v as f32).to_le_bytes()).collect();
        let mut row = [f32::NAN; 3];
        view(Dtype::F32, &[2, 3], &bytes).row_to_f32(1, &mut row);
        assert_eq!(row, [3.0, 4.0, 5.0]);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            for at in [0, 15, 16, 2047, 2048, 4999] {
                let mut values = vec![f32::MAX; 5000];
                values[at] = bad;
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let found = view(Dtype::F32, &[5000], &bytes).first_not_finite();
                assert_eq!(found.map(|f| f.0), Some(at), "{bad} at {at}");
            }
        }
        let bytes: Vec<u8> = [f32::MIN; 33].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(view(Dtype::F32, &[33], &bytes).first_not_finite(), None);
    }
}
