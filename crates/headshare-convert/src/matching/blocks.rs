//! What is matched: units, their parts, where their weights come from, and the
//! paper's match functions (which parts the score looks at).

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{Part, UnitId};

/// Which parts of a unit the score looks at (the paper's match functions).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MatchFunction {
    /// Query and key rows.
    #[default]
    Qk,
    /// Query rows only.
    Q,
    /// Key rows only.
    K,
    /// Value rows only.
    V,
    /// Query, key and value rows.
    Qkv,
    /// Query, key and value rows each matched, selected and shared on their own.
    Separate,
}

impl MatchFunction {
    /// Every match function, in the order in which help texts list them.
    pub const ALL: [MatchFunction; 6] = [
        MatchFunction::Qk,
        MatchFunction::Q,
        MatchFunction::K,
        MatchFunction::V,
        MatchFunction::Qkv,
        MatchFunction::Separate,
    ];

    /// The function's name in plan files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            MatchFunction::Qk => "qk",
            MatchFunction::Q => "q",
            MatchFunction::K => "k",
            MatchFunction::V => "v",
            MatchFunction::Qkv => "qkv",
            MatchFunction::Separate => "separate",
        }
    }

    /// The rankings that the function makes: one, or for
    /// [`Separate`](Self::Separate) one for each part.
    pub(super) fn views(self) -> &'static [View] {
        match self {
            MatchFunction::Qk => &[View {
                scored: &[Part::Q, Part::K],
                shared: &Part::ALL,
            }],
            MatchFunction::Q => &[View {
                scored: &[Part::Q],
                shared: &Part::ALL,
            }],
            MatchFunction::K => &[View {
                scored: &[Part::K],
                shared: &Part::ALL,
            }],
            MatchFunction::V => &[View {
                scored: &[Part::V],
                shared: &Part::ALL,
            }],
            MatchFunction::Qkv => &[View {
                scored: &Part::ALL,
                shared: &Part::ALL,
            }],
            MatchFunction::Separate => &[
                View {
                    scored: &[Part::Q],
                    shared: &[Part::Q],
                },
                View {
                    scored: &[Part::K],
                    shared: &[Part::K],
                },
                View {
                    scored: &[Part::V],
                    shared: &[Part::V],
                },
            ],
        }
    }
}

/// One ranking: the parts that are compared and the parts that are shared by
/// its outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub scored: &'static [Part],
    pub shared: &'static [Part],
}

impl fmt::Display for MatchFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for MatchFunction {
    type Err = UnknownMatchFunction;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|function| function.as_str() == name)
            .ok_or_else(|| UnknownMatchFunction(name.to_owned()))
    }
}

/// A name that is no match function's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown match function {0:?}: use qk, q, k, v, qkv or separate")]
pub struct UnknownMatchFunction(pub String);

/// Where the dequantized weights of the units come from.
///
/// `unit` is an index into [`units`](Self::units) throughout.
pub trait UnitBlocks: Sync {
    /// All units, strictly ascending by (layer, unit).
    fn units(&self) -> &[UnitId];

    /// Units whose blocks of this part have the same class can stand in for
    /// each other (same type, rows and row length); others never do.
    fn class(&self, part: Part, unit: usize) -> u32;

    /// Weights in the block; the same within a class.
    fn elements(&self, part: Part, unit: usize) -> usize;

    /// Weights that can only be read together (a quantization block); divides
    /// [`elements`](Self::elements) and is the same within a class.
    fn granularity(&self, part: Part, unit: usize) -> usize;

    /// Writes the weights `start..start + out.len()` of the flattened block to
    /// `out`. Both numbers are multiples of the granularity. Called from many
    /// threads at once.
    fn read(
        &self,
        part: Part,
        unit: usize,
        start: usize,
        out: &mut [f32],
    ) -> Result<(), MatchError>;
}

/// Why units cannot be matched.
#[derive(Debug, Error)]
pub enum MatchError {
    /// The ratio is not a number from 0 to 1.
    #[error("the ratio must be between 0 and 1, not {0}")]
    Ratio(f64),
    /// A weight is infinite or not a number.
    #[error("a weight of the {part} block of {unit} is not finite")]
    NonFinite {
        /// The part that the weight belongs to.
        part: Part,
        /// The unit that the weight belongs to.
        unit: UnitId,
    },
    /// The source of the weights failed.
    #[error("cannot read the {part} block of {unit}")]
    Read {
        /// The part that was read.
        part: Part,
        /// The unit that was read.
        unit: UnitId,
        /// What went wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The source of the weights contradicts itself: a bug in it.
    #[error("inconsistent blocks: {part} block of {unit}: {reason}")]
    Inconsistent {
        /// The part with the contradiction.
        part: Part,
        /// The unit with the contradiction.
        unit: UnitId,
        /// What does not fit.
        reason: &'static str,
    },
}
