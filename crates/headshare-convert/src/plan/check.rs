//! Whether a plan fits the units of a model.

use std::collections::BTreeSet;

use super::edit::{Edit, Removed, Share};
use super::{Plan, PlanError};
use crate::model::{AttentionMap, Part, UnitId};

impl Plan {
    /// Checks what the plan does to units against the model that it is to be
    /// carried out on.
    ///
    /// # Errors
    /// When it names units that are not there, shares a part twice, uses a
    /// donor that is an alias or whose blocks have another type or shape.
    pub fn check(&self, map: &AttentionMap) -> Result<(), PlanError> {
        let units: BTreeSet<UnitId> = map.units().into_iter().collect();
        if let Some(stated) = self.choice.units
            && stated != units.len()
        {
            return Err(PlanError::field(
                self.units_field(),
                format!("{stated}, but the model has {}", units.len()),
            ));
        }
        let mut removed = BTreeSet::new();
        for (i, unit) in self.numbered_removals() {
            let id = unit.id();
            if !units.contains(&id) {
                return Err(PlanError::field(
                    self.field_of(i, "unit"),
                    format!("the model has no {id}"),
                ));
            }
            if !removed.insert(id) {
                return Err(PlanError::field(
                    self.field_of(i, ""),
                    match self.edits[i] {
                        Edit::Drop(_) => format!("{id} goes twice"),
                        _ => format!("{id} is silenced twice, or dropped as well"),
                    },
                ));
            }
        }
        // A unit that only does nothing can share, and be shared.
        let dropped = self.dropped_units();
        let mut shared = BTreeSet::new();
        for (i, share) in self.numbered_shares() {
            for (name, unit) in [("", share.alias()), ("donor_", share.donor())] {
                let field = || self.field_of(i, &format!("{name}unit"));
                if !units.contains(&unit) {
                    return Err(PlanError::field(
                        field(),
                        format!("the model has no {unit}"),
                    ));
                }
                if dropped.contains(&unit) {
                    return Err(PlanError::field(field(), format!("{unit} is dropped")));
                }
            }
            if share.parts.is_empty() {
                return Err(PlanError::field(self.field_of(i, "parts"), "is empty"));
            }
            for &part in &share.parts {
                if !shared.insert((share.alias(), part)) {
                    return Err(PlanError::field(
                        self.field_of(i, ""),
                        format!("{part} of {} is shared twice", share.alias()),
                    ));
                }
            }
        }
        for (i, share) in self.numbered_shares() {
            for &part in &share.parts {
                self.check_donor(i, share, part, map, &shared)?;
            }
        }
        Ok(())
    }

    fn check_donor(
        &self,
        i: usize,
        share: &Share,
        part: Part,
        map: &AttentionMap,
        shared: &BTreeSet<(UnitId, Part)>,
    ) -> Result<(), PlanError> {
        if shared.contains(&(share.donor(), part)) {
            return Err(PlanError::field(
                self.field_of(i, "donor_unit"),
                format!("{part} of {} is an alias itself", share.donor()),
            ));
        }
        if map.block_kind(share.alias(), part) != map.block_kind(share.donor(), part) {
            return Err(PlanError::field(
                self.field_of(i, ""),
                format!(
                    "{part} of {} and of {} differ in type or shape",
                    share.alias(),
                    share.donor()
                ),
            ));
        }
        Ok(())
    }

    /// Checks that shared blocks have their donors' types and shapes in the model that the plan
    /// makes, too, whose heads are `made`.
    ///
    /// # Errors
    /// Names the share whose blocks differ.
    pub(crate) fn check_made(&self, made: &AttentionMap) -> Result<(), PlanError> {
        let there = self.renumbered();
        for ((i, share), there) in self.numbered_shares().zip(there.shares()) {
            for &part in &share.parts {
                let kind = |unit| made.block_kind(unit, part);
                if kind(there.alias()) != kind(there.donor()) {
                    let (alias, donor) = (share.alias(), share.donor());
                    return Err(PlanError::field(
                        self.field_of(i, ""),
                        format!("{part} of {alias} and of {donor} are stored at different types"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn numbered_shares(&self) -> impl Iterator<Item = (usize, &Share)> {
        let edits = self.edits.iter().enumerate();
        edits.filter_map(|(i, edit)| match edit {
            Edit::Share(share) => Some((i, share)),
            _ => None,
        })
    }

    /// The units that are dropped, then those that are silenced.
    fn numbered_removals(&self) -> impl Iterator<Item = (usize, &Removed)> {
        let edits = self.edits.iter().enumerate();
        let dropped = edits.clone().filter_map(|(i, edit)| match edit {
            Edit::Drop(unit) => Some((i, unit)),
            _ => None,
        });
        dropped.chain(edits.filter_map(|(i, edit)| match edit {
            Edit::Silence(unit) => Some((i, unit)),
            _ => None,
        }))
    }

    fn units_field(&self) -> &'static str {
        match self.written_as {
            1 => "units",
            _ => "choice.units",
        }
    }

    /// The name of a field of edit `i`, as the plan file has it; "" for the
    /// whole edit.
    pub(crate) fn field_of(&self, i: usize, field: &str) -> String {
        let kind = match &self.edits[i] {
            Edit::Share(_) => "share",
            Edit::Drop(_) => "drop",
            Edit::Silence(_) => "silence",
            Edit::Narrow(_) => "narrow",
            Edit::Store(_) => "store",
        };
        let mut name = match (self.written_as, kind) {
            (1, "share") => format!("aliases[{i}]"),
            (1, _) => format!("dropped[{}]", i - self.shares().count()),
            _ => format!("edits[{i}].{kind}"),
        };
        if !field.is_empty() {
            name += ".";
            name += field;
        }
        name
    }
}
