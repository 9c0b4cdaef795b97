//! Encoding weights that knows what they are multiplied with.
//!
//! [`gptq::quantize`] is the scheme; a [`Coder`] turns blocks of weights into
//! the bytes of a ggml type. Most types it encodes itself, column by column:
//! [`affine`] those of 32 weights, `single_scale` those with other levels,
//! `super_blocks` the K-types. ggml does the others, a block at a time.

mod affine;
mod block;
mod coder;
mod descent;
mod error;
mod feedback;
pub mod gptq;
mod ideal;
mod lanes;
mod level_type;
#[cfg(test)]
mod oracle_tests;
mod single_scale;
mod super_blocks;
mod super_layout;
#[cfg(test)]
mod tests;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use headshare_runtime::quants::{self, QuantError};
use rayon::prelude::*;

pub use block::{Block, Coded, EncodedMatrix};
pub use coder::Coder;
pub use error::QuantizeError;

/// Encodes the matrix whose transpose is `wanted` (a column for each row), so that the
/// outputs for inputs of Gram matrix `hessian`, which must be positive definite, change
/// little: by GPTQ, which the grid of what was `stored` before can help, if anything
/// was, and [`descent`] where the type has it.
///
/// # Errors
/// As [`gptq::quantize`].
pub fn encode(
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    coder: &Coder,
    stored: Option<&[u8]>,
    par: Par,
) -> Result<EncodedMatrix, QuantizeError> {
    let rounded = gptq::quantize(wanted.clone(), hessian, coder, stored, par)?;
    let lower = coder.descend(&rounded.bytes, wanted, hessian, par)?;
    let encoded = lower.unwrap_or(rounded);
    quants::validate(coder.id(), &encoded.bytes)?;
    let (is, was) = (largest(&encoded.weights), largest(wanted));
    if was > LARGEST_SCALE && is < was / 2.0 {
        let name = quants::type_info(coder.id()).map_or("this type", |info| info.name);
        return Err(QuantError::Overflow(name).into());
    }
    Ok(encoded)
}

/// The largest scale that a half float holds: what is larger may have been cut off.
const LARGEST_SCALE: f64 = 65504.0;

fn largest(of: &Mat<f64>) -> f64 {
    let columns = of.col_iter();
    columns
        .flat_map(|column| column.iter().copied())
        .fold(0.0, |most, value| most.max(value.abs()))
}

/// Rows of `p` weights as the columns of a matrix.
pub fn transposed(rows: &[f32], p: usize) -> Mat<f64> {
    Mat::from_fn(p, rows.len() / p, |i, j| f64::from(rows[j * p + i]))
}

/// Rows of `columns` weights as ggml rounds them to type `id`, with the importances of
/// columns if there are any; where the type does not go without, all count as much.
///
/// # Errors
/// When ggml refuses.
pub fn round(
    weights: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    id: u32,
) -> Result<Vec<u8>, QuantError> {
    if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
        return Err(QuantError::NotFinite(at));
    }
    let even = vec![1.0; columns];
    let needed = quants::needs_importance(id).then_some(&even[..]);
    let parts: Vec<Vec<u8>> = (weights.par_chunks(columns * ROWS))
        .map(|rows| quants::quantize_rows(id, rows, columns, importance.or(needed)))
        .collect::<Result<_, _>>()?;
    Ok(parts.concat())
}

/// Rows that a thread rounds at a time.
const ROWS: usize = 64;

/// Quantizes the matrix whose transpose is `wanted` (a column for each row),
/// which was `stored` before and has moved little, so that the outputs for
/// inputs of Gram matrix `hessian`, which must be positive definite, change
/// little. Of what is stored, GPTQ's result, and what [`descent`] makes of
/// both, each row is the best.
///
/// # Errors
/// As [`gptq::quantize`].
pub fn requantize(
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    coder: &Coder,
    stored: &[u8],
    par: Par,
) -> Result<EncodedMatrix, QuantizeError> {
    let encoded = encode(wanted, hessian, coder, Some(stored), par)?;
    let kept = match coder.descend(stored, wanted, hessian, par)? {
        Some(lower) => lower,
        None => {
            let (p, n) = (wanted.nrows(), wanted.ncols());
            let mut values = vec![0f32; p * n];
            quants::dequantize_row(coder.id(), stored, &mut values)?;
            EncodedMatrix {
                bytes: stored.to_vec(),
                weights: Mat::from_fn(p, n, |i, row| f64::from(values[row * p + i])),
            }
        }
    };
    let candidates = [kept, encoded];
    Ok(best_rows(&candidates, wanted, hessian, par))
}

/// (w - w*)^T H (w - w*) of each row.
fn costs(of: &EncodedMatrix, wanted: &Mat<f64>, hessian: &Mat<f64>, par: Par) -> Vec<f64> {
    let errors = &of.weights - wanted;
    let mut image = Mat::zeros(errors.nrows(), errors.ncols());
    matmul(&mut image, Accum::Replace, hessian, &errors, 1.0, par);
    (0..errors.ncols())
        .map(|row| {
            (0..errors.nrows())
                .map(|i| errors[(i, row)] * image[(i, row)])
                .sum()
        })
        .collect()
}

/// Each row from the candidate that costs least there; at least one is there.
fn best_rows(
    candidates: &[EncodedMatrix],
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    par: Par,
) -> EncodedMatrix {
    let all: Vec<Vec<f64>> = candidates
        .iter()
        .map(|c| costs(c, wanted, hessian, par))
        .collect();
    let (p, n) = (wanted.nrows(), wanted.ncols());
    let best: Vec<&EncodedMatrix> = (0..n)
        .map(|row| {
            let cost = |i: &usize| all[*i][row];
            let least = (0..candidates.len()).min_by(|a, b| cost(a).total_cmp(&cost(b)));
            &candidates[least.unwrap_or(0)]
        })
        .collect();
    EncodedMatrix {
        bytes: best
            .iter()
            .enumerate()
            .flat_map(|(row, c)| {
                let len = c.bytes.len() / n;
                &c.bytes[row * len..(row + 1) * len]
            })
            .copied()
            .collect(),
        weights: Mat::from_fn(p, n, |i, row| best[row].weights[(i, row)]),
    }
}
