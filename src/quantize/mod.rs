//! Quantisation that knows what the weights are multiplied with.
//!
//! [`gptq::quantize`] is the scheme; a [`Coder`] turns blocks of weights into
//! the bytes of a ggml type: [`affine`] does it for the simple 32-element types
//! itself, column by column, ggml for all others, a block at a time.

pub mod affine;
pub mod descent;
pub mod gptq;
#[cfg(test)]
mod tests;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use headshare_runtime::quants::{self, QuantError, TypeInfo};
use rayon::prelude::*;

use affine::Affine;
use gptq::{Block, Quantized};

/// Why weights cannot be quantised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// ggml refuses.
    #[error(transparent)]
    Ggml(#[from] QuantError),
    /// Rows are no whole blocks, or do not fit the inputs.
    #[error("rows of {columns} elements are no whole blocks of {width}")]
    Shape {
        /// Length of a row.
        columns: usize,
        /// Length of a block.
        width: usize,
    },
    /// The Gram matrix cannot be inverted.
    #[error("the Gram matrix of the inputs is not positive definite")]
    Singular,
}

/// Quantises the matrix whose transpose is `wanted` (a column for each row),
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
) -> Result<Quantized, QuantizeError> {
    let rounded = gptq::quantize(wanted.clone(), hessian, coder, Some(stored), par)?;
    let candidates = match coder {
        Coder::Affine(affine) => {
            let descend = |bytes: &[u8]| descent::descend(*affine, bytes, wanted, hessian, par);
            vec![descend(stored)?, descend(&rounded.bytes)?]
        }
        Coder::Ggml(info) => {
            let (p, n) = (wanted.nrows(), wanted.ncols());
            let mut values = vec![0f32; p * n];
            quants::dequantize_row(info.id, stored, &mut values)?;
            let kept = Quantized {
                bytes: stored.to_vec(),
                weights: Mat::from_fn(p, n, |i, row| f64::from(values[row * p + i])),
            };
            vec![rounded, kept]
        }
    };
    Ok(best_rows(&candidates, wanted, hessian, par))
}

/// (w - w*)^T H (w - w*) of each row.
fn costs(of: &Quantized, wanted: &Mat<f64>, hessian: &Mat<f64>, par: Par) -> Vec<f64> {
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
    candidates: &[Quantized],
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    par: Par,
) -> Quantized {
    let all: Vec<Vec<f64>> = candidates
        .iter()
        .map(|c| costs(c, wanted, hessian, par))
        .collect();
    let (p, n) = (wanted.nrows(), wanted.ncols());
    let best: Vec<&Quantized> = (0..n)
        .map(|row| {
            let cost = |i: &usize| all[*i][row];
            let least = (0..candidates.len()).min_by(|a, b| cost(a).total_cmp(&cost(b)));
            &candidates[least.unwrap_or(0)]
        })
        .collect();
    Quantized {
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

/// How blocks of a ggml type are made.
#[derive(Debug, Clone)]
pub enum Coder {
    /// By our own encoder, with feedback from column to column.
    Affine(Affine),
    /// By ggml, with the columns' importances.
    Ggml(TypeInfo),
}

/// Encoded blocks.
#[derive(Debug, Clone)]
pub struct Coded {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// What they stand for.
    pub values: Vec<f32>,
}

/// Columns that are quantised at a time where the type has no blocks.
const PLAIN_WIDTH: usize = 32;

impl Coder {
    /// The coder of ggml type `id`.
    ///
    /// # Errors
    /// When there is no such type.
    pub fn of(id: u32) -> Result<Self, QuantizeError> {
        let info = quants::type_info(id).ok_or(QuantError::UnknownType(id))?;
        Ok(match Affine::of(info.name) {
            Some(affine) => Self::Affine(affine),
            None => Self::Ggml(info),
        })
    }

    /// Columns that are quantised at a time: a block's.
    pub fn block_elems(&self) -> usize {
        match self {
            Self::Affine(_) => affine::WIDTH,
            Self::Ggml(info) if info.block_elems == 1 => PLAIN_WIDTH,
            Self::Ggml(info) => info.block_elems,
        }
    }

    /// Bytes of `columns` elements of a row; 0 when they are no whole blocks.
    pub fn bytes_of(&self, columns: usize) -> usize {
        let (elems, bytes) = match self {
            Self::Affine(affine) => (affine::WIDTH, affine.block_bytes()),
            Self::Ggml(info) => (info.block_elems, info.block_bytes),
        };
        if columns.is_multiple_of(elems) {
            columns / elems * bytes
        } else {
            0
        }
    }

    /// Encodes blocks, the same columns of several rows; `old` are the blocks
    /// that stood there, if there were any.
    ///
    /// # Errors
    /// When ggml refuses.
    pub fn encode(
        &self,
        wanted: &[f64],
        block: &Block,
        old: Option<&[u8]>,
    ) -> Result<Coded, QuantizeError> {
        match self {
            Self::Affine(affine) => Ok(affine.encode(wanted, block, old)),
            Self::Ggml(info) => {
                let mut coded = self.by_ggml(info, wanted, block)?;
                if let Some(old) = old {
                    self.keep_better(info, &mut coded, old, wanted, block)?;
                }
                Ok(coded)
            }
        }
    }

    /// Puts the old blocks back where they cost less.
    fn keep_better(
        &self,
        info: &TypeInfo,
        coded: &mut Coded,
        old: &[u8],
        wanted: &[f64],
        block: &Block,
    ) -> Result<(), QuantizeError> {
        let width = block.width();
        let bytes = self.bytes_of(width);
        let mut values = vec![0f32; wanted.len()];
        quants::dequantize_row(info.id, old, &mut values)?;
        for (row, wanted) in wanted.chunks(width).enumerate() {
            let place = row * width..(row + 1) * width;
            let (new, kept) = (&coded.values[place.clone()], &values[place.clone()]);
            if block.cost(wanted, kept) < block.cost(wanted, new) {
                let of_bytes = row * bytes..(row + 1) * bytes;
                coded.bytes[of_bytes.clone()].copy_from_slice(&old[of_bytes]);
                coded.values[place.clone()].copy_from_slice(&values[place]);
            }
        }
        Ok(())
    }

    fn by_ggml(
        &self,
        info: &TypeInfo,
        wanted: &[f64],
        block: &Block,
    ) -> Result<Coded, QuantizeError> {
        let width = block.width();
        let importance: Vec<f32> = (0..width).map(|i| block.importance(i) as f32).collect();
        let importance = info.is_quantized.then_some(importance.as_slice());
        let parts: Vec<Coded> = wanted
            .par_chunks(width * 16)
            .map(|rows| {
                let rows: Vec<f32> = rows.iter().map(|&v| v as f32).collect();
                let bytes = quants::quantize_rows(info.id, &rows, width, importance)?;
                let mut values = vec![0f32; rows.len()];
                quants::dequantize_row(info.id, &bytes, &mut values)?;
                Ok(Coded { bytes, values })
            })
            .collect::<Result<_, QuantizeError>>()?;
        Ok(Coded {
            bytes: parts.iter().flat_map(|p| p.bytes.clone()).collect(),
            values: parts.into_iter().flat_map(|p| p.values).collect(),
        })
    }
}
