//! How the edits of a plan were chosen.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::matching::{MatchFunction, UnknownMatchFunction};

/// How the edits were chosen, and among how many units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// What they were chosen by.
    pub by: ChosenBy,
    /// The share of units that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Number of all units of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<usize>,
    /// The mixture of types that tensors were given, as llama.cpp numbers it
    /// (`general.file_type`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_type: Option<u32>,
}

/// What edits are chosen by: the name of a match function or of a baseline,
/// `calibrated` or `hand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ChosenBy {
    /// By a match function, as the paper does.
    Match(MatchFunction),
    /// By what the paper compares with.
    Baseline(Baseline),
    /// By what was measured of the running model.
    Calibrated,
    /// By whoever wrote the plan.
    Hand,
}

const CALIBRATED: &str = "calibrated";
const HAND: &str = "hand";

/// What units are removed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// The size of their weights.
    Magnitude,
    /// What the loss owes to each of their weights, to first order.
    #[serde(rename = "llm-pruner")]
    LlmPruner,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Magnitude, Self::LlmPruner];

    /// Its name in plans and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::LlmPruner => "llm-pruner",
        }
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            by: ChosenBy::Hand,
            ratio: None,
            units: None,
            file_type: None,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ratio) = self.ratio {
            write!(f, "ratio {ratio}, ")?;
        }
        self.by.fmt(f)
    }
}

impl fmt::Display for ChosenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(function) => write!(f, "match {function}"),
            Self::Baseline(baseline) => write!(f, "baseline {baseline}"),
            Self::Calibrated => f.write_str(CALIBRATED),
            Self::Hand => f.write_str("chosen by hand"),
        }
    }
}

impl From<ChosenBy> for String {
    fn from(by: ChosenBy) -> Self {
        match by {
            ChosenBy::Match(function) => function.as_str().to_owned(),
            ChosenBy::Baseline(baseline) => baseline.as_str().to_owned(),
            ChosenBy::Calibrated => CALIBRATED.to_owned(),
            ChosenBy::Hand => HAND.to_owned(),
        }
    }
}

impl TryFrom<String> for ChosenBy {
    type Error = UnknownMatchFunction;

    fn try_from(name: String) -> Result<Self, UnknownMatchFunction> {
        match name.as_str() {
            CALIBRATED => Ok(Self::Calibrated),
            HAND => Ok(Self::Hand),
            _ => match Baseline::ALL.into_iter().find(|b| b.as_str() == name) {
                Some(baseline) => Ok(Self::Baseline(baseline)),
                None => name.parse().map(Self::Match),
            },
        }
    }
}
