//! Plans of version 1: units that share or go, in two lists. They are read as
//! edits: first those that share, then those that go.

use serde::Deserialize;

use super::choice::{Choice, ChosenBy};
use super::edit::{Edit, Removed, Share};
use super::{Expected, Plan, Saved};
use crate::model::Part;

/// A plan file of version 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanV1 {
    #[allow(dead_code)]
    version: u32,
    source: String,
    #[serde(rename = "match")]
    by: ChosenBy,
    ratio: f64,
    units: usize,
    #[serde(default)]
    saved: Option<Saved>,
    aliases: Vec<Alias>,
    #[serde(default)]
    dropped: Vec<Dropped>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alias {
    layer: u32,
    unit: u32,
    donor_layer: u32,
    donor_unit: u32,
    matched_layer: u32,
    matched_unit: u32,
    parts: Vec<Part>,
    score: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dropped {
    layer: u32,
    unit: u32,
    score: f64,
}

impl From<PlanV1> for Plan {
    fn from(plan: PlanV1) -> Self {
        let shares = plan.aliases.into_iter().map(|alias| {
            Edit::Share(Share {
                layer: alias.layer,
                unit: alias.unit,
                donor_layer: alias.donor_layer,
                donor_unit: alias.donor_unit,
                matched_layer: Some(alias.matched_layer),
                matched_unit: Some(alias.matched_unit),
                parts: alias.parts,
                score: Some(alias.score),
            })
        });
        let drops = plan.dropped.into_iter().map(|unit| {
            Edit::Drop(Removed {
                layer: unit.layer,
                unit: unit.unit,
                score: Some(unit.score),
            })
        });
        Self {
            source: plan.source,
            choice: Choice {
                by: plan.by,
                ratio: Some(plan.ratio),
                units: Some(plan.units),
                ..Choice::default()
            },
            edits: shares.chain(drops).collect(),
            keep_duplicates: false,
            expected: plan.saved.map(|saved| Expected {
                saved: Some(saved),
                divergence: None,
            }),
            written_as: 1,
        }
    }
}
