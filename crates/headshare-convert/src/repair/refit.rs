//! One matrix: its normal equations, the ridge, the solution, the codes.

use faer::{Mat, Par};
use rayon::prelude::*;

use super::normal::Normal;
use crate::quantize::{Coder, QuantizeError, requantize};

/// The ridges that are tried, relative to the Gram matrix's mean diagonal.
pub const LAMBDAS: [f64; 7] = [3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0];

/// A matrix to refit.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Its inputs, a row for each token.
    pub inputs: &'a [f32],
    /// What its outputs should be.
    pub targets: &'a [f32],
    /// What each token counts.
    pub row_weights: &'a [f32],
    /// The first token of those that the ridge is chosen on.
    pub held_from: usize,
    /// Its weights now, row after row.
    pub weights: &'a [f32],
    /// What the ridge draws them to, likewise: they themselves, but for columns
    /// whose inputs are others than they were made for.
    pub prior: &'a [f32],
    /// They as they are stored.
    pub stored: &'a [u8],
    /// Length of a row.
    pub columns: usize,
    /// The type that it is stored in.
    pub ggml_type: u32,
}

/// A refitted matrix.
#[derive(Debug, Clone)]
pub struct Refit {
    /// Its data.
    pub bytes: Vec<u8>,
    /// The ridge; nothing where the weights stay as they are.
    pub lambda: Option<f64>,
    /// The relative error before.
    pub before: f64,
    /// The relative error as it is stored.
    pub after: f64,
}

/// What each row counts: the inverse of its mean square.
pub fn row_weights(rows: &[f32], width: usize) -> Vec<f32> {
    rows.par_chunks(width)
        .map(|row| {
            let sum: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            let mean = sum / width as f64;
            // A row of zeros says nothing about outputs' scale.
            if mean == 0.0 {
                0.0
            } else {
                (1.0 / mean) as f32
            }
        })
        .collect()
}

/// Refits and quantises a matrix.
///
/// # Errors
/// When it cannot be quantised to its type.
pub fn refit(problem: &Problem<'_>, par: Par) -> Result<Refit, QuantizeError> {
    let p = problem.columns;
    let n = problem.weights.len() / p;
    let transposed = |rows: &[f32]| Mat::from_fn(p, n, |i, j| f64::from(rows[j * p + i]));
    let [now, prior] = [problem.weights, problem.prior].map(transposed);
    let held = problem.held_from;
    let sums = |range: std::ops::Range<usize>| {
        Normal::of(
            &problem.inputs[range.start * p..range.end * p],
            &problem.targets[range.start * n..range.end * n],
            &problem.row_weights[range],
            par,
        )
    };
    let fitted_on = sums(0..held);
    let held_out = sums(held..problem.row_weights.len());
    let coder = Coder::of(problem.ggml_type)?;
    let stored = problem.stored;
    let size = |sums: &Normal| if sums.target > 0.0 { sums.target } else { 1.0 };
    let all = fitted_on.plus(&held_out);
    let before = all.error(&now) / size(&all);
    let kept = || Refit {
        bytes: stored.to_vec(),
        lambda: None,
        before,
        after: before,
    };
    // A refit follows noise, and costs a rounding: it must be worth both, on
    // other text.
    let limit = held_out.error(&now);
    let (lambda, solved) = choose(&fitted_on, &held_out, &prior).ok_or(QuantizeError::Singular)?;
    if held_out.error(&solved) >= limit {
        return Ok(kept());
    }
    let tried = requantize(&solved, &fitted_on.ridged(lambda), &coder, stored, par)?;
    if held_out.error(&tried.weights) >= limit {
        return Ok(kept());
    }
    let solved = all.solve(&prior, lambda).ok_or(QuantizeError::Singular)?;
    let coded = requantize(&solved, &all.ridged(lambda), &coder, stored, par)?;
    Ok(Refit {
        bytes: coded.bytes,
        lambda: Some(lambda),
        before,
        after: all.error(&coded.weights) / size(&all),
    })
}

/// The ridge with the smallest error on the tokens that were held out, and the
/// solution on the others.
fn choose(fitted_on: &Normal, held_out: &Normal, prior: &Mat<f64>) -> Option<(f64, Mat<f64>)> {
    let solutions = fitted_on.solve_each(prior, &LAMBDAS);
    LAMBDAS
        .into_iter()
        .zip(solutions)
        .filter_map(|(lambda, solved)| {
            let solved = solved?;
            Some((held_out.error(&solved), lambda, solved))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, lambda, solved)| (lambda, solved))
}
