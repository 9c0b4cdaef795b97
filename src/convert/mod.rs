//! From a plan to a converted file, back to a plain one, and the checks in
//! between.
//!
//! Data flow: [`prepare`] turns a source and what to share into a layout,
//! [`write()`] streams it to disk, [`expand()`] undoes it, [`verify()`] holds a
//! file against its digests and its source.

pub mod cut;
mod duplicates;
mod expand;
mod verify;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;

use headshare_format::alias::{Digests, Provenance, Replaced};
use headshare_format::gguf::align_up;
use headshare_format::layout::{self, PhysicalLayout, SharedRows};
use headshare_format::{FormatError, Gguf, LogicalLayout, VirtualGguf};
use headshare_stitch::FileError;

pub use duplicates::Duplicates;
pub use expand::{StreamError, expand, expand_to_scratch, expand_to_stream, source_view};
pub use verify::{Damage, Finding, Report, verify};
pub use write::{check_source, digest_of, write};

use crate::TOOL;
use crate::input::{InputError, ModelFile};
use crate::model::{AttentionMap, ModelError, RowsRange};
use crate::plan::{Plan, PlanError, Saved};

/// Stands, in a [`Plan`] that was made a moment ago, for the source's digest,
/// which [`write()`] computes; as long as any digest.
pub const UNKNOWN_DIGEST: &str =
    "blake3:0000000000000000000000000000000000000000000000000000000000000000";

/// What to share.
#[derive(Debug, Clone)]
pub enum Sharing {
    /// Exact duplicates only.
    Lossless,
    /// The units of a plan, and exact duplicates elsewhere.
    Plan(Plan),
}

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input is bad.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model has no heads that could share.
    #[error("{path}: {error}", path = .path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// Why not.
        error: ModelError,
    },
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan drops units that cannot go.
    #[error("{path}: {error}", path = .path.display())]
    Cut {
        /// The model.
        path: PathBuf,
        /// Why not.
        error: cut::CutError,
    },
    /// The plan was made for another file.
    #[error(
        "{path}: the plan was made for another file: it states {expected}, this file is {actual}",
        path = .path.display()
    )]
    WrongSource {
        /// The file.
        path: PathBuf,
        /// The digest in the plan.
        expected: String,
        /// The file's digest.
        actual: String,
    },
    /// The converted file is not what it was when it was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

/// A conversion that is ready to be written.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The physical layout.
    pub layout: PhysicalLayout,
    /// The plan, as the file will carry it.
    pub plan: Option<Plan>,
    /// The exact duplicates that are shared.
    pub duplicates: Duplicates,
    /// Size of the output in bytes.
    pub output_bytes: u64,
    /// What it saves.
    pub saved: Saved,
    /// Data of tensors that is not the source's.
    replacement: Replacement,
    data_offset: u64,
}

/// Tensors that get new data, of the same type and shape.
#[derive(Debug, Clone, Default)]
pub struct Replacement {
    /// The data, by index in the source.
    pub tensors: BTreeMap<usize, Vec<u8>>,
    /// What it was computed by, as JSON.
    pub by: String,
}

/// Plans the conversion of `source`, for pages of `page` bytes.
///
/// # Errors
/// When the source uses reserved names, or the plan does not fit it.
pub fn prepare(source: &ModelFile, sharing: Sharing, page: u64) -> Result<Prepared, ConvertError> {
    prepare_with(source, sharing, page, Replacement::default())
}

/// [`prepare`], with new data for some tensors. What these hold in the source
/// is no duplicate of anything.
///
/// # Errors
/// As `prepare`.
///
/// # Panics
/// When new data is not as long as the tensor's.
pub fn prepare_with(
    source: &ModelFile,
    sharing: Sharing,
    page: u64,
    replacement: Replacement,
) -> Result<Prepared, ConvertError> {
    let whole = |(&tensor, data): (&usize, &Vec<u8>)| {
        let len = source.gguf.tensors[tensor].byte_len();
        assert_eq!(data.len() as u64, len, "new data is as long as the old");
        RowsRange {
            tensor,
            offset: 0,
            len,
        }
    };
    let replaced: Vec<RowsRange> = replacement.tensors.iter().map(whole).collect();
    let content = || InputError::content(source.path());
    let (plan, mut shared, duplicates) = match sharing {
        Sharing::Lossless => {
            // Without a map of the heads, whole tensors still count.
            let blocks = AttentionMap::of(&source.gguf)
                .map(|map| map.head_blocks().map(|b| b.rows).collect())
                .unwrap_or_else(|_| Vec::new());
            let found = duplicates::find(source, &blocks, &replaced);
            (None, Vec::new(), found)
        }
        Sharing::Plan(mut plan) => {
            let map = attention_map(source)?;
            plan.check(&map)?;
            plan.saved = None;
            let shared = shared_by_plan(&plan, &map);
            let mut claimed: Vec<RowsRange> = plan.shared_rows(&map).map(|(to, _)| to).collect();
            claimed.extend(&replaced);
            let blocks: Vec<RowsRange> = map.head_blocks().map(|b| b.rows).collect();
            let found = duplicates::find(source, &blocks, &claimed);
            (Some(plan), shared, found)
        }
    };
    shared.extend(duplicates.shared.iter().copied());
    let provenance = Provenance {
        tool: TOOL.to_owned(),
        lossless: replaced.is_empty() && plan.as_ref().is_none_or(|p| p.aliases.is_empty()),
        source_digest: UNKNOWN_DIGEST.to_owned(),
        plan: plan.as_ref().map(Plan::to_json),
        replaced: (!replaced.is_empty()).then(|| Replaced {
            by: replacement.by.clone(),
            tensors: replaced.iter().map(|r| r.tensor as u32).collect(),
        }),
    };
    let layout =
        layout::plan(&source.gguf, &source.file, &shared, page, provenance).map_err(content())?;

    let header = layout
        .table
        .encode(&source.gguf, &layout.infos(), page, Digests::Unknown);
    let data_offset = align_up(header.len() as u64, page)
        .ok_or_else(|| content()(FormatError::new("output", "its size overflows")))?;
    let output_bytes = data_offset + layout.data_len();
    let physical = Gguf::parse_header(&header, output_bytes).map_err(content())?;
    let view =
        VirtualGguf::new(&physical, &layout.table, LogicalLayout::Pages(page)).map_err(content())?;
    Ok(Prepared {
        saved: Saved {
            file_bytes: source.len() as i64 - output_bytes as i64,
            resident_bytes: view.resident_saving(page),
        },
        layout,
        plan,
        duplicates,
        output_bytes,
        replacement,
        data_offset,
    })
}

/// Where the heads of `source` are.
///
/// # Errors
/// When the architecture, a tensor or a layer does not allow sharing heads.
pub fn attention_map(source: &ModelFile) -> Result<AttentionMap, ConvertError> {
    AttentionMap::of(&source.gguf).map_err(|error| ConvertError::Model {
        path: source.path().to_owned(),
        error,
    })
}

fn shared_by_plan(plan: &Plan, map: &AttentionMap) -> Vec<SharedRows> {
    plan.shared_rows(map)
        .map(|(alias, donor)| SharedRows {
            alias: alias.tensor,
            alias_offset: alias.offset,
            donor: donor.tensor,
            donor_offset: donor.offset,
            len: alias.len,
        })
        .collect()
}
