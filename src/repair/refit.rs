//! One matrix: its normal equations, the ridge, the solution, the codes.

use faer::{Mat, Par};
use rayon::prelude::*;

use super::normal::Normal;
use crate::quantize::{Coder, QuantizeError, gptq};

/// The ridges that are tried, relative to the Gram matrix's mean diagonal.
pub const LAMBDAS: [f64; 4] = [3e-3, 1e-2, 3e-2, 1e-1];

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
    let from = Mat::from_fn(p, n, |i, j| f64::from(problem.weights[j * p + i]));
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
    let stored = Some(problem.stored);
    let size = |sums: &Normal| if sums.target > 0.0 { sums.target } else { 1.0 };
    let (lambda, solved) = choose(&fitted_on, &held_out, &from);
    let all = fitted_on.plus(&held_out);
    let before = all.error(&from) / size(&all);
    // A refit costs a rounding: it must be worth that, on other text.
    let tried = match solved {
        Some(solved) => gptq::quantise(solved, &fitted_on.ridged(lambda), &coder, stored, par)?,
        None => return Err(QuantizeError::Singular),
    };
    if held_out.error(&tried.weights) >= held_out.error(&from) {
        return Ok(Refit {
            bytes: problem.stored.to_vec(),
            lambda: None,
            before,
            after: before,
        });
    }
    let solved = all.solve(&from, lambda).ok_or(QuantizeError::Singular)?;
    let coded = gptq::quantise(solved, &all.ridged(lambda), &coder, stored, par)?;
    Ok(Refit {
        bytes: coded.bytes,
        lambda: Some(lambda),
        before,
        after: all.error(&coded.weights) / size(&all),
    })
}

/// The ridge with the smallest error on the tokens that were held out, and the
/// solution on the others.
fn choose(fitted_on: &Normal, held_out: &Normal, from: &Mat<f64>) -> (f64, Option<Mat<f64>>) {
    let mut least = f64::INFINITY;
    let mut best = (LAMBDAS[LAMBDAS.len() - 1], None);
    let solutions = fitted_on.solve_each(from, &LAMBDAS);
    for (lambda, solved) in LAMBDAS.into_iter().zip(solutions) {
        if let Some(solved) = solved {
            let error = held_out.error(&solved);
            if error < least {
                least = error;
                best = (lambda, Some(solved));
            }
        }
    }
    best
}
