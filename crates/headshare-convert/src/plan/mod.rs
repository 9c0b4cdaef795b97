//! The plan: what a model becomes, as a list of edits of its source. `plan`
//! writes it, `convert --plan` carries it out, every converted file carries it.
//!
//! Version 2, JSON:
//!
//! ```json
//! {"version": 2, "source": "blake3:...",
//!  "choice": {"by": "qk", "ratio": 0.3, "units": 90},
//!  "edits": [{"share": {"layer": 3, "unit": 1, "donor_layer": 0, "donor_unit": 2,
//!                       "parts": ["q", "k", "v"]}},
//!            {"drop": {"layer": 4, "unit": 0}},
//!            {"silence": {"layer": 5, "unit": 2}},
//!            {"narrow": {"layer": 5, "channels": [[0, 512], [768, 1536]]}},
//!            {"store": {"tensor": "token_embd.weight", "type": "q5_0"}}],
//!  "expected": {"saved": {"file_bytes": 1000, "resident_bytes": 1000}}}
//! ```
//!
//! Version 1 is read as edits. The order of edits means nothing; those that the
//! program writes are ordered by (layer, unit, parts).

mod check;
mod choice;
mod edit;
mod read;
mod v1;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use choice::{Baseline, Choice, ChosenBy};
pub use edit::{Edit, Narrow, Removed, Share, Store};

use crate::matching::{MatchFunction, Matching};
use crate::model::{AttentionMap, RowsRange, UnitId};

/// The version of the plan format that this program writes.
pub const VERSION: u32 = 2;

/// A plan file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The digest of the file it was made for: `blake3:` and 64 digits.
    pub source: String,
    /// How the edits were chosen.
    pub choice: Choice,
    /// What changes.
    pub edits: Vec<Edit>,
    /// What is byte-equal stays as often as it is there, instead of being stored once.
    pub keep_duplicates: bool,
    /// What converting by it is expected to save and to cost; absent in
    /// converted files.
    pub expected: Option<Expected>,
    /// The version that it was read from, for the names of fields in errors; 0
    /// where it was not read.
    written_as: u32,
}

/// A plan as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanV2<'a> {
    version: u32,
    source: std::borrow::Cow<'a, str>,
    #[serde(default)]
    choice: Choice,
    edits: std::borrow::Cow<'a, [Edit]>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keep_duplicates: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected: Option<Expected>,
}

impl Serialize for Plan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plan = PlanV2 {
            version: VERSION,
            source: (&*self.source).into(),
            choice: self.choice,
            edits: (&*self.edits).into(),
            keep_duplicates: self.keep_duplicates,
            expected: self.expected,
        };
        plan.serialize(serializer)
    }
}

/// Reads what this program has written; plan files come through
/// [`Plan::from_json`], which also knows version 1 and names fields in errors.
impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        PlanV2::deserialize(from).map(Into::into)
    }
}

impl From<PlanV2<'_>> for Plan {
    fn from(plan: PlanV2<'_>) -> Self {
        Self {
            source: plan.source.into_owned(),
            choice: plan.choice,
            edits: plan.edits.into_owned(),
            keep_duplicates: plan.keep_duplicates,
            expected: plan.expected,
            written_as: VERSION,
        }
    }
}

/// What a plan is expected to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// What it saves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    /// Mean KL divergence of the logits from the source's, in nats: the sum of
    /// what each edit was measured to cause alone. Absent where nothing was
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
}

/// What a conversion saves, in bytes; negative when it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Size of the source minus size of the converted file.
    pub file_bytes: i64,
    /// Bytes of tensors in pages that are in memory once instead of several
    /// times, by the stitching plan for pages of 4096 bytes or the file's page size.
    pub resident_bytes: u64,
}

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is no plan file.
    #[error("not a plan file: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has a value that does not fit.
    #[error("{field}: {problem}")]
    Field {
        /// The field, such as `edits[3].share.donor_unit`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl PlanError {
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Plan {
    /// A plan of `edits` for the file with digest `source`.
    pub fn new(source: String, choice: Choice, edits: Vec<Edit>) -> Self {
        Self {
            source,
            choice,
            edits,
            ..Self::default()
        }
    }

    /// The plan that `matching` stands for.
    pub fn matched(
        source: String,
        function: MatchFunction,
        ratio: f64,
        matching: &Matching,
    ) -> Self {
        let share = |m: &crate::matching::Match| {
            Edit::Share(Share {
                layer: m.unit.layer,
                unit: m.unit.unit,
                donor_layer: m.donor.layer,
                donor_unit: m.donor.unit,
                matched_layer: Some(m.matched.layer),
                matched_unit: Some(m.matched.unit),
                parts: m.parts.clone(),
                score: Some(m.score),
            })
        };
        let choice = Choice {
            by: ChosenBy::Match(function),
            ratio: Some(ratio),
            units: Some(matching.units),
            ..Choice::default()
        };
        Self::new(source, choice, matching.aliases.iter().map(share).collect())
    }

    /// The plan as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plan is plain data")
    }

    /// The units that use others' weights.
    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Share(share) => Some(share),
            _ => None,
        })
    }

    /// The units that are dropped.
    pub fn drops(&self) -> impl Iterator<Item = &Removed> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Drop(unit) => Some(unit),
            _ => None,
        })
    }

    /// The units that stay and do nothing.
    pub fn silences(&self) -> impl Iterator<Item = &Removed> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Silence(unit) => Some(unit),
            _ => None,
        })
    }

    /// The feed-forward layers that keep some channels.
    pub fn narrows(&self) -> impl Iterator<Item = &Narrow> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Narrow(narrow) => Some(narrow),
            _ => None,
        })
    }

    /// The tensors that are stored at another type.
    pub fn stores(&self) -> impl Iterator<Item = &Store> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Store(store) => Some(store),
            _ => None,
        })
    }

    /// The units that are dropped.
    pub fn dropped_units(&self) -> BTreeSet<UnitId> {
        self.drops().map(Removed::id).collect()
    }

    /// Whether units share, go or do nothing, or how many there are is stated.
    pub fn is_about_units(&self) -> bool {
        let of_units =
            |edit: &Edit| matches!(edit, Edit::Share(_) | Edit::Drop(_) | Edit::Silence(_));
        self.choice.units.is_some() || self.edits.iter().any(of_units)
    }

    /// The first layer in which more than types changes.
    pub fn first_layer(&self) -> Option<u32> {
        let layer = |edit: &Edit| match edit {
            Edit::Share(share) => Some(share.layer),
            Edit::Drop(unit) | Edit::Silence(unit) => Some(unit.layer),
            Edit::Narrow(narrow) => Some(narrow.layer),
            Edit::Store(_) => None,
        };
        self.edits.iter().filter_map(layer).min()
    }

    /// Whether any tensor gets another shape or type, or loses what it held.
    pub fn reshapes(&self) -> bool {
        (self.edits.iter()).any(|edit| !matches!(edit, Edit::Share(_)))
    }

    /// What the plan shares and silences in the model that is left of its source:
    /// units are counted without those that go.
    #[must_use]
    pub fn renumbered(&self) -> Self {
        let gone = self.dropped_units();
        let place = |unit: UnitId| {
            let first = UnitId { unit: 0, ..unit };
            unit.unit - gone.range(first..unit).count() as u32
        };
        let shares = self.shares().map(|share| {
            Edit::Share(Share {
                unit: place(share.alias()),
                donor_unit: place(share.donor()),
                ..share.clone()
            })
        });
        let silences = self.silences().map(|unit| {
            Edit::Silence(Removed {
                unit: place(unit.id()),
                ..unit.clone()
            })
        });
        Self {
            edits: shares.chain(silences).collect(),
            choice: Choice {
                units: self
                    .choice
                    .units
                    .map(|units| units.saturating_sub(gone.len())),
                ..self.choice
            },
            ..self.clone()
        }
    }

    /// The rows that the plan takes from elsewhere: `(alias, donor)` of equal
    /// length, in the plan's order. The plan has been [checked](Self::check)
    /// against `map`.
    pub fn shared_rows<'a>(
        &'a self,
        map: &'a AttentionMap,
    ) -> impl Iterator<Item = (RowsRange, RowsRange)> + 'a {
        self.shares().flat_map(move |share| {
            share.parts.iter().filter_map(move |&part| {
                Some((
                    map.block(share.alias(), part)?,
                    map.block(share.donor(), part)?,
                ))
            })
        })
    }
}
