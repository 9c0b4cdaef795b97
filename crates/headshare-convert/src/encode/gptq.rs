//! GPTQ, block by block: a block of columns is quantized, and the columns after
//! it are moved so that together they give the outputs closest to what the
//! weights gave.
//!
//! After Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training
//! Quantization for Generative Pre-trained Transformers" (2022). With H the
//! Gram matrix of the inputs and H^-1 = U^T U (U upper triangular), an error e
//! in a block B of columns is best made up for by subtracting
//! e U_BB^-1 U_BR from the columns R after it. The paper does that column by
//! column; a block coder that has no say about single columns (ggml's for the
//! K-quants) fits the same scheme, one that has sees U_BB.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_upper_triangular;
use faer::{Accum, Mat, Par, Side};
use rayon::prelude::*;

use super::block::{Block, EncodedMatrix};
use super::coder::Coder;
use super::error::QuantizeError;

/// Quantizes the matrix whose transpose is `weights` (a column for each row),
/// so that the outputs for inputs of Gram matrix `hessian`, which must be
/// positive definite, change little.
///
/// `stored` is the matrix as it was quantized before, if it was: where the
/// weights have hardly changed, nothing is better than the old grid.
///
/// # Errors
/// When `hessian` is not positive definite, rows are no whole blocks, or ggml
/// refuses.
pub fn quantize(
    mut weights: Mat<f64>,
    hessian: &Mat<f64>,
    coder: &Coder,
    stored: Option<&[u8]>,
    par: Par,
) -> Result<EncodedMatrix, QuantizeError> {
    let (p, n) = (weights.nrows(), weights.ncols());
    let row_bytes = coder.bytes_of(p);
    if p == 0
        || n == 0
        || row_bytes == 0
        || hessian.nrows() != p
        || stored.is_some_and(|stored| stored.len() != n * row_bytes)
    {
        let width = coder.block_elems();
        return Err(QuantizeError::Shape { columns: p, width });
    }
    let upper = inverse_factor(hessian, par).ok_or(QuantizeError::Singular)?;
    let mut bytes = vec![0u8; n * row_bytes];
    let mut result = Mat::zeros(p, n);
    for start in (0..p).step_by(coder.block_elems()) {
        // Where the type has no blocks, the last one may be narrower.
        let end = p.min(start + coder.block_elems());
        let width = end - start;
        let block_bytes = coder.bytes_of(width);
        let own = upper.submatrix(start, start, width, width);
        let block = Block::new(own);
        // Consecutive: the block of each row.
        let wanted: Vec<f64> = (0..n)
            .flat_map(|row| (start..end).map(move |i| (i, row)))
            .map(|at| weights[at])
            .collect();
        let place = |row: usize| row * row_bytes + coder.bytes_of(start);
        let old: Option<Vec<u8>> = stored.map(|stored| {
            (0..n)
                .flat_map(|row| &stored[place(row)..place(row) + block_bytes])
                .copied()
                .collect()
        });
        let coded = coder.encode(&wanted, &block, old.as_deref())?;
        let errors: Vec<f64> = wanted
            .par_chunks(width)
            .zip(coded.values.par_chunks(width))
            .flat_map_iter(|(wanted, got)| block.solve(wanted, got))
            .collect();
        for row in 0..n {
            let to = place(row);
            bytes[to..to + block_bytes]
                .copy_from_slice(&coded.bytes[row * block_bytes..(row + 1) * block_bytes]);
            for i in 0..width {
                result[(start + i, row)] = f64::from(coded.values[row * width + i]);
            }
        }
        if end < p {
            let errors = faer::MatRef::from_column_major_slice(&errors, width, n);
            let rest = upper.submatrix(start, end, width, p - end);
            let after = weights.as_mut().subrows_mut(end, p - end);
            matmul(after, Accum::Add, rest.transpose(), errors, -1.0, par);
        }
    }
    Ok(EncodedMatrix {
        bytes,
        weights: result,
    })
}

/// The upper triangular U with H^-1 = U^T U. With J the reversal of order and
/// J H J = L L^T, it is the inverse of J L J.
fn inverse_factor(hessian: &Mat<f64>, par: Par) -> Option<Mat<f64>> {
    let p = hessian.nrows();
    let flipped = Mat::from_fn(p, p, |i, j| hessian[(p - 1 - i, p - 1 - j)]);
    let llt = flipped.llt(Side::Lower).ok()?;
    let lower = llt.L();
    let root = Mat::from_fn(p, p, |i, j| {
        if i <= j {
            lower[(p - 1 - i, p - 1 - j)]
        } else {
            0.0
        }
    });
    let mut upper = Mat::zeros(p, p);
    invert_upper_triangular(upper.as_mut(), root.as_ref(), par);
    upper.is_all_finite().then_some(upper)
}
