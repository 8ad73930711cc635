//! A model becomes a model folder with quantised matrices.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use spikelet_simd::quant::{self, Quantized};
use spikelet_simd::{Cpu, WeightFormat};

use super::convert::{Progress, write_folder};
use super::layout::{Shape, expected};
use super::quantized::{OUTLIER_WEIGHT, OUTLIERS, SCALE, matrix_format, type_of};
use super::write::{PendingFile, Plan, header, order};
use super::{Checkpoint, Dtype, MatrixView, outliers};
use crate::config::format_name;
use crate::error::{Error, Result};
use crate::model::InputStatistics;

/// Largest outlier that a bfloat16 holds.
const LARGEST_BF16: f32 = f32::from_bits(0x7f7f_0000);

/// How a model is quantised.
#[derive(Clone, Copy, Debug)]
pub struct Quantization<'a> {
    /// [`WeightFormat::Q8`] or [`WeightFormat::Q4`].
    pub format: WeightFormat,
    /// What the matrices are multiplied with in use, by their names, from a text: see [`crate::model::calibrate`]. It says which
    /// inputs count most and which are kept apart.
    pub calibration: Option<&'a BTreeMap<String, InputStatistics>>,
}

/// What became of a matrix.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    /// The original authors' name.
    pub name: String,
    /// Its format: head and embedding of a q4 model are q8.
    pub format: WeightFormat,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Inputs that are kept in 16 bits.
    pub outliers: usize,
    /// Squares of what the weights lose, as a share of the squares of the weights.
    pub error: f64,
}

/// Writes `checkpoint`, quantised, as a model folder to `folder`, which is made if needed. A model that is quantised already is so anew, from
/// the numbers that it stands for. Vectors keep their type, and so does a binary embedding.
///
/// `progress` counts weights. Files appear only when all are complete: an error, a full disk or a `Break` leaves the folder as it was.
pub fn quantize(
    checkpoint: &Checkpoint,
    folder: &Path,
    how: Quantization<'_>,
    cpu: &Cpu,
    progress: Progress<'_>,
) -> Result<Vec<QuantizedMatrix>> {
    if !how.format.is_quantized() {
        return Err(Error::Option {
            name: "dtype".into(),
            value: format_name(how.format).into(),
            needed: "q8 or q4".into(),
        });
    }
    let mut config = checkpoint.config().clone();
    config.quantization = Some(how.format);
    let matrices: Vec<(String, WeightFormat, [usize; 2])> = expected(&config)
        .into_iter()
        .filter_map(|(name, shape)| match shape {
            Shape::Matrix(outputs, inputs) => {
                let format = matrix_format(&name, how.format, config.spike_embedding)?;
                Some((name, format, [outputs, inputs]))
            }
            Shape::Vector(_) => None,
        })
        .collect();
    let total = matrices.iter().map(|(_, _, [outputs, inputs])| (outputs * inputs) as u64).sum();
    let (mut done, mut quantised, mut report) = (0, BTreeMap::new(), Vec::new());
    for (name, format, shape) in matrices {
        if progress(done, total).is_break() {
            return Err(Error::Cancelled);
        }
        let seen = how.calibration.and_then(|all| all.get(&name));
        let (matrix, error) = one(checkpoint, &name, format, shape, seen, cpu)?;
        done += (shape[0] * shape[1]) as u64;
        report.push(QuantizedMatrix { name: name.clone(), format, shape, outliers: matrix.outliers.len(), error });
        quantised.insert(name, matrix);
    }
    if progress(done, total).is_break() {
        return Err(Error::Cancelled);
    }
    write_folder(checkpoint, &config, folder, |path| write(checkpoint, path, &quantised))?;
    Ok(report)
}

/// Quantises one matrix; also says what share of it is lost.
fn one(
    checkpoint: &Checkpoint,
    name: &str,
    format: WeightFormat,
    [outputs, inputs]: [usize; 2],
    seen: Option<&InputStatistics>,
    cpu: &Cpu,
) -> Result<(Quantized, f64)> {
    let view = checkpoint.matrix(name, outputs, inputs)?;
    checkpoint.check_matrix(&view)?;
    let too_large = AtomicBool::new(false);
    let importance = seen.map(InputStatistics::mean_squares);
    let quantised = |outliers: &[u32]| {
        quant::quantize(cpu, format, outputs, inputs, importance.as_deref(), outliers, |row, out| {
            view.row_to_f32(row, out);
            for &input in outliers {
                let weight = &mut out[input as usize];
                if weight.abs() > LARGEST_BF16 {
                    too_large.store(true, Ordering::Relaxed);
                    *weight = 0.0;
                }
            }
        })
    };
    let mut matrix = quantised(&[]);
    let mut columns = Columns::of(&view, &matrix);
    if let Some(seen) = seen {
        let outliers = outliers::choose(seen, &columns.power, &columns.lost);
        if !outliers.is_empty() {
            matrix = quantised(&outliers);
            columns = Columns::of(&view, &matrix);
        }
    }
    if too_large.into_inner() {
        return Err(Error::tensor(checkpoint.path(), name, "it holds values too large for BF16 (at most 3.39e38)"));
    }
    let (power, lost): (f64, f64) = (columns.power.iter().sum(), columns.lost.iter().sum());
    Ok((matrix, if power > 0.0 { lost / power } else { 0.0 }))
}

/// Sums of squares of the columns of a matrix.
struct Columns {
    /// Of the weights.
    power: Vec<f64>,
    /// Of what quantising takes away.
    lost: Vec<f64>,
}

impl Columns {
    fn of(view: &MatrixView<'_>, matrix: &Quantized) -> Columns {
        let (mut power, mut lost) = (vec![0.0; matrix.inputs], vec![0.0; matrix.inputs]);
        let (mut before, mut after) = (vec![0.0; matrix.inputs], vec![0.0; matrix.inputs]);
        for row in 0..matrix.outputs {
            view.row_to_f32(row, &mut before);
            matrix.row_to_f32(row, &mut after);
            for (i, (&w, &q)) in before.iter().zip(&after).enumerate() {
                let (w, off) = (f64::from(w), f64::from(w) - f64::from(q));
                power[i] += w * w;
                lost[i] += off * off;
            }
        }
        Columns { power, lost }
    }
}

fn write(checkpoint: &Checkpoint, path: &Path, quantised: &BTreeMap<String, Quantized>) -> Result<PendingFile> {
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, matrix) in quantised {
        let Quantized { format, outputs, inputs, codes, scales, outliers, outlier_weights } = matrix;
        let mut put = |suffix: &str, dtype, columns: usize, bytes: Vec<u8>| {
            tensors.insert(format!("{name}{suffix}"), (dtype, vec![*outputs, columns], bytes));
        };
        let little = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        put("", type_of(*format), quant::code_bytes_of(*format, *inputs), codes.clone());
        put(SCALE, Dtype::Bf16, quant::blocks_of(*inputs), little(scales));
        if !outliers.is_empty() {
            put(OUTLIER_WEIGHT, Dtype::Bf16, outliers.len(), little(outlier_weights));
            let bytes = outliers.iter().flat_map(|n| n.to_le_bytes()).collect();
            tensors.insert(format!("{name}{OUTLIERS}"), (Dtype::I32, vec![outliers.len()], bytes));
        }
    }
    for name in checkpoint.names() {
        if !quantised.contains_key(name) && !checkpoint.is_quantised_part(name) {
            let view = checkpoint.get(name)?;
            checkpoint.check_finite(&view)?;
            tensors.insert(name.to_owned(), (view.dtype, view.shape.to_vec(), view.bytes.to_vec()));
        }
    }
    let mut plans: Vec<Plan<'_>> =
        tensors.iter().map(|(name, (dtype, shape, _))| Plan { name, dtype: *dtype, shape }).collect();
    order(&mut plans);
    let mut file = PendingFile::create(path)?;
    file.write(&header(&plans, &BTreeMap::new()))?;
    for plan in &plans {
        file.write(&tensors[plan.name].2)?;
    }
    file.sync()?;
    Ok(file)
}
