//! Which types tensors get, as edits of the plan, and which rows they have in common.

use std::collections::{BTreeMap, BTreeSet};

use headshare_format::layout::SharedRows;
use headshare_format::{GgmlType, Gguf};
use headshare_runtime::mixture;

use super::error::QuantizerError;
use super::importance::Importances;
use super::types::{Assigned, Wanted};
use crate::convert::variant::{EMBEDDING, HEAD, Variant};
use crate::convert::{ConvertError, Duplicates, duplicates_beside, equal_tensors, planned_rows};
use crate::engine::{self, Block, Shared};
use crate::input::ModelFile;
use crate::model::RowsRange;
use crate::plan::{Edit, Plan, Store};

/// A plan with the types that tensors get, and the rows that are stored once.
#[derive(Debug, Clone)]
pub struct TypedPlan {
    /// The plan.
    pub plan: Plan,
    /// What was assigned.
    pub assigned: Assigned,
    /// The plan before the types were added to it.
    pub(super) base: Plan,
    /// Rows of these tensors that the plan lets share.
    planned: Vec<SharedRows>,
    /// The same of tensors that keep their data.
    planned_as_they_are: Vec<SharedRows>,
    /// Others that are equal in the source, unless the plan keeps each of them.
    pub(super) duplicates: Duplicates,
    /// Tensors that are equal to others, and keep their data as those do.
    pub(super) as_one: BTreeSet<String>,
}

/// The names of tensors of `variant` that get no types and are equal to others that get none.
fn equal_as_they_are(variant: &Variant<'_>, assigned: &Assigned) -> BTreeSet<String> {
    let name = |tensor: usize| variant.gguf().tensors()[tensor].name.clone();
    let stay = |class: Vec<usize>| -> Vec<String> {
        let names = class.into_iter().map(name);
        names
            .filter(|name| !assigned.types.contains_key(name))
            .collect()
    };
    let classes = equal_tensors(variant).into_iter().map(stay);
    classes.filter(|class| class.len() > 1).flatten().collect()
}

/// Adds to `plan` the types that `wanted` gives to what it makes of `source`, but for tensors
/// whose types it says itself. What is quantized already gets another type only with `requantize`.
///
/// # Errors
/// When there is no such type, or the plan cannot be carried out.
pub fn assign(
    source: &ModelFile,
    plan: Plan,
    wanted: &Wanted,
    requantize: bool,
) -> Result<TypedPlan, QuantizerError> {
    let (plan, given) = without_types(source, plan)?;
    let is_given = |name: &str| given.contains_key(name);
    let own_head = match wanted.untie || is_given(HEAD) {
        true => own_head(source, &plan),
        false => None,
    };
    let mut with_head = plan.clone();
    with_head.edits.extend(own_head.clone());
    let before = Variant::new(source, &with_whole_blocks(source, &with_head), None)?;
    let gguf = before.gguf();
    let mut assigned = wanted.assign(gguf, &is_given, requantize)?;
    for (name, &to) in &given {
        // Plain numbers where columns go within blocks, which are made anew.
        let has = gguf.tensor(name).or_else(|| source.gguf.tensor(name));
        if has.is_some_and(|info| info.ggml_type != to) {
            assigned.types.insert(name.clone(), to);
        }
    }
    if own_head.is_some() {
        // At the table's type it is the table's rows as they are.
        assigned.kept.remove(HEAD);
    }
    let planned = planned_rows(&before, &plan)?;
    let is_typed = |tensor: usize| assigned.types.contains_key(&gguf.tensors()[tensor].name);
    // A new head is to have other data than the table that it is made of.
    let is_new = |tensor: usize| own_head.is_some() && gguf.tensors()[tensor].name == HEAD;
    let others = (0..gguf.tensors().len()).filter(|&tensor| !is_typed(tensor) || is_new(tensor));
    let others = others.map(|tensor| RowsRange {
        tensor,
        offset: 0,
        len: gguf.tensors()[tensor].byte_len(),
    });
    let mut duplicates = match plan.keep_duplicates {
        true => Duplicates::default(),
        false => duplicates_beside(&before, &planned, others),
    };
    let name = |tensor: usize| gguf.tensors()[tensor].name.clone();
    // What a plan gives types of its own is not equal any more.
    let type_of = |tensor: usize| given.get(&gguf.tensors()[tensor].name);
    (duplicates.shared).retain(|s| type_of(s.alias) == type_of(s.donor));
    let shared = planned.iter().chain(&duplicates.shared);
    let in_common = shared.map(|s| (name(s.alias), name(s.donor)));
    let in_common: Vec<(String, String)> = in_common.collect();
    for (alias, donor) in &in_common {
        if is_given(alias) != is_given(donor) {
            return Err(QuantizerError::OneType {
                alias: alias.clone(),
                donor: donor.clone(),
            });
        }
    }
    let has = |name: &str| gguf.tensor(name).map(|info| info.ggml_type);
    assigned.agree(&in_common, &has);
    let is_typed = |s: &&SharedRows| (assigned.types).contains_key(&gguf.tensors()[s.alias].name);
    let planned_as_they_are = planned.iter().filter(|s| !is_typed(s)).copied().collect();
    let planned = (planned.iter()).filter_map(|s| of_types(s, gguf, &assigned));
    let planned = planned.collect();
    duplicates.shared = (duplicates.shared.iter())
        .filter_map(|s| of_types(s, gguf, &assigned))
        .collect();
    // What is stored once, and as it was, is not fitted for one of its users.
    let in_common: BTreeSet<&String> = in_common.iter().flat_map(|(a, b)| [a, b]).collect();
    assigned.kept.retain(|name, _| !in_common.contains(name));
    // The same of whole tensors that are equal.
    let as_one = match plan.keep_duplicates {
        true => BTreeSet::new(),
        false => equal_as_they_are(&before, &assigned),
    };
    assigned.kept.retain(|name, _| !as_one.contains(name));
    duplicates.bytes = duplicates.shared.iter().map(|s| s.len).sum();
    if plan.edits.is_empty() && assigned.types.is_empty() {
        return Err(QuantizerError::Nothing(wanted.to.clone()));
    }
    if assigned.types.is_empty() {
        assigned.file_type = None;
    }
    let base = plan.clone();
    let mut plan = plan;
    let is_typed = assigned.types.contains_key(HEAD);
    (plan.edits).extend(own_head.filter(|_| !is_typed));
    plan.edits.extend(assigned.edits());
    plan.choice.file_type = assigned.file_type;
    Ok(TypedPlan {
        plan,
        assigned,
        base,
        planned,
        planned_as_they_are,
        duplicates,
        as_one,
    })
}

/// `plan` without the types that it gives, and these, by the names of tensors.
fn without_types(
    source: &ModelFile,
    mut plan: Plan,
) -> Result<(Plan, BTreeMap<String, GgmlType>), QuantizerError> {
    if plan.stores().next().is_some() {
        // Names the edit that cannot be.
        Variant::new(source, &plan, None)?;
    }
    let given = plan.stores().map(|s| (s.tensor.clone(), s.ggml_type));
    let given = given.collect();
    plan.edits.retain(|edit| !matches!(edit, Edit::Store(_)));
    Ok((plan, given))
}

/// An output head of its own for `source`, if it has none, as the table of embeddings is that
/// `plan` makes of it.
fn own_head(source: &ModelFile, plan: &Plan) -> Option<Edit> {
    if source.gguf.tensor(HEAD).is_some() {
        return None;
    }
    let stored = plan.stores().find(|store| store.tensor == EMBEDDING);
    let has = || source.gguf.tensor(EMBEDDING).map(|info| info.ggml_type);
    let ggml_type = stored.map(|store| store.ggml_type).or_else(has)?;
    Some(Edit::Store(Store {
        tensor: HEAD.to_owned(),
        ggml_type,
    }))
}

/// `plan`, with matrices that lose columns within blocks as plain numbers: they get their
/// types later.
fn with_whole_blocks(source: &ModelFile, plan: &Plan) -> Plan {
    let mut whole = plan.clone();
    for edit in &plan.edits {
        let Edit::Narrow(narrow) = edit else {
            continue;
        };
        let tensor = format!("blk.{}.ffn_down.weight", narrow.layer);
        let block = source
            .gguf
            .tensor(&tensor)
            .map_or(1, |info| info.ggml_type.block_elems());
        let is_stored = plan.stores().any(|store| store.tensor == tensor);
        if !is_stored && narrow.channels.iter().flatten().any(|cut| cut % block != 0) {
            whole.edits.push(Edit::Store(Store {
                tensor,
                ggml_type: GgmlType::F16,
            }));
        }
    }
    whole
}

/// The same rows where tensors have their new types; nothing where those have none.
fn of_types(s: &SharedRows, gguf: &Gguf, assigned: &Assigned) -> Option<SharedRows> {
    let info = &gguf.tensors()[s.alias];
    let to = assigned.types.get(&info.name)?;
    let row = info.row_elems() / to.block_elems() * to.block_bytes();
    let bytes = |old: u64| old / info.row_bytes() * row;
    Some(SharedRows {
        alias_offset: bytes(s.alias_offset),
        donor_offset: bytes(s.donor_offset),
        len: bytes(s.len),
        ..*s
    })
}

impl TypedPlan {
    /// The model that is made of `source`.
    ///
    /// # Errors
    /// When the plan cannot be carried out.
    pub(super) fn target<'s>(&self, source: &'s ModelFile) -> Result<Variant<'s>, ConvertError> {
        Variant::new(source, &self.plan, None)
    }

    /// Whether ggml's rounding with the importances `of` columns makes use of weights: the
    /// rule is llama-quantize's.
    ///
    /// # Errors
    /// When a tensor has none and its type needs them.
    pub fn check_rounding(&self, of: &Importances) -> Result<(), QuantizerError> {
        let needs = |name: &str, t: &GgmlType| {
            mixture::needs_importance(name, t.id(), self.assigned.file_type)
        };
        let types = &self.assigned.types;
        let lacks = types
            .iter()
            .find(|(name, t)| needs(name, t) && !of.contains_key(*name));
        match lacks {
            Some((name, &ggml_type)) => Err(QuantizerError::NeedsImportances {
                name: name.clone(),
                ggml_type,
            }),
            None => Ok(()),
        }
    }

    /// The tensors that are to be rounded with importances but have none `of` columns;
    /// token embedding and output head, which llama-imatrix says nothing about, aside.
    pub fn without_importances(&self, of: &Importances) -> Vec<&str> {
        let names = self.assigned.types.keys().map(String::as_str);
        names
            .filter(|name| !mixture::is_embedding_or_head(name) && !of.contains_key(*name))
            .collect()
    }

    /// All rows of the tensors with types that are stored once.
    fn shared(&self) -> impl Iterator<Item = &SharedRows> {
        self.planned.iter().chain(&self.duplicates.shared)
    }

    /// Tensors of the model with the header `gguf` that are another whole one's: which,
    /// and whose.
    pub(super) fn whole_aliases(&self, gguf: &Gguf) -> Vec<(String, String)> {
        let name = |tensor: usize| gguf.tensors()[tensor].name.clone();
        let whole = |s: &&SharedRows| s.len == gguf.tensors()[s.alias].byte_len();
        let whole = self.shared().filter(whole);
        whole.map(|s| (name(s.alias), name(s.donor))).collect()
    }

    /// The rows that are stored once, as the engine knows them.
    pub(super) fn links(&self, gguf: &Gguf) -> Vec<Shared> {
        let of_an_expert = |name: &str| {
            let info = gguf.tensor(name)?;
            (info.dims.len() > 2).then(|| info.dims[1] as usize)
        };
        let all = self.shared().map(|s| link(s, gguf)).collect();
        engine::by_donor(engine::by_expert(all, &of_an_expert))
    }

    /// The rows that the plan lets share of tensors that keep their data, likewise.
    pub(super) fn links_as_they_are(&self, gguf: &Gguf) -> Vec<Shared> {
        let all = self.planned_as_they_are.iter();
        all.map(|s| link(s, gguf)).collect()
    }

    /// The donors' blocks among the [`links`](Self::links) that units use which the plan
    /// lets share, by matrix and first row.
    pub(super) fn planned_donors(&self, gguf: &Gguf) -> BTreeSet<(String, usize)> {
        let planned: Vec<Block> = self.planned.iter().map(|s| link(s, gguf).donor).collect();
        let is_planned = |donor: &Block| {
            let mut of_matrix = planned.iter().filter(|b| b.matrix == donor.matrix);
            of_matrix.any(|b| b.rows.contains(&donor.rows.start))
        };
        let donors = self.links(gguf).into_iter().map(|shared| shared.donor);
        (donors.filter(is_planned))
            .map(|donor| (donor.matrix, donor.rows.start))
            .collect()
    }

    /// Puts donors' rows into their aliases' places in the data of tensors, by name.
    pub(super) fn give_to_aliases(&self, gguf: &Gguf, made: &mut BTreeMap<String, Vec<u8>>) {
        let name = |tensor: usize| &gguf.tensors()[tensor].name;
        for s in self.shared() {
            let Some(donor) = made.get(name(s.donor)) else {
                continue;
            };
            let rows = donor[s.donor_range()].to_vec();
            if let Some(alias) = made.get_mut(name(s.alias)) {
                alias[s.alias_range()].copy_from_slice(&rows);
            }
        }
    }
}

/// Shared rows as the engine knows them.
fn link(s: &SharedRows, gguf: &Gguf) -> Shared {
    let block = |tensor: usize, offset: u64| {
        let info = &gguf.tensors()[tensor];
        let row = |bytes: u64| (bytes / info.row_bytes()) as usize;
        Block {
            matrix: info.name.clone(),
            rows: row(offset)..row(offset + s.len),
        }
    };
    Shared {
        user: block(s.alias, s.alias_offset),
        donor: block(s.donor, s.donor_offset),
    }
}
