//! Which types tensors could have, what that saves, and the error that it makes.

use headshare_format::{GgmlType, TensorInfo};
use headshare_runtime::quants::{dequantize_row, quantize_rows, type_info};
use rayon::prelude::*;

use super::error::FitError;
use crate::convert::variant::is_left_alone;
use crate::input::ModelFile;

/// Types that ggml multiplies with fast on common processors, and encodes without an
/// importance matrix. Those of less than 4 bits but K-types, and IQ4_XS, are left out
/// unless they are asked for: ggml is slow with them, or rounds them badly.
pub const DEFAULT_TYPES: [&str; 14] = [
    "bf16", "f16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "iq4_nl",
    "mxfp4", "q3_K", "q2_K",
];

/// Rows of a tensor that errors are computed on, at most: every so many.
const SAMPLED_ROWS: usize = 96;

/// A tensor that could have other types.
#[derive(Debug, Clone, PartialEq)]
pub struct Movable {
    /// Its name.
    pub name: String,
    /// The type that it has.
    pub has: GgmlType,
    /// Bytes that it takes in the file, as it is.
    pub bytes: u64,
    /// What it could be, largest first.
    pub moves: Vec<Move>,
}

/// A type that a tensor could have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// The type.
    pub to: GgmlType,
    /// Bytes that the tensor takes then, with what follows it up to the next tensor.
    pub bytes: u64,
    /// The mean square of what plain rounding changes, relative to the weights' own.
    pub error: f64,
}

/// The types called `names`, which ggml encodes by itself; the default's without names.
///
/// # Errors
/// Names the one that there is not.
pub fn types(names: Option<&[String]>) -> Result<Vec<GgmlType>, FitError> {
    let encodes = |t: &GgmlType| {
        let bytes = quantize_rows(t.id(), &[0.0; 256], 256, None);
        type_info(t.id()).is_some_and(|info| info.has_to_float) && bytes.is_ok()
    };
    let find = |name: &str| GgmlType::named(name).filter(encodes);
    let Some(names) = names else {
        return Ok(DEFAULT_TYPES.into_iter().filter_map(find).collect());
    };
    let named = names.iter().map(|name| {
        find(name).ok_or_else(|| FitError::UnknownType {
            name: name.clone(),
            types: GgmlType::all()
                .filter(encodes)
                .map(|t| t.name())
                .collect::<Vec<_>>()
                .join(", "),
        })
    });
    named.collect()
}

/// Every tensor of `source` that could be smaller at one of these `types`.
///
/// # Errors
/// When weights cannot be read or encoded; names the tensor.
pub fn movable(source: &ModelFile, types: &[GgmlType]) -> Result<Vec<Movable>, FitError> {
    let tensors = source.gguf.tensors().iter();
    let matrices = tensors.filter(|info| {
        info.dims.len() > 1
            && info.rows() > 1
            && info.name.ends_with(".weight")
            && !is_left_alone(&info.name)
            && type_info(info.ggml_type.id()).is_some_and(|t| t.has_to_float)
    });
    let all = matrices.map(|info| {
        let bytes = in_file(info.byte_len(), source);
        let mut moves: Vec<Move> = Vec::new();
        let sample = sample(source, info)?;
        for &to in types {
            let (elems, rows) = (info.row_elems(), info.rows());
            let Some(row) = to.row_bytes(elems) else {
                continue;
            };
            let to_bytes = in_file(row * rows, source);
            if to_bytes < bytes {
                let error =
                    rounded(&sample, elems as usize, to).map_err(|error| FitError::Weights {
                        tensor: info.name.clone(),
                        error,
                    })?;
                moves.push(Move {
                    to,
                    bytes: to_bytes,
                    error,
                });
            }
        }
        moves.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.error.total_cmp(&b.error)));
        Ok(Movable {
            name: info.name.clone(),
            has: info.ggml_type,
            bytes,
            moves,
        })
    });
    let all: Vec<Movable> = all.collect::<Result<_, FitError>>()?;
    let all: Vec<Movable> = all.into_iter().filter(|m| !m.moves.is_empty()).collect();
    match all.is_empty() {
        true => Err(FitError::NoMoves),
        false => Ok(all),
    }
}

/// What data of so many bytes take in the file.
fn in_file(bytes: u64, source: &ModelFile) -> u64 {
    bytes.next_multiple_of(source.gguf.alignment().max(1))
}

/// Some rows of a tensor, evenly spread.
fn sample(source: &ModelFile, info: &TensorInfo) -> Result<Vec<f32>, FitError> {
    let data = source.bytes(source.gguf.data_range(info));
    let rows: Vec<&[u8]> = data.chunks_exact(info.row_bytes() as usize).collect();
    let every = rows.len().div_ceil(SAMPLED_ROWS).max(1);
    let picked: Vec<&&[u8]> = rows.iter().step_by(every).collect();
    let elems = info.row_elems() as usize;
    let mut out = vec![0.0; picked.len() * elems];
    let into = picked.par_iter().zip(out.par_chunks_mut(elems));
    into.try_for_each(|(row, out)| dequantize_row(info.ggml_type.id(), row, out))
        .map_err(|error| FitError::Weights {
            tensor: info.name.clone(),
            error,
        })?;
    Ok(out)
}

/// The mean square of what rounding of `weights` to type `to` changes, relative to theirs.
fn rounded(
    weights: &[f32],
    elems: usize,
    to: GgmlType,
) -> Result<f64, headshare_runtime::quants::QuantError> {
    let sums: Vec<(f64, f64)> = weights
        .par_chunks(16 * elems)
        .map(|rows| {
            let bytes = quantize_rows(to.id(), rows, elems, None)?;
            let mut back = vec![0.0; rows.len()];
            dequantize_row(to.id(), &bytes, &mut back)?;
            let both = rows.iter().zip(&back);
            let off: f64 = both.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let own: f64 = rows.iter().map(|a| f64::from(*a).powi(2)).sum();
            Ok((off, own))
        })
        .collect::<Result<_, _>>()?;
    let (off, own) = sums
        .iter()
        .fold((0.0, 0.0), |(a, b), (off, own)| (a + off, b + own));
    Ok(if own > 0.0 { off / own } else { 0.0 })
}
