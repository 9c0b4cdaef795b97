//! The edits that a plan is made of: each changes one thing of the source.

use std::ops::Range;

use headshare_format::GgmlType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Part, UnitId};

/// One edit of a source; layers, units and channels count from 0, as the
/// source has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edit {
    /// A unit uses another unit's weights.
    Share(Share),
    /// A unit is dropped.
    Drop(Removed),
    /// A unit stays where it is, and what it adds is nothing: its columns of
    /// `attn_output` are zeros.
    Silence(Removed),
    /// A feed-forward layer keeps some of its channels.
    Narrow(Narrow),
    /// A tensor is stored at a type.
    Store(Store),
}

/// A unit that uses another unit's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Layer of the alias.
    pub layer: u32,
    /// Unit of the alias.
    pub unit: u32,
    /// Layer of the unit whose weights are used.
    pub donor_layer: u32,
    /// Unit whose weights are used.
    pub donor_unit: u32,
    /// Layer of Algorithm 1's best match, before chains are resolved; absent
    /// where it is the donor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_layer: Option<u32>,
    /// Unit of Algorithm 1's best match; absent where it is the donor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_unit: Option<u32>,
    /// The parts that are shared.
    pub parts: Vec<Part>,
    /// The score of alias and best match; in a calibrated plan less the
    /// divergence, in nats, that the alias is expected to cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl Share {
    /// All of `alias` by a choice that was measured: it is expected to cause a divergence of
    /// `cost`, in nats.
    pub fn calibrated(alias: UnitId, donor: UnitId, cost: f64) -> Self {
        Self {
            layer: alias.layer,
            unit: alias.unit,
            donor_layer: donor.layer,
            donor_unit: donor.unit,
            matched_layer: None,
            matched_unit: None,
            parts: Part::ALL.to_vec(),
            score: Some(-cost),
        }
    }

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

    /// Algorithm 1's best match.
    pub fn matched(&self) -> UnitId {
        UnitId {
            layer: self.matched_layer.unwrap_or(self.donor_layer),
            unit: self.matched_unit.unwrap_or(self.donor_unit),
        }
    }
}

/// A unit that does nothing any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// Its layer.
    pub layer: u32,
    /// Which of the layer.
    pub unit: u32,
    /// Less the divergence, in nats, that its loss is expected to cause, or less what a
    /// baseline takes for its importance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl Removed {
    /// The unit.
    pub fn id(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }
}

/// A feed-forward layer that keeps some of its channels: rows of gate and up,
/// columns of `ffn_down`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Narrow {
    /// Its layer.
    pub layer: u32,
    /// The channels that stay, as ascending ranges `[first, end]` of which
    /// `end` is the first that does not belong to it.
    pub channels: Vec<[u64; 2]>,
}

impl Narrow {
    /// The channels that stay.
    pub fn kept(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.channels.iter().map(|&[first, end]| first..end)
    }
}

/// A tensor that is stored at a type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Its name.
    pub tensor: String,
    /// The type, by ggml's name for it.
    #[serde(rename = "type", with = "type_name")]
    pub ggml_type: GgmlType,
}

/// A type by its name.
mod type_name {
    use super::{Deserialize, Deserializer, GgmlType, Serializer};

    pub fn serialize<S: Serializer>(t: &GgmlType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(t.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GgmlType, D::Error> {
        let name = String::deserialize(from)?;
        GgmlType::named(&name).ok_or_else(|| {
            let known: Vec<&str> = GgmlType::all().map(GgmlType::name).collect();
            serde::de::Error::custom(format!(
                "{name:?} is no type of ggml; there are {}",
                known.join(", ")
            ))
        })
    }
}
