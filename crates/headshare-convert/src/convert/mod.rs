//! From a plan to a converted file, back to a plain one, and the checks in
//! between.
//!
//! Data flow: a plan makes a [`variant`] of a source, [`prepare`] decides how it
//! is laid out and what of it is stored once, [`write()`] streams it to disk,
//! [`expand()`] undoes it, [`verify()`] holds a file against its digests and its
//! source. [`foresee()`] says before fitting what a file will take.

mod check;
mod damage;
mod digest;
mod duplicates;
mod error;
mod expand;
mod foresee;
mod heads;
mod record;
pub mod variant;
mod verify;
mod write;

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use headshare_format::alias::{Digests, Provenance, Replaced};
use headshare_format::layout::{self, PhysicalLayout, SharedRows};
use headshare_format::{FormatError, Gguf, LogicalLayout, PageSize, VirtualGguf};

pub use check::{check, check_source};
pub use damage::{Damage, Finding};
pub use digest::UNKNOWN_DIGEST;
pub use duplicates::Duplicates;
pub(crate) use duplicates::equal_tensors;
pub use error::ConvertError;
pub use expand::{StreamError, expand, expand_to_scratch, expand_to_stream, source_view};
pub use foresee::{Foreseen, foresee};
pub use heads::attention_map;
pub use record::FittedBy;
pub use verify::{Verification, plan_of, verify, verify_variant};
pub use write::{write, write_plain, write_plain_to_scratch, write_to_scratch};

use crate::TOOL;
use crate::input::{InputError, ModelFile};
use crate::model::{AttentionMap, RowsRange};
use crate::plan::{Plan, Saved};
use record::{MadeBy, pad};
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
    /// What a plain file of other shapes or types says about how it was made.
    made_by: Option<MadeBy>,
}

/// A converted file.
#[derive(Debug)]
pub struct Headshare {
    /// Where what is stored, and the alias table.
    pub layout: PhysicalLayout,
    /// Where the data begin.
    pub data_offset: u64,
    /// Bytes that the recorded plan takes, with spaces after it.
    plan_len: usize,
}

/// Tensors that get new data, of the type and shape that a plan gives them.
#[derive(Debug, Clone, Default)]
pub struct Fitted {
    /// The data, by the names that the tensors have in the variant.
    pub tensors: BTreeMap<String, Vec<u8>>,
    /// Which of their rows are equal in the source, and are so in these data: beside
    /// what a plan shares, new data repeat nothing else.
    pub duplicates: Duplicates,
    /// What it was computed by.
    pub by: FittedBy,
    /// What of this was not known before.
    pub room: Room,
}

/// What fitting may come to at most: the header is as long as for that, so that
/// its size is known before.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// The tensors that may get new data, by the names that they have in the
    /// variant.
    pub tensors: BTreeSet<String>,
    /// Those of them that get new data in any case.
    pub certain: BTreeSet<String>,
    /// What says of itself how it was computed, with the longest records.
    pub by: FittedBy,
}

/// Plans the conversion of `source` by `plan`, for pages of `page` bytes, with
/// `fitted` data in place of the source's; without a plan only what is byte-equal
/// is shared, and with one whatever is, unless it says otherwise.
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
    prepare_for(source, plan, fitted, page, &Unknown::default())
}

/// What is not known of a conversion before its tensors are fitted.
#[derive(Default)]
struct Unknown {
    /// The tensors that will get new data, by the names that they have in the
    /// variant.
    data: BTreeSet<String>,
    /// Whether there is an alias table in any case.
    has_table: bool,
}

/// What is equal by itself makes a headshare file of a changed model where it is this part of
/// it: less is not worth that other programs cannot read the file as it is.
const WORTH: u64 = 100;

/// [`prepare`] before all is known.
fn prepare_for<'a>(
    source: &'a ModelFile,
    plan: Option<Plan>,
    mut fitted: Fitted,
    page: PageSize,
    unknown: &Unknown,
) -> Result<Prepared<'a>, ConvertError> {
    let tensors = std::mem::take(&mut fitted.tensors);
    let as_plain = !unknown.has_table;
    let Some(mut plan) = plan else {
        let mut variant = Variant::unchanged(source);
        variant.fill(tensors);
        variant.wait_for(unknown.data.iter());
        return lay_out(variant, None, Vec::new(), fitted, page, as_plain);
    };
    plan.expected = None;
    if plan.is_about_units() {
        check::check_units(source, &plan)?;
    }
    let made_by = MadeBy::new(&plan, &fitted.by, &fitted.room.by, Vec::new(), &[]);
    // New data alone make a plain file, too, which says how it was made.
    let is_own = plan.reshapes() || as_plain && plan.edits.is_empty() && !tensors.is_empty();
    let made_by = is_own.then(|| made_by.unknown());
    let mut variant = Variant::new(source, &plan, made_by)?;
    variant.fill(tensors);
    variant.wait_for(unknown.data.iter());
    let shared = planned_rows(&variant, &plan)?;
    lay_out(variant, Some(plan), shared, fitted, page, as_plain)
}

impl<'a> Prepared<'a> {
    /// The model as it is read once it is written: what a plan shares is its donors'. (What is
    /// equal by itself needs nothing.)
    ///
    /// # Errors
    /// When weights cannot be encoded.
    pub fn into_read(self) -> Result<Variant<'a>, ConvertError> {
        let Self {
            mut variant, plan, ..
        } = self;
        let shared = match &plan {
            Some(plan) => planned_rows(&variant, plan)?,
            None => Vec::new(),
        };
        let mut filled: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for s in &shared {
            let rows = variant.tensor_data(s.donor)?[s.donor_range()].to_vec();
            let name = &variant.gguf().tensors()[s.alias].name;
            let own = match filled.entry(name.clone()) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(free) => free.insert(variant.tensor_data(s.alias)?.into_owned()),
            };
            own[s.alias_range()].copy_from_slice(&rows);
        }
        variant.fill(filled);
        Ok(variant)
    }
}

/// Decides how `variant` is laid out, which has its `fitted` tensors, and in which
/// `shared` rows are others'. What shares nothing becomes a plain file where it may,
/// `as_plain`.
fn lay_out<'a>(
    mut variant: Variant<'a>,
    plan: Option<Plan>,
    mut shared: Vec<SharedRows>,
    fitted: Fitted,
    page: PageSize,
    as_plain: bool,
) -> Result<Prepared<'a>, ConvertError> {
    let source = variant.source;
    let content = || InputError::content(source.path());
    let lossless = shared.is_empty() && variant.is_as_source() && variant.computed().is_empty();
    // What is equal among the new data is known already.
    let others = match plan.as_ref().is_some_and(|plan| plan.keep_duplicates) {
        true => Duplicates::default(),
        false => duplicates_beside(&variant, &shared, variant.new_rows()),
    };
    let mut duplicates = fitted.duplicates.and(others);
    let (by, room) = (fitted.by, fitted.room);
    let may_be_plain = as_plain && shared.is_empty() && !variant.is_as_source();
    if may_be_plain && duplicates.bytes < variant.tensor_bytes() / WORTH {
        duplicates = Duplicates::default();
    }
    shared.extend(duplicates.shared.iter().copied());
    let smaller = source.tensor_bytes().saturating_sub(variant.tensor_bytes());
    if as_plain && shared.is_empty() && !variant.is_as_source() {
        // A plain file has no other digests.
        let made_by = plan.as_ref().map(|plan| {
            let name = |tensor: &usize| variant.gguf().tensors()[*tensor].name.clone();
            let tensors: Vec<String> = variant.computed().iter().map(name).collect();
            let most: Vec<String> = room.tensors(&variant).iter().map(name).collect();
            MadeBy::new(plan, &by, &room.by, tensors, &most)
        });
        if let Some(made_by) = &made_by {
            variant.say(&made_by.unknown()).map_err(content())?;
        }
        let output_bytes = variant.len();
        return Ok(Prepared {
            made_by,
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
        by: by.json(),
        tensors: computed.into_iter().map(|tensor| tensor as u32).collect(),
    });
    let gguf = variant.gguf();
    // Between the tensors of a variant nothing lies that its source has not.
    let is_zero = |range: std::ops::Range<u64>| {
        !variant.is_as_source() || source.bytes(range).iter().all(|&b| b == 0)
    };
    let mut layout = layout::plan(gguf, &is_zero, &shared, page, provenance).map_err(content())?;
    let encoded = |layout: &PhysicalLayout| {
        let table = &layout.table;
        table.encode(gguf, &layout.infos(), page, Digests::Unknown)
    };
    let mut plan_len = 0;
    if let Some(most) = room.most(&variant, &layout) {
        let spaces = encoded(&most).len().saturating_sub(encoded(&layout).len());
        if let Some(plan) = &mut layout.table.provenance.plan {
            plan_len = plan.len() + spaces;
            pad(plan, plan_len);
        }
    }
    let header = encoded(&layout);
    let data_offset = page
        .align_up(header.len() as u64)
        .ok_or_else(|| content()(FormatError::unsupported("output", "its size overflows")))?;
    let output_bytes = data_offset + layout.data_len();
    let physical = Gguf::parse_header(&header, output_bytes).map_err(content())?;
    let view =
        VirtualGguf::new(&physical, &layout.table, LogicalLayout::Pages(page)).map_err(content())?;
    Ok(Prepared {
        made_by: None,
        saved: Saved {
            file_bytes: source.len() as i64 - output_bytes as i64,
            resident_bytes: smaller + view.resident_saving(page),
        },
        variant,
        plan,
        headshare: Some(Headshare {
            layout,
            data_offset,
            plan_len,
        }),
        duplicates,
        output_bytes,
    })
}

impl Room {
    /// `layout` with all the tensors and the record that there is room for;
    /// `None` where nothing was to be fitted.
    fn most(&self, variant: &Variant<'_>, layout: &PhysicalLayout) -> Option<PhysicalLayout> {
        if self.tensors.is_empty() {
            return None;
        }
        let tensors = self.tensors(variant);
        let mut most = layout.clone();
        most.table.provenance.replaced = Some(Replaced {
            by: self.by.json(),
            tensors: tensors.into_iter().map(|tensor| tensor as u32).collect(),
        });
        Some(most)
    }

    /// The tensors of `variant` that are neither rows nor columns of its source, if
    /// all there is room for are not; ascending.
    fn tensors(&self, variant: &Variant<'_>) -> Vec<usize> {
        let mut tensors: Vec<usize> = (self.tensors.iter())
            .filter_map(|name| variant.gguf().tensor_index(name))
            .chain(variant.computed())
            .collect();
        tensors.sort_unstable();
        tensors.dedup();
        tensors
    }
}

/// What `variant` has twice, beside rows that are `shared` for another reason and
/// `others` that are not looked at.
pub(crate) fn duplicates_beside(
    variant: &Variant<'_>,
    shared: &[SharedRows],
    others: impl Iterator<Item = RowsRange>,
) -> Duplicates {
    // Without a map of the heads, whole tensors still count.
    let map = AttentionMap::of(variant.gguf()).ok();
    let blocks: Vec<RowsRange> =
        map.map_or_else(Vec::new, |map| map.head_blocks().map(|b| b.rows).collect());
    let claimed: Vec<RowsRange> = shared.iter().map(duplicates::alias).chain(others).collect();
    duplicates::find(variant, &blocks, &claimed)
}

/// The rows that `plan` shares in the `variant` that it makes.
///
/// # Errors
/// When that has no heads.
pub(crate) fn planned_rows(
    variant: &Variant<'_>,
    plan: &Plan,
) -> Result<Vec<SharedRows>, ConvertError> {
    if plan.shares().next().is_none() {
        return Ok(Vec::new());
    }
    let map = AttentionMap::of(variant.gguf());
    let map = map.map_err(|error| ConvertError::model(variant.source, error))?;
    Ok(shared_by_plan(&plan.renumbered(), &map))
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
