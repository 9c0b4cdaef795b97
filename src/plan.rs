//! The plan: which units use which units' weights, as a file that `plan`
//! writes, `convert --plan` carries out and every converted file carries.
//!
//! Version 1, JSON; layers and units count from 0; aliases are ordered by
//! (layer, unit, parts).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::matching::{MatchFunction, Matching, UnknownMatchFunction};
use crate::model::{AttentionMap, Part, RowsRange, UnitId};

/// The version of the plan format that this program reads and writes.
pub const VERSION: u32 = 1;

/// A plan file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// The digest of the file it was made for: `blake3:` and 64 digits.
    pub source: String,
    /// How the units were chosen.
    #[serde(rename = "match")]
    pub choice: Choice,
    /// The share of units that was asked for.
    pub ratio: f64,
    /// Number of all units of the model.
    pub units: usize,
    /// What converting by it saves; absent in converted files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    /// The units that share.
    pub aliases: Vec<Alias>,
    /// The units that are deleted.
    #[serde(default)]
    pub dropped: Vec<Dropped>,
}

/// A unit that is deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Its layer.
    pub layer: u32,
    /// Which of the layer.
    pub unit: u32,
    /// Less the divergence, in nats, that its loss is expected to cause.
    pub score: f64,
}

impl Dropped {
    /// The unit.
    pub fn id(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }
}

/// How the units of a plan were chosen: the name of a match function, or
/// `calibrated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Choice {
    /// By a match function, as the paper does.
    Match(MatchFunction),
    /// By what was measured of the running model.
    Calibrated,
}

const CALIBRATED: &str = "calibrated";

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(function) => write!(f, "match {function}"),
            Self::Calibrated => f.write_str(CALIBRATED),
        }
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Match(function) => function.as_str().to_owned(),
            Choice::Calibrated => CALIBRATED.to_owned(),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = UnknownMatchFunction;

    fn try_from(name: String) -> Result<Self, UnknownMatchFunction> {
        if name == CALIBRATED {
            return Ok(Self::Calibrated);
        }
        name.parse().map(Self::Match)
    }
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

/// A unit that uses another unit's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// Layer of the alias.
    pub layer: u32,
    /// Unit of the alias.
    pub unit: u32,
    /// Layer of the unit whose weights are used.
    pub donor_layer: u32,
    /// Unit whose weights are used.
    pub donor_unit: u32,
    /// Layer of Algorithm 1's best match, before chains are resolved.
    pub matched_layer: u32,
    /// Unit of Algorithm 1's best match.
    pub matched_unit: u32,
    /// The parts that are shared.
    pub parts: Vec<Part>,
    /// The score of alias and best match; in a calibrated plan less the
    /// divergence, in nats, that the alias is expected to cause.
    pub score: f64,
}

impl Alias {
    /// The alias.
    pub fn alias(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }

    /// The unit whose weights it uses.
    pub fn donor(&self) -> UnitId {
        UnitId {
            layer: self.donor_layer,
            unit: self.donor_unit,
        }
    }
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
        /// The field, such as `aliases[3].donor_unit`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Plan {
    /// The plan that `matching` stands for.
    pub fn new(source: String, function: MatchFunction, ratio: f64, matching: &Matching) -> Self {
        Self {
            version: VERSION,
            source,
            choice: Choice::Match(function),
            ratio,
            units: matching.units,
            saved: None,
            aliases: matching
                .aliases
                .iter()
                .map(|m| Alias {
                    layer: m.unit.layer,
                    unit: m.unit.unit,
                    donor_layer: m.donor.layer,
                    donor_unit: m.donor.unit,
                    matched_layer: m.matched.layer,
                    matched_unit: m.matched.unit,
                    parts: m.parts.clone(),
                    score: m.score,
                })
                .collect(),
            dropped: Vec::new(),
        }
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// When it is no JSON of this form, or of another version.
    pub fn from_json(text: &[u8]) -> Result<Self, PlanError> {
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // serde would take an array for the fields in order.
        if text.trim_ascii_start().first() == Some(&b'[') {
            let error = serde::de::Error::custom("expected an object, found an array");
            return Err(PlanError::Json(error));
        }
        // First, so that a newer plan is not called malformed.
        let Versioned { version } = parse(text)?;
        if version != VERSION {
            return Err(field(
                "version",
                format!("{version} is unknown; this program reads version {VERSION}"),
            ));
        }
        let plan: Self = parse(text)?;
        if !is_digest(&plan.source) {
            return Err(field(
                "source",
                format!(
                    "{:?} is no digest (\"blake3:\" and 64 hexadecimal digits)",
                    plan.source
                ),
            ));
        }
        Ok(plan)
    }

    /// The plan as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plan is plain data")
    }

    /// Checks the plan against the model that it is to be carried out on.
    ///
    /// # Errors
    /// When it names units that are not there, shares a part twice, uses a
    /// donor that is an alias or whose blocks have another type or shape.
    pub fn check(&self, map: &AttentionMap) -> Result<(), PlanError> {
        let units: BTreeSet<UnitId> = map.units().into_iter().collect();
        if self.units != units.len() {
            return Err(field(
                "units",
                format!("{}, but the model has {}", self.units, units.len()),
            ));
        }
        let mut dropped = BTreeSet::new();
        for (i, unit) in self.dropped.iter().enumerate() {
            let id = unit.id();
            if !units.contains(&id) {
                return Err(field(
                    format!("dropped[{i}].unit"),
                    format!("the model has no {id}"),
                ));
            }
            if !dropped.insert(id) {
                return Err(field(format!("dropped[{i}]"), format!("{id} goes twice")));
            }
        }
        let mut shared = BTreeSet::new();
        for (i, alias) in self.aliases.iter().enumerate() {
            for (name, unit) in [("", alias.alias()), ("donor_", alias.donor())] {
                if !units.contains(&unit) {
                    return Err(field(
                        format!("aliases[{i}].{name}unit"),
                        format!("the model has no {unit}"),
                    ));
                }
                if dropped.contains(&unit) {
                    return Err(field(
                        format!("aliases[{i}].{name}unit"),
                        format!("{unit} is dropped"),
                    ));
                }
            }
            if alias.parts.is_empty() {
                return Err(field(format!("aliases[{i}].parts"), "is empty"));
            }
            for &part in &alias.parts {
                if !shared.insert((alias.alias(), part)) {
                    return Err(field(
                        format!("aliases[{i}]"),
                        format!("{part} of {} is shared twice", alias.alias()),
                    ));
                }
            }
        }
        for (i, alias) in self.aliases.iter().enumerate() {
            for &part in &alias.parts {
                if shared.contains(&(alias.donor(), part)) {
                    return Err(field(
                        format!("aliases[{i}].donor_unit"),
                        format!("{part} of {} is an alias itself", alias.donor()),
                    ));
                }
                if map.block_kind(alias.alias(), part) != map.block_kind(alias.donor(), part) {
                    return Err(field(
                        format!("aliases[{i}]"),
                        format!(
                            "{part} of {} and of {} differ in type or shape",
                            alias.alias(),
                            alias.donor()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The units that go.
    pub fn dropped_units(&self) -> BTreeSet<UnitId> {
        self.dropped.iter().map(Dropped::id).collect()
    }

    /// The rows that the plan takes from elsewhere: `(alias, donor)` of equal
    /// length, in the plan's order. The plan has been [checked](Self::check)
    /// against `map`.
    pub fn shared_rows<'a>(
        &'a self,
        map: &'a AttentionMap,
    ) -> impl Iterator<Item = (RowsRange, RowsRange)> + 'a {
        self.aliases.iter().flat_map(move |alias| {
            alias.parts.iter().filter_map(move |&part| {
                Some((
                    map.block(alias.alias(), part)?,
                    map.block(alias.donor(), part)?,
                ))
            })
        })
    }
}

/// Reads JSON; an error names the field.
fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, PlanError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        // "." is the whole; a text that breaks off is no matter of one field.
        if path == "." || error.is_eof() {
            PlanError::Json(error)
        } else {
            field(path, error.to_string())
        }
    })?;
    deserializer.end()?;
    Ok(value)
}

/// Whether `text` is the digest of a file. Zeros are none: they stand for a
/// digest that is not known yet.
fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("blake3:").unwrap_or("");
    hex.len() == 64
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && hex.bytes().any(|b| b != b'0')
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> PlanError {
    PlanError::Field {
        field: field.into(),
        problem: problem.into(),
    }
}
