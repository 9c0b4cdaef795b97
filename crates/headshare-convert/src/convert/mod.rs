//! From a plan to a converted file, back to a plain one, and the checks in
//! between.
//!
//! Data flow: a plan makes a [`variant`] of a source, [`prepare`] decides how it
//! is laid out and what of it is stored once, [`write()`] streams it to disk,
//! [`expand()`] undoes it, [`verify()`] holds a file against its digests and its
//! source.

mod damage;
mod digest;
mod duplicates;
mod error;
mod expand;
pub mod variant;
mod verify;
mod write;

use std::collections::BTreeMap;

use headshare_format::alias::{Digests, Provenance, Replaced};
use headshare_format::layout::{self, PhysicalLayout, SharedRows};
use headshare_format::{FormatError, Gguf, LogicalLayout, PageSize, VirtualGguf};
use serde::Serialize;

pub use damage::{Damage, Finding};
pub use digest::{UNKNOWN_DIGEST, digest_of};
pub use duplicates::Duplicates;
pub use error::ConvertError;
pub use expand::{StreamError, expand, expand_to_scratch, expand_to_stream, source_view};
pub use verify::{Verification, plan_of, verify};
pub use write::{check_source, write, write_plain};

use crate::TOOL;
use crate::input::{InputError, ModelFile};
use crate::model::{AttentionMap, RowsRange};
use crate::plan::{Plan, Saved};
use variant::Variant;

/// A conversion that is ready to be written.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// The model that it holds.
    pub variant: Variant<'a>,
    /// The plan, as the file will carry it.
    pub plan: Option<Plan>,
    /// How it is laid out where something is shared; else it is a plain GGUF.
    pub headshare: Option<Headshare>,
    /// The exact duplicates that are shared.
    pub duplicates: Duplicates,
    /// Size of the output in bytes.
    pub output_bytes: u64,
    /// What it saves.
    pub saved: Saved,
}

/// A converted file.
#[derive(Debug)]
pub struct Headshare {
    /// Where what is stored, and the alias table.
    pub layout: PhysicalLayout,
    /// Where the data begin.
    pub data_offset: u64,
}

/// Tensors that get new data, of the type and shape that a plan gives them.
#[derive(Debug, Clone, Default)]
pub struct Fitted {
    /// The data, by index in the source.
    pub tensors: BTreeMap<usize, Vec<u8>>,
    /// What it was computed by, as JSON.
    pub by: String,
}

/// Plans the conversion of `source` by `plan`, for pages of `page` bytes, with
/// `fitted` data in place of the source's; without a plan only what is byte-equal
/// is shared.
///
/// The plan of a model that gets other shapes or types states the digest of its
/// source; any other may leave it to [`write()`], as [`UNKNOWN_DIGEST`].
///
/// # Errors
/// When the source uses reserved names, or the plan does not fit it.
pub fn prepare(
    source: &ModelFile,
    plan: Option<Plan>,
    fitted: Fitted,
    page: PageSize,
) -> Result<Prepared<'_>, ConvertError> {
    let Fitted { tensors, by } = fitted;
    let Some(mut plan) = plan else {
        let mut variant = Variant::unchanged(source);
        variant.fill(tensors);
        // Without a map of the heads, whole tensors still count.
        let map = AttentionMap::of(variant.gguf()).ok();
        return lay_out(variant, None, Vec::new(), map.as_ref(), by, page);
    };
    plan.expected = None;
    if plan.is_about_units() {
        plan.check(&attention_map(source)?)?;
    }
    let made_by = plan.reshapes().then(|| made_by(&plan, &by));
    let mut variant = Variant::new(source, &plan, made_by)?;
    variant.fill(tensors);
    let map = AttentionMap::of(variant.gguf());
    let shared = if plan.shares().next().is_some() {
        let map = (map.as_ref()).map_err(|e| ConvertError::model(source, e.clone()))?;
        shared_by_plan(&plan.renumbered(), map)
    } else {
        Vec::new()
    };
    lay_out(variant, Some(plan), shared, map.ok().as_ref(), by, page)
}

/// What a variant says about how it was made, under [`variant::MADE_BY`].
fn made_by(plan: &Plan, by: &str) -> String {
    #[derive(Serialize)]
    struct MadeBy<'a> {
        tool: &'a str,
        plan: &'a Plan,
        repair: Option<serde_json::Value>,
    }
    let repair = (!by.is_empty())
        .then(|| serde_json::from_str(by).ok())
        .flatten();
    let all = MadeBy {
        tool: TOOL,
        plan,
        repair,
    };
    serde_json::to_string(&all).expect("a plan is plain data")
}

/// Decides how `variant` is laid out, in which `shared` rows are others' and
/// `map` says where the heads are.
fn lay_out<'a>(
    variant: Variant<'a>,
    plan: Option<Plan>,
    mut shared: Vec<SharedRows>,
    map: Option<&AttentionMap>,
    by: String,
    page: PageSize,
) -> Result<Prepared<'a>, ConvertError> {
    let source = variant.source;
    let content = || InputError::content(source.path());
    let lossless = shared.is_empty() && variant.is_as_source() && variant.computed().is_empty();
    let duplicates = {
        let blocks: Vec<RowsRange> =
            map.map_or_else(Vec::new, |map| map.head_blocks().map(|b| b.rows).collect());
        let mut claimed: Vec<RowsRange> = shared.iter().map(duplicates::alias).collect();
        claimed.extend(variant.new_rows());
        duplicates::find(&variant, &blocks, &claimed)
    };
    shared.extend(duplicates.shared.iter().copied());
    let smaller = source.tensor_bytes().saturating_sub(variant.tensor_bytes());
    if shared.is_empty() && !variant.is_as_source() {
        let output_bytes = variant.len();
        return Ok(Prepared {
            saved: Saved {
                file_bytes: source.len() as i64 - output_bytes as i64,
                resident_bytes: smaller,
            },
            variant,
            plan,
            headshare: None,
            duplicates,
            output_bytes,
        });
    }
    let computed = variant.computed();
    let mut provenance = Provenance::lossless(TOOL, UNKNOWN_DIGEST);
    provenance.lossless = lossless;
    provenance.plan = plan.as_ref().map(Plan::to_json);
    provenance.replaced = (!computed.is_empty()).then(|| Replaced {
        by: if by.is_empty() {
            ENCODED.to_owned()
        } else {
            by
        },
        tensors: computed.into_iter().map(|tensor| tensor as u32).collect(),
    });
    let gguf = variant.gguf();
    // Between the tensors of a variant nothing lies that its source has not.
    let is_zero = |range: std::ops::Range<u64>| {
        !variant.is_as_source() || source.bytes(range).iter().all(|&b| b == 0)
    };
    let layout = layout::plan(gguf, &is_zero, &shared, page, provenance).map_err(content())?;
    let header = layout
        .table
        .encode(gguf, &layout.infos(), page, Digests::Unknown);
    let data_offset = page
        .align_up(header.len() as u64)
        .ok_or_else(|| content()(FormatError::unsupported("output", "its size overflows")))?;
    let output_bytes = data_offset + layout.data_len();
    let physical = Gguf::parse_header(&header, output_bytes).map_err(content())?;
    let view =
        VirtualGguf::new(&physical, &layout.table, LogicalLayout::Pages(page)).map_err(content())?;
    Ok(Prepared {
        saved: Saved {
            file_bytes: source.len() as i64 - output_bytes as i64,
            resident_bytes: smaller + view.resident_saving(page),
        },
        variant,
        plan,
        headshare: Some(Headshare {
            layout,
            data_offset,
        }),
        duplicates,
        output_bytes,
    })
}

/// What replaced tensors were computed by, where nothing was fitted.
const ENCODED: &str = "{\"quantized\":\"ggml\"}";

/// Where the heads of `source` are.
///
/// # Errors
/// When the architecture, a tensor or a layer does not allow sharing heads.
pub fn attention_map(source: &ModelFile) -> Result<AttentionMap, ConvertError> {
    AttentionMap::of(&source.gguf).map_err(|error| ConvertError::model(source, error))
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
