//! Which types tensors could have, and what that saves.

use headshare_format::GgmlType;
use headshare_runtime::quants::needs_importance;

use super::error::FitError;
use crate::convert::variant::{is_encoded, left_alone};
use crate::input::ModelFile;

/// Types that ggml encodes without an importance matrix, and that are fitted with feedback
/// here. Others are left out unless they are asked for: they are only rounded, or no smaller.
pub const DEFAULT_TYPES: [&str; 15] = [
    "bf16", "f16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "iq4_nl",
    "mxfp4", "q3_K", "q2_K", "q2_0",
];

/// A tensor that could have other types.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The type.
    pub to: GgmlType,
    /// Bytes that the tensor takes then, with what follows it up to the next tensor.
    pub bytes: u64,
}

/// The types called `names`, which ggml encodes by itself; the default's without names.
///
/// # Errors
/// Names the one that there is not.
pub fn types(names: Option<&[String]>) -> Result<Vec<GgmlType>, FitError> {
    let encodes = |t: &GgmlType| is_encoded(*t) && !needs_importance(t.id());
    let find = |name: &str| GgmlType::named(name).filter(encodes);
    let Some(names) = names else {
        return Ok(DEFAULT_TYPES.into_iter().filter_map(find).collect());
    };
    let named = names.iter().map(|name| name.trim()).map(|name| {
        find(name).ok_or_else(|| FitError::UnknownType {
            name: name.to_owned(),
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
/// When there is none.
pub fn movable(source: &ModelFile, types: &[GgmlType]) -> Result<Vec<Movable>, FitError> {
    let tensors = source.gguf.tensors().iter();
    let matrices = tensors.filter(|info| left_alone(info).is_none());
    let all = matrices.map(|info| {
        let bytes = in_file(info.byte_len(), source);
        let mut moves: Vec<Move> = Vec::new();
        for &to in types {
            let (elems, rows) = (info.row_elems(), info.rows());
            let Some(row) = to.row_bytes(elems) else {
                continue;
            };
            let to_bytes = in_file(row * rows, source);
            if to_bytes < bytes {
                moves.push(Move {
                    to,
                    bytes: to_bytes,
                });
            }
        }
        moves.sort_by_key(|m| std::cmp::Reverse(m.bytes));
        Movable {
            name: info.name.clone(),
            has: info.ggml_type,
            bytes,
            moves,
        }
    });
    let all: Vec<Movable> = all.filter(|m: &Movable| !m.moves.is_empty()).collect();
    match all.is_empty() {
        true => Err(FitError::NoMoves),
        false => Ok(all),
    }
}

/// What data of so many bytes take in the file.
pub(super) fn in_file(bytes: u64, source: &ModelFile) -> u64 {
    bytes.next_multiple_of(source.gguf.alignment().max(1))
}
