//! How a repair came about, for the file and for people.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::refit::LAMBDAS;
use crate::convert::{Duplicates, Fitted, FittedBy, Room};

/// A repaired model: what differs from the source.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// New data of whole tensors, by name.
    pub tensors: BTreeMap<String, Vec<u8>>,
    /// The names of those that could get new data.
    pub could_be: BTreeSet<String>,
    /// What was done, for the file and for people.
    pub record: Record,
}

impl Repaired {
    /// What a converted file gets, where the units were chosen by `choice`; and
    /// the record.
    pub fn into_fitted(mut self, choice: Option<SurveyRecord>) -> (Fitted, Record) {
        self.record.choice = choice;
        let fitted = Fitted {
            duplicates: Duplicates::default(),
            by: self.record.fitted_by(),
            room: Room {
                by: self.record.longest(&self.could_be).fitted_by(),
                certain: self.tensors.keys().cloned().collect(),
                tensors: self.could_be,
            },
            tensors: self.tensors,
        };
        (fitted, self.record)
    }
}

impl Record {
    /// As what alone a file's new data were computed by.
    fn fitted_by(&self) -> FittedBy {
        FittedBy {
            repair: Some(self.to_json()),
            ..FittedBy::default()
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }

    /// The record of a repair of the tensors `names`, whose JSON no other is
    /// longer than.
    pub(crate) fn longest(&self, names: &BTreeSet<String>) -> Self {
        let tensors = names.iter().map(|name| TensorRecord {
            name: name.clone(),
            lambda: Some(LAMBDAS[0]),
            before: LONGEST,
            after: LONGEST,
        });
        Self {
            tensors: tensors.collect(),
            ..self.clone()
        }
    }
}

/// No number takes more digits.
const LONGEST: f64 = -2.225_073_858_507_201_4e-308;

/// How a repair came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the text.
    pub text: String,
    /// Windows it was cut into.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Windows, of these, that ridges were chosen on.
    pub held_out: u32,
    /// Tokens that the last layer was fitted on: as many as there was memory
    /// for.
    pub outputs: usize,
    /// Threads that it ran on: sums depend on them.
    pub threads: usize,
    /// What the units were chosen by; absent where nothing was measured for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<SurveyRecord>,
    /// The refitted matrices, in the order in which they were refitted.
    pub tensors: Vec<TensorRecord>,
}

/// How one matrix was refitted; errors are relative to the target's size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// The ridge that was chosen; absent where the weights stayed as they were.
    pub lambda: Option<f64>,
    /// The error with the original weights.
    pub before: f64,
    /// The error with the refitted weights as they are stored.
    pub after: f64,
}

/// What a choice was made by, for the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyRecord {
    /// Digest of the survey, as `--save-stats` writes it.
    pub digest: String,
    /// The program that measured.
    pub tool: String,
    /// Windows of the text, before some were picked.
    pub windows: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ridge_and_no_error_takes_more_digits_than_there_is_room_for() {
        let len = |v: f64| serde_json::to_string(&v).unwrap().len();
        assert!(LAMBDAS.iter().all(|&lambda| len(lambda) <= len(LAMBDAS[0])));
        assert!(len(LAMBDAS[0]) >= "null".len());
        // A sign, 17 digits and a point, an exponent of 5 characters.
        assert_eq!(len(LONGEST), 24);
    }
}
