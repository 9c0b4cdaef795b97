//! Importances of columns, as llama-imatrix measures them: how large the inputs of
//! each matrix are in the original model. ggml's encoders weigh errors by them.

use std::collections::BTreeMap;

use headshare_runtime::quants::{self, QuantError};
use rayon::prelude::*;

use crate::convert::variant::Variant;
use crate::engine::{EngineError, Seen, Site, Visitor, Wants};

/// The inputs of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// Sums of the squares of each column's inputs; of experts one after the other.
    pub squares: Vec<f32>,
    /// Tokens that went in; of each expert.
    pub counts: Vec<u64>,
}

impl Inputs {
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
pub type Importances = BTreeMap<String, Inputs>;

/// Measures them, in a stream that it does not change.
#[derive(Debug, Default)]
pub struct Measure {
    /// What was measured so far.
    pub of: Importances,
}

impl<E: From<EngineError>> Visitor<E> for Measure {
    fn wants(&mut self, _: &Site) -> Result<Wants, E> {
        Ok(Wants::Inputs)
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, E> {
        let inputs = self.of.entry(site.name.clone()).or_default();
        let mut squares = vec![0f64; site.columns];
        for row in seen.inputs().chunks(site.columns) {
            for (sum, v) in squares.iter_mut().zip(row) {
                *sum += f64::from(*v) * f64::from(*v);
            }
        }
        inputs.squares.extend(squares.iter().map(|&v| v as f32));
        inputs.counts.push(seen.tokens() as u64);
        Ok(None)
    }
}

/// The tensor `name` of `target` as ggml's encoder makes it, with the importances of
/// its columns where they are known.
///
/// # Errors
/// When ggml refuses.
pub fn encoded(target: &Variant<'_>, name: &str, of: &Importances) -> Result<Vec<u8>, QuantError> {
    let Some(index) = target.gguf().tensor_index(name) else {
        return Ok(Vec::new());
    };
    let info = &target.gguf().tensors()[index];
    let columns = info.row_elems() as usize;
    let weights = target.source_weights(index)?;
    let means: Vec<Vec<f32>> =
        (of.get(name)).map_or_else(Vec::new, |inputs| inputs.means(columns).collect());
    let even = vec![1.0; columns];
    let needed = quants::needs_importance(info.ggml_type.id()).then_some(&even[..]);
    let each = weights.len() / means.len().max(1);
    let mut bytes = Vec::new();
    for (expert, weights) in weights.chunks(each).enumerate() {
        let importance = means.get(expert).map(|m| &m[..]).or(needed);
        let parts: Vec<Vec<u8>> = (weights.par_chunks(columns * ROWS))
            .map(|rows| quants::quantize_rows(info.ggml_type.id(), rows, columns, importance))
            .collect::<Result<_, _>>()?;
        bytes.extend(parts.concat());
    }
    Ok(bytes)
}

/// Rows that a thread encodes at a time.
const ROWS: usize = 64;
