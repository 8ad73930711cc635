//! Quantised matrices in a file: the tensors that hold one, and what they must be.
//!
//! A matrix `NAME` of `[outputs, inputs]` is
//! - `NAME`: its codes, I8 `[outputs, inputs]` (q8) or U8 `[outputs, 4 * ceil(inputs / 8)]` (q4);
//! - `NAME.scale`: BF16 `[outputs, ceil(inputs / 64)]`;
//! - `NAME.outliers`, I32 `[k]` ascending, and `NAME.outlier_weight`, BF16 `[outputs, k]`: inputs that are kept apart, if there are any.
//!
//! [`spikelet_simd::quant`] says what the numbers mean. Head and embedding are q8 also in a q4 model; a binary embedding, of which
//! only the signs count, is not quantised.

use std::collections::BTreeMap;
use std::path::Path;

use spikelet_simd::WeightFormat;
use spikelet_simd::convert::bf16_to_f32;
use spikelet_simd::quant::{QuantizedView, blocks_of, code_bytes_of, is_valid_scale};

use super::layout::{Shape, Tensors, expected, missing};
use super::map::MappedFile;
use super::tensor::{Dtype, TensorView};
use super::{Checkpoint, Stored, bytes_of};
use crate::config::{ModelConfig, format_name};
use crate::error::{Error, Result};

pub(super) const SCALE: &str = ".scale";
pub(super) const OUTLIERS: &str = ".outliers";
pub(super) const OUTLIER_WEIGHT: &str = ".outlier_weight";

/// What is known of a quantised matrix when a file is opened.
#[derive(Debug)]
pub(super) struct Quantised {
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    outliers: Vec<u32>,
}

impl Quantised {
    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }
}

/// The matrix that a tensor of this name would be a part of.
pub(super) fn whole_of(name: &str) -> Option<&str> {
    [SCALE, OUTLIERS, OUTLIER_WEIGHT].iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// A matrix `[outputs, inputs]` as it lies in a file.
#[derive(Clone, Copy, Debug)]
pub enum MatrixView<'a> {
    /// In floating point.
    Float(TensorView<'a>),
    /// As codes and scales.
    Quantised {
        /// The original authors' name.
        name: &'a str,
        /// Its parts.
        view: QuantizedView<'a>,
    },
}

impl MatrixView<'_> {
    /// Writes row `row` to `out[..inputs]`.
    ///
    /// # Panics
    /// If the row does not exist or `out` has not the length of a row.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        match self {
            MatrixView::Float(view) => view.row_to_f32(row, out),
            MatrixView::Quantised { view, .. } => view.row_to_f32(row, out),
        }
    }
}

/// The format that a matrix gets in a model of `format`: none for a table of which only signs count.
pub fn matrix_format(name: &str, format: WeightFormat, spike_embedding: bool) -> Option<WeightFormat> {
    match (name, format) {
        ("emb.weight", WeightFormat::Q8 | WeightFormat::Q4) if spike_embedding => None,
        ("emb.weight" | "head.weight", WeightFormat::Q4) => Some(WeightFormat::Q8),
        _ => Some(format),
    }
}

/// Format, outputs and inputs of an expected tensor if it is a quantised matrix.
pub(super) fn expected_matrix(config: &ModelConfig, name: &str, shape: Shape) -> Option<(WeightFormat, usize, usize)> {
    let (Some(format), Shape::Matrix(outputs, inputs)) = (config.quantization, shape) else {
        return None;
    };
    Some((matrix_format(name, format, config.spike_embedding)?, outputs, inputs))
}

/// The tensors that an expected tensor may be made of.
pub(super) fn names(config: &ModelConfig, name: &str, shape: Shape) -> Vec<String> {
    let quantised = expected_matrix(config, name, shape).is_some();
    let parts: &[&str] = if quantised { &["", SCALE, OUTLIERS, OUTLIER_WEIGHT] } else { &[""] };
    parts.iter().map(|part| format!("{name}{part}")).collect()
}

/// The format whose codes have this type.
pub(super) fn format_of_type(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::I8 => Some(WeightFormat::Q8),
        Dtype::U8 => Some(WeightFormat::Q4),
        _ => None,
    }
}

/// The type of a format's codes.
pub(super) fn type_of(format: WeightFormat) -> Dtype {
    if format == WeightFormat::Q4 { Dtype::U8 } else { Dtype::I8 }
}

/// Names, shapes and types of one matrix's tensors.
pub(super) fn check(
    path: &Path,
    tensors: &Tensors,
    name: &str,
    (format, outputs, inputs): (WeightFormat, usize, usize),
) -> Result<()> {
    let part = |suffix: &str, dtype: Dtype, shape: &[usize]| {
        let name = format!("{name}{suffix}");
        let Some(stored) = tensors.get(&name) else {
            return Err(missing(path, tensors, &name, None));
        };
        if stored.dtype != dtype {
            let (found, needed) = (stored.dtype.name(), dtype.name());
            let reason = format!("found type {found}, needed {needed}, as the model is quantised");
            return Err(Error::tensor(path, &name, reason));
        }
        if stored.shape != shape {
            let reason = format!("found shape {:?}, needed {shape:?} ({})", stored.shape, format_name(format));
            return Err(Error::tensor(path, &name, reason));
        }
        Ok(())
    };
    part("", type_of(format), &[outputs, code_bytes_of(format, inputs)])?;
    part(SCALE, Dtype::Bf16, &[outputs, blocks_of(inputs)])?;
    let kept = |suffix: &str| tensors.get(&format!("{name}{suffix}"));
    match (kept(OUTLIERS), kept(OUTLIER_WEIGHT)) {
        (None, None) => Ok(()),
        (Some(Stored { shape, .. }), _) if shape.len() == 1 && shape[0] <= inputs => {
            part(OUTLIERS, Dtype::I32, &[shape[0]])?;
            part(OUTLIER_WEIGHT, Dtype::Bf16, &[outputs, shape[0]])
        }
        (Some(Stored { shape, .. }), _) => {
            let reason = format!("found shape {shape:?}, needed [k] with k at most {inputs}");
            Err(Error::tensor(path, &format!("{name}{OUTLIERS}"), reason))
        }
        (None, Some(_)) => Err(missing(path, tensors, &format!("{name}{OUTLIERS}"), None)),
    }
}

/// Reads what must be known before a matrix is used: which inputs are kept apart. Shapes have been checked.
pub(super) fn read(
    path: &Path,
    files: &[MappedFile],
    tensors: &Tensors,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Quantised>> {
    let mut found = BTreeMap::new();
    for (name, shape) in expected(config) {
        let Some((format, outputs, inputs)) = expected_matrix(config, &name, shape) else { continue };
        let kept = format!("{name}{OUTLIERS}");
        let bytes = tensors.get(&kept).map_or(&[][..], |stored| bytes_of(files, &stored.data));
        let outliers: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
        if let Some(bad) = outliers.iter().find(|&&input| usize::try_from(input).map_or(true, |i| i >= inputs)) {
            return Err(Error::tensor(
                path,
                &kept,
                format!("found input {bad}, needed inputs from 0 to {}", inputs - 1),
            ));
        }
        if let Some(pair) = outliers.windows(2).find(|pair| pair[0] >= pair[1]) {
            let reason = format!("found input {} after {}, needed them ascending", pair[1], pair[0]);
            return Err(Error::tensor(path, &kept, reason));
        }
        let outliers = outliers.into_iter().map(i32::cast_unsigned).collect();
        found.insert(name, Quantised { format, outputs, inputs, outliers });
    }
    Ok(found)
}

/// A quantised matrix of a checkpoint.
pub(super) fn matrix<'a>(
    checkpoint: &'a Checkpoint,
    name: &'a str,
    (outputs, inputs): (usize, usize),
) -> Result<MatrixView<'a>> {
    let known = &checkpoint.quantised[name];
    if (known.outputs, known.inputs) != (outputs, inputs) {
        let reason = format!("found a matrix [{}, {}], needed [{outputs}, {inputs}]", known.outputs, known.inputs);
        return Err(Error::tensor(&checkpoint.path, name, reason));
    }
    let bytes = |suffix: &str| {
        checkpoint
            .tensors
            .get(&format!("{name}{suffix}"))
            .map_or(&[][..], |stored| bytes_of(&checkpoint.files, &stored.data))
    };
    let view = QuantizedView {
        format: known.format,
        outputs,
        inputs,
        codes: bytes(""),
        scales: bytes(SCALE),
        outliers: &known.outliers,
        outlier_weights: bytes(OUTLIER_WEIGHT),
    };
    Ok(MatrixView::Quantised { name, view })
}

/// Scales and outliers must be finite, also times any code; q8 has no code -128.
pub(super) fn check_values(path: &Path, name: &str, view: &QuantizedView<'_>) -> Result<()> {
    check_scales(path, name, view)?;
    if all_quantised(view.format, view.codes) {
        return Ok(());
    }
    let index = view.codes.iter().position(|&code| code == 0x80).unwrap_or_default();
    let reason = format!("found -128 at flat index {index}, needed codes from -127 to 127");
    Err(Error::tensor(path, name, reason))
}

/// Whether all codes mean something.
pub(crate) fn all_quantised(format: WeightFormat, codes: &[u8]) -> bool {
    // Without an early exit, so that it becomes vector code.
    format != WeightFormat::Q8 || !codes.iter().fold(false, |any, &code| any | (code == 0x80))
}

/// The scales and outliers alone.
pub(super) fn check_scales(path: &Path, name: &str, view: &QuantizedView<'_>) -> Result<()> {
    let find = |bytes: &[u8], bad: &dyn Fn(f32) -> bool| {
        let values = bytes.as_chunks::<2>().0.iter().map(|&b| bf16_to_f32(u16::from_le_bytes(b)));
        values.enumerate().find(|(_, value)| bad(*value))
    };
    let wrong = |suffix: &str, value: f32, index: usize, needed: &str| {
        Error::tensor(path, &format!("{name}{suffix}"), format!("found {value} at flat index {index}, needed {needed}"))
    };
    if let Some((index, value)) = find(view.scales, &|scale| !is_valid_scale(scale)) {
        return Err(wrong(SCALE, value, index, "finite numbers below 2.68e36"));
    }
    if let Some((index, value)) = find(view.outlier_weights, &|weight| !weight.is_finite()) {
        return Err(wrong(OUTLIER_WEIGHT, value, index, "finite numbers"));
    }
    Ok(())
}
