//! From rows, as weights lie in a file, to the lines of a panel: element `i` of 32 rows side by side.

use crate::WeightFormat;
use crate::pack::PANEL;
use crate::tile::Bf16;

/// Inputs that are turned at a time: no index then needs a check.
const STEP: usize = 16;

/// Writes rows of `inputs` numbers of a format, at most 32 of them, in native byte order, into a panel of zeros `[inputs][32]`.
pub(crate) fn side_by_side(format: WeightFormat, rows: &[u8], inputs: usize, panel: &mut [u8]) {
    match format {
        WeightFormat::F32 => lines::<4>(rows, inputs, panel, |slot| slot),
        WeightFormat::F16 => lines::<2>(rows, inputs, panel, |slot| slot),
        WeightFormat::Bf16 => lines::<2>(rows, inputs, panel, Bf16::lane),
        WeightFormat::Q8 | WeightFormat::Q4 => unreachable!("integers lie in blocks"),
    }
}

/// Each line is written once and whole. `lane(slot)` is the row whose element stands at `slot`.
#[inline(always)]
fn lines<const N: usize>(rows: &[u8], inputs: usize, panel: &mut [u8], lane: impl Fn(usize) -> usize) {
    let (elements, lines) = (rows.as_chunks::<N>().0, panel.as_chunks_mut::<N>().0);
    // Rows beyond the last are zeros.
    let zeros = vec![[0; N]; if elements.len() < PANEL * inputs { inputs } else { 0 }];
    let rows: [&[[u8; N]]; PANEL] =
        std::array::from_fn(|row| elements.get(row * inputs..(row + 1) * inputs).unwrap_or(&zeros));
    let (whole, rest) = lines.as_chunks_mut::<{ STEP * PANEL }>();
    for (step, lines) in whole.iter_mut().enumerate() {
        let parts: [&[[u8; N]; STEP]; PANEL] = std::array::from_fn(|row| &rows[row].as_chunks().0[step]);
        for (i, line) in lines.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            for (slot, element) in line.iter_mut().enumerate() {
                *element = parts[lane(slot)][i % STEP];
            }
        }
    }
    let done = whole.len() * STEP;
    for (i, line) in rest.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        for (slot, element) in line.iter_mut().enumerate() {
            *element = rows[lane(slot)][done + i];
        }
    }
}

/// Blocks of 64 codes of a panel's rows, at most 32 of them, four at a time: `[group][32][4]`; what lies beyond the last row or its end
/// stays as it is. Bits of `flip` change.
pub(crate) fn fours(rows: &[u8], row_bytes: usize, from: usize, flip: u8, codes: &mut [u8]) {
    for (group, lanes) in codes.chunks_exact_mut(4 * PANEL).enumerate() {
        let at = from + 4 * group;
        for (row, to) in rows.chunks_exact(row_bytes.max(1)).zip(lanes.as_chunks_mut::<4>().0) {
            match row.get(at..at + 4) {
                Some(four) => *to = std::array::from_fn(|k| four[k] ^ flip),
                None => to.iter_mut().zip(row.get(at..).unwrap_or_default()).for_each(|(to, code)| *to = code ^ flip),
            }
        }
    }
}

/// Whether none of the little-endian numbers is NaN or infinite.
pub(crate) fn all_finite(format: WeightFormat, bytes: &[u8]) -> bool {
    // Without an early exit, so that it becomes vector code.
    let wide =
        |mask: u32| !bytes.as_chunks().0.iter().fold(false, |any, &b| any | (u32::from_le_bytes(b) & mask == mask));
    let half =
        |mask: u16| !bytes.as_chunks().0.iter().fold(false, |any, &b| any | (u16::from_le_bytes(b) & mask == mask));
    match format {
        WeightFormat::F32 => wide(0x7f80_0000),
        WeightFormat::Bf16 => half(0x7f80),
        WeightFormat::F16 => half(0x7c00),
        WeightFormat::Q8 | WeightFormat::Q4 => unreachable!("integers are finite"),
    }
}
