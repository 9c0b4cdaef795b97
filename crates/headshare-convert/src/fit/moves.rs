//! Which types tensors could have, and what that saves.

use std::collections::BTreeMap;

use headshare_format::{GgmlType, TensorInfo};
use headshare_runtime::quants::needs_importance;

use super::cuts::{Part, all_that_can_go};
use super::error::FitError;
use crate::convert::variant::{is_encoded, left_alone};
use crate::input::ModelFile;

/// Types that ggml encodes without an importance matrix, and that are fitted with feedback
/// here. Others are left out unless they are asked for: they are only rounded, or no smaller.
pub const DEFAULT_TYPES: [&str; 16] = [
    "bf16", "f16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "iq4_nl",
    "iq4_xs", "mxfp4", "q3_K", "q2_K", "q2_0",
];

/// Types whose errors are large enough to be measured on the running model, and small enough
/// that the divergence grows with their square still: those that show most of it first.
const PROBES: [&str; 10] = [
    "q4_0", "iq4_nl", "q4_1", "q4_K", "iq4_xs", "mxfp4", "q5_0", "q5_1", "q5_K", "q3_K",
];

/// A tensor that could have other types, or that loses columns with units or channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movable {
    /// Its name.
    pub name: String,
    /// The type that it has.
    pub has: GgmlType,
    /// Bytes that it takes in the file, as it is.
    pub bytes: u64,
    /// What it could be, largest first: smaller types, and its own where blocks of it are made
    /// anew because channels go.
    pub moves: Vec<Move>,
    /// Other types that it is rounded to, only to see what an error of it does: where no move
    /// shows that well.
    pub probes: Vec<GgmlType>,
}

impl Movable {
    /// The types that it is encoded at to see what that changes: those of its moves, then its
    /// probes.
    pub(super) fn tried(&self) -> impl Iterator<Item = GgmlType> {
        let moves = self.moves.iter().map(|m| m.to);
        moves.chain(self.probes.iter().copied())
    }
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

/// Every tensor of `source` that could be smaller at one of these `types`, and those from which
/// columns can go.
///
/// # Errors
/// When there is none.
pub fn movable(source: &ModelFile, types: &[GgmlType]) -> Result<Vec<Movable>, FitError> {
    let cuts = all_that_can_go(source);
    let lose_columns: BTreeMap<String, Part> =
        (cuts.iter().map(|cut| (cut.tensor(), cut.part))).collect();
    let tensors = source.gguf.tensors().iter();
    let matrices = tensors.filter(|info| left_alone(info).is_none());
    let all = matrices.filter_map(|info| {
        let cut = lose_columns.get(&info.name).copied();
        let moves = moves_of(info, cut, types, source);
        (!moves.is_empty() || cut.is_some()).then(|| Movable {
            name: info.name.clone(),
            has: info.ggml_type,
            bytes: in_file(info.byte_len(), source),
            probes: probes_of(info, &moves),
            moves,
        })
    });
    let all: Vec<Movable> = all.collect();
    match all.is_empty() {
        true => Err(FitError::NoMoves),
        false => Ok(all),
    }
}

/// What a tensor of which `cut` takes columns could be.
fn moves_of(
    info: &TensorInfo,
    cut: Option<Part>,
    types: &[GgmlType],
    source: &ModelFile,
) -> Vec<Move> {
    let bytes = in_file(info.byte_len(), source);
    let has = info.ggml_type;
    // Units are whole blocks, channels are not.
    let is_made_anew = cut == Some(Part::FeedForward)
        && has.block_elems() > 1
        && is_encoded(has)
        && !needs_importance(has.id());
    let own = is_made_anew.then_some(has);
    let others = types.iter().copied().filter(|to| Some(*to) != own);
    let all = own.into_iter().chain(others).filter_map(|to| {
        let row = to.row_bytes(info.row_elems())?;
        let to_bytes = in_file(row * info.rows(), source);
        (to_bytes < bytes || Some(to) == own).then_some(Move {
            to,
            bytes: to_bytes,
        })
    });
    let mut all: Vec<Move> = all.collect();
    all.sort_by_key(|m| std::cmp::Reverse(m.bytes));
    all
}

/// The types that show what an error of a tensor does, where none of its `moves` does so: two,
/// since its numbers may lie on the grid of one.
fn probes_of(info: &TensorInfo, moves: &[Move]) -> Vec<GgmlType> {
    let fits = |to: &GgmlType| *to != info.ggml_type && to.row_bytes(info.row_elems()).is_some();
    let probes = PROBES.into_iter().filter_map(GgmlType::named).filter(fits);
    let probes: Vec<GgmlType> = probes.collect();
    match moves.iter().any(|m| probes.contains(&m.to)) {
        true => Vec::new(),
        false => probes.into_iter().take(2).collect(),
    }
}

/// What data of so many bytes take in the file.
pub(super) fn in_file(bytes: u64, source: &ModelFile) -> u64 {
    bytes.next_multiple_of(source.gguf.alignment().max(1))
}
