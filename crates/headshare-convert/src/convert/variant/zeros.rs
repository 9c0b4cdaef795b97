//! Zeros in the place of some columns of stored rows.
//!
//! A block of zero bytes stands for zeros in every type of ggml, so a block whose columns are
//! all silent is just that, and the others stay as they are. A block that has columns of
//! both kinds is encoded anew: the rest of it as closely, and the silent ones as close to
//! zero, as its type allows.

use std::ops::Range;

use faer::{Mat, Par};
use headshare_format::TensorInfo;
use headshare_runtime::quants::{self, QuantError};

use crate::encode::{Coder, QuantizeError, requantize};

/// Whether `columns` end within blocks of a row of `info`.
pub(super) fn cuts_blocks(info: &TensorInfo, columns: &[Range<u64>]) -> bool {
    let block = info.ggml_type.block_elems();
    let mut ends = columns.iter().flat_map(|c| [c.start, c.end]);
    ends.any(|end| !end.is_multiple_of(block))
}

/// Puts zeros in the place of some columns of `rows`, which are whole rows of `info`.
///
/// # Errors
/// When blocks have to be encoded anew, and cannot be.
pub(super) fn zero_columns(
    info: &TensorInfo,
    rows: &mut [u8],
    columns: &[Range<u64>],
) -> Result<(), QuantError> {
    let (elems, bytes) = (
        info.ggml_type.block_elems() as usize,
        info.ggml_type.block_bytes() as usize,
    );
    let mut silent = vec![false; info.row_elems() as usize];
    for range in columns {
        silent[range.start as usize..range.end as usize].fill(true);
    }
    let row_bytes = info.row_bytes() as usize;
    for (i, silent) in silent.chunks(elems).enumerate() {
        let place = i * bytes..(i + 1) * bytes;
        match silent.iter().filter(|&&is_silent| is_silent).count() {
            0 => {}
            all if all == elems => {
                for row in rows.chunks_mut(row_bytes) {
                    row[place.clone()].fill(0);
                }
            }
            _ => {
                let old: Vec<u8> = (rows.chunks(row_bytes))
                    .flat_map(|row| &row[place.clone()])
                    .copied()
                    .collect();
                let new = silence_blocks(info, &old, silent)?;
                for (row, new) in rows.chunks_mut(row_bytes).zip(new.chunks(bytes)) {
                    row[place.clone()].copy_from_slice(new);
                }
            }
        }
    }
    Ok(())
}

/// Blocks with zeros where `silent` says so. All columns count as much: what is left of a
/// silent one is as wrong as what a loud one loses.
fn silence_blocks(info: &TensorInfo, old: &[u8], silent: &[bool]) -> Result<Vec<u8>, QuantError> {
    let id = info.ggml_type.id();
    let width = silent.len();
    let rows = old.len() / info.ggml_type.block_bytes() as usize;
    let mut values = vec![0f32; rows * width];
    quants::dequantize_row(id, old, &mut values)?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(QuantError::NotFinite(at));
    }
    let wanted = Mat::from_fn(width, rows, |i, row| match silent[i] {
        true => 0.0,
        false => f64::from(values[row * width + i]),
    });
    let even = Mat::identity(width, width);
    let encode = || {
        let coder = Coder::of(id)?;
        // Where there is a zero on the grid, this is the best already.
        let silenced = coder.silence(old, silent);
        let from = silenced.as_deref().unwrap_or(old);
        requantize(&wanted, &even, &coder, from, Par::Seq)
    };
    match encode() {
        Ok(new) => Ok(new.bytes),
        Err(QuantizeError::Ggml(error)) => Err(error),
        // Blocks are whole, and ones on a diagonal can be inverted.
        Err(QuantizeError::Shape { .. } | QuantizeError::Singular) => {
            Err(QuantError::NotQuantizable(info.ggml_type.name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::oracle::Numbers;
    use headshare_format::GgmlType;

    /// Small numbers without pattern.
    fn numbers(len: usize) -> Vec<f32> {
        let numbers = Numbers::new(7).take(len);
        numbers.into_iter().map(|v| v as f32).collect()
    }

    fn values(id: u32, rows: &[u8], len: usize) -> Vec<f32> {
        let mut values = vec![0f32; len];
        quants::dequantize_row(id, rows, &mut values).unwrap();
        values
    }

    /// Mean squares of what kept columns lose and of what is left of silent ones.
    fn errors(old: &[f32], new: &[f32], silent: &[bool]) -> [f64; 2] {
        let mut sums = [0.0; 2];
        for (i, (old, new)) in old.iter().zip(new).enumerate() {
            let is_silent = silent[i % silent.len()];
            let wanted = if is_silent { 0.0 } else { *old };
            sums[usize::from(is_silent)] += f64::from(wanted - new).powi(2);
        }
        sums.map(|sum| sum / new.len() as f64)
    }

    #[test]
    fn in_every_type_silent_columns_are_zero_and_the_others_stay() {
        let (width, n) = (512, 4);
        let mut types = 0;
        for ggml_type in GgmlType::all() {
            let id = ggml_type.id();
            let stated = quants::type_info(id);
            let floats = ["f32", "f16", "bf16"].contains(&ggml_type.name());
            let Some(stated) = stated.filter(|t| t.has_to_float && (t.is_quantized || floats))
            else {
                continue;
            };
            let info = TensorInfo {
                name: "t".to_owned(),
                dims: vec![width as u64, n as u64],
                ggml_type,
                offset: 0,
            };
            let even = vec![1.0; width];
            let even = quants::needs_importance(id).then_some(&even[..]);
            let Ok(rows) = quants::quantize_rows(id, &numbers(width * n), width, even) else {
                continue;
            };
            types += 1;
            let old = values(id, &rows, width * n);
            // Whole blocks: the others' bytes stay.
            let name = ggml_type.name();
            let mut new = rows.clone();
            let first = std::slice::from_ref(&(0..256));
            zero_columns(&info, &mut new, first).unwrap();
            let half = new.len() / n / 2;
            for (new, old) in new.chunks(2 * half).zip(rows.chunks(2 * half)) {
                assert_eq!(new[half..], old[half..], "{name}");
            }
            let got = values(id, &new, width * n);
            let is_zero = |row: &[f32]| row[..256].iter().all(|&v| v == 0.0);
            assert!(got.chunks(width).all(is_zero), "{name}");
            // Parts of blocks, held against ggml's rounding.
            let columns = [24..40, 300..330];
            let silent: Vec<bool> = (0..width as u64)
                .map(|i| columns.iter().any(|c| c.contains(&i)))
                .collect();
            let mut new = rows.clone();
            zero_columns(&info, &mut new, &columns).unwrap();
            let ours = errors(&old, &values(id, &new, width * n), &silent);
            let zeroed: Vec<f32> = (old.iter().enumerate())
                .map(|(i, v)| if silent[i % width] { 0.0 } else { *v })
                .collect();
            let theirs = quants::quantize_rows(id, &zeroed, width, even).unwrap();
            let theirs = errors(&old, &values(id, &theirs, width * n), &silent);
            println!("{name}: ours {ours:?}, ggml's {theirs:?}");
            assert!(ours[0] + ours[1] <= theirs[0] + theirs[1] + 1e-12, "{name}");
            let exact = ["q4_0", "q5_0", "q8_0", "q3_K", "q6_K", "mxfp4", "q2_0"];
            if stated.block_elems == 1 || exact.contains(&name) {
                assert_eq!(ours, [0.0; 2], "{name}");
            }
            assert_eq!(
                cuts_blocks(&info, &columns),
                stated.block_elems > 1,
                "{name}"
            );
        }
        assert!(types > 15, "{types}");
    }
}
