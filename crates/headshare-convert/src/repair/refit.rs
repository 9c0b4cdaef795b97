//! One matrix: its normal equations, the ridge, the solution, the codes.

use faer::{Mat, Par};

use crate::encode::{Coder, QuantizeError, requantize, transposed};
use crate::engine::normal::{Normal, Sums, towards};

/// The ridges that are tried, relative to the Gram matrix's mean diagonal.
pub const LAMBDAS: [f64; 7] = [3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0];

/// The part of the error that a refit has to make up for at least. Two streams that are the same
/// differ by rounding where kernels do, and what stays as it is can be stored once.
const LEAST: f64 = 1e-3;

/// A matrix to refit.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// The sums of its inputs and of what should come out.
    pub sums: &'a Sums,
    /// Its weights now, row after row.
    pub weights: &'a [f32],
    /// What the ridge draws the weights to, row after row. This is the weights
    /// themselves, except in columns whose inputs are no longer those that the
    /// columns were made for: there it is zero.
    pub prior: &'a [f32],
    /// The weights as they are stored.
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

/// Refits and quantizes a matrix. The weights stay as they are unless both the
/// solution and its codes have a smaller error on the held-out tokens than the
/// weights have.
///
/// # Errors
/// When it cannot be quantized to its type.
pub fn refit(problem: &Problem<'_>, par: Par) -> Result<Refit, QuantizeError> {
    let p = problem.columns;
    let [now, prior] = [problem.weights, problem.prior].map(|rows| transposed(rows, p));
    let coder = Coder::of(problem.ggml_type)?;
    let stored = problem.stored;
    let size = |sums: &Normal| if sums.target > 0.0 { sums.target } else { 1.0 };
    let Sums { fitted, held } = problem.sums;
    let all = problem.sums.all();
    let before = all.error(&now) / size(&all);
    let kept = || Refit {
        bytes: stored.to_vec(),
        lambda: None,
        before,
        after: before,
    };
    // A refit follows noise, and costs a rounding: it must be worth both, on
    // other text.
    let limit = held.error(&now);
    let best = choose(fitted, held, &now, &prior).ok_or(QuantizeError::Singular)?;
    let (lambda, strength, solved) = best;
    if held.error(&solved) >= limit {
        return Ok(kept());
    }
    let tried = requantize(&solved, &fitted.ridged(lambda), &coder, stored, par)?;
    if held.error(&tried.weights) >= limit {
        return Ok(kept());
    }
    let solved = all.solve(&prior, lambda).ok_or(QuantizeError::Singular)?;
    let solved = towards(&now, &solved, strength);
    let coded = requantize(&solved, &all.ridged(lambda), &coder, stored, par)?;
    let after = all.error(&coded.weights) / size(&all);
    // What little there is to win can be lost to rounding.
    if after >= before * (1.0 - LEAST) {
        return Ok(kept());
    }
    Ok(Refit {
        bytes: coded.bytes,
        lambda: Some(lambda),
        before,
        after,
    })
}

/// The ridge and the strength with the smallest error on the tokens that were held out,
/// and what they make of the weights on the others.
fn choose(
    fitted: &Normal,
    held: &Normal,
    now: &Mat<f64>,
    prior: &Mat<f64>,
) -> Option<(f64, f64, Mat<f64>)> {
    let solutions = fitted.solve_each(prior, &LAMBDAS);
    LAMBDAS
        .into_iter()
        .zip(solutions)
        .filter_map(|(lambda, solved)| {
            let solved = solved?;
            let strength = held.strength(now, &solved);
            let solved = towards(now, &solved, strength);
            Some((held.error(&solved), lambda, strength, solved))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, lambda, strength, solved)| (lambda, strength, solved))
}
