//! What is shared as one: a unit of a layer, and its parts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which unit of which layer, both counted from 0; ordered by (layer, unit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitId {
    /// The layer.
    pub layer: u32,
    /// The unit (head, or KV group) within the layer.
    pub unit: u32,
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}, unit {}", self.layer, self.unit)
    }
}

/// One of the three weight blocks of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Query rows: `n_head / n_head_kv` heads of them.
    Q,
    /// Key rows: one head.
    K,
    /// Value rows: one head.
    V,
}

impl Part {
    /// All parts in the order in which they are concatenated.
    pub const ALL: [Part; 3] = [Part::Q, Part::K, Part::V];

    /// The part's name in plan files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Q => "q",
            Part::K => "k",
            Part::V => "v",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
