//! Importances of columns, as llama-imatrix measures them: how large the inputs of
//! each matrix are in the original model. ggml's encoders weigh errors by them.

use std::collections::BTreeMap;

use crate::engine::{EngineError, Seen, Site, Visitor, Wants};

/// The inputs of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SquaredInputs {
    /// Sums of the squares of each column's inputs; of experts one after the other.
    pub squares: Vec<f32>,
    /// Tokens that went in; of each expert.
    pub counts: Vec<u64>,
}

impl SquaredInputs {
    /// The mean squares of `columns` inputs, of each expert.
    pub fn means(&self, columns: usize) -> impl Iterator<Item = Vec<f32>> + '_ {
        (self.squares.chunks(columns).zip(&self.counts)).map(|(squares, &count)| match count {
            // As llama-quantize does where no token came.
            0 => vec![1.0; squares.len()],
            _ => squares.iter().map(|v| v / count as f32).collect(),
        })
    }
}

/// The inputs of a model's matrices, by name.
pub type Importances = BTreeMap<String, SquaredInputs>;

/// Measures them, in a stream that it does not change.
#[derive(Debug, Default)]
pub struct Measure {
    /// What was measured so far.
    pub of: Importances,
}

impl<E: From<EngineError>> Visitor<E> for Measure {
    fn wants(&mut self, site: &Site) -> Result<Wants, E> {
        // As llama-imatrix: output heads are rounded without importances.
        Ok(match site.layer {
            Some(_) => Wants::Inputs,
            None => Wants::Nothing,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, E> {
        let inputs = self.of.entry(site.name.clone()).or_default();
        let squares = sums_of_squares(seen.inputs(), site.columns);
        inputs.squares.extend(squares.iter().map(|&v| v as f32));
        inputs.counts.push(seen.tokens() as u64);
        Ok(None)
    }
}

/// The mean square of each of `columns` inputs, of at least one token.
pub(super) fn mean_squares(inputs: &[f32], columns: usize) -> Vec<f32> {
    let tokens = (inputs.len() / columns) as f64;
    let sums = sums_of_squares(inputs, columns).into_iter();
    sums.map(|sum| (sum / tokens) as f32).collect()
}

/// The sum of the squares of each of `columns` inputs.
fn sums_of_squares(inputs: &[f32], columns: usize) -> Vec<f64> {
    let mut squares = vec![0f64; columns];
    for row in inputs.chunks(columns) {
        for (sum, v) in squares.iter_mut().zip(row) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    squares
}
