//! How a model was quantized, for the file and for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a model was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeRecord {
    /// The mixture or type that was asked for.
    pub to: String,
    /// What weights were encoded by.
    pub by: By,
}

impl QuantizeRecord {
    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }
}

/// What weights are encoded by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Rounded by ggml, all columns counting as much.
    Rounding,
    /// Rounded by ggml, columns weighted by an importance matrix.
    Imatrix {
        /// Digest of its file.
        digest: String,
    },
    /// Fitted to a text and encoded with feedback.
    Calibration(Calibrated),
}

/// How weights were fitted to a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// Digest of the text.
    pub text: String,
    /// Windows that it was cut into.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Tokens that the end of the last layer was fitted on.
    pub outputs: usize,
    /// Threads that it ran on: sums depend on them.
    pub threads: usize,
    /// How.
    pub settings: Settings,
}

/// How weights are fitted and encoded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How far weights go towards what makes up for all that was lost before them,
    /// from 0 to 1; absent where that is chosen for each matrix on held-out windows.
    pub strength: Option<f64>,
    /// The ridge of that fit, relative to the mean diagonal of the inputs' Gram
    /// matrix.
    pub ridge: f64,
    /// What is added to its diagonal before encoding, likewise.
    pub damping: f64,
}

impl Default for Settings {
    /// Those of `docs/METHOD.md`.
    fn default() -> Self {
        Self {
            strength: None,
            ridge: 0.1,
            damping: 0.1,
        }
    }
}

/// The damping of a token embedding that is the output head, too, whatever
/// [`Settings::damping`] is. Its rows go into the residual stream as they are, where each of
/// their elements counts as much.
pub const TIED_DAMPING: f64 = 1.0;

/// What became of the matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Matrices that were fitted and encoded with feedback; each expert counts.
    pub fitted: usize,
    /// Fitted and encoded likewise, at the type that they had already.
    pub refitted: usize,
    /// Encoded with feedback, but not fitted: nothing is derived for how they add to
    /// the residual stream, or they are token embedding and output head at once.
    pub encoded: usize,
    /// Rounded with the importances of their columns: too few tokens came to them.
    pub weighted: usize,
    /// Tables whose rows are looked up: encoded each by itself.
    pub looked_up: usize,
    /// Rounded as they are: nothing is known of what goes into them.
    pub rounded: usize,
    /// Stored as plain numbers, before anything was lost that they could make up for.
    pub plain: usize,
}

/// The matrices that could not be fitted as others are, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfitted {
    /// Those that too few tokens came to, by name: the fewest, where they have experts.
    pub too_few: BTreeMap<String, TooFew>,
    /// Those without a target, by name, with the reason.
    pub no_target: BTreeMap<String, String>,
}

/// Tokens that came to a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooFew {
    /// How many came.
    pub tokens: usize,
    /// How many it takes to encode with feedback.
    pub needed: usize,
}

impl Unfitted {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.too_few.is_empty() && self.no_target.is_empty()
    }

    /// That only so many `tokens` of those `needed` came to the matrix `name`.
    pub(super) fn too_few(&mut self, name: &str, tokens: usize, needed: usize) {
        let few = self.too_few.entry(name.to_owned());
        let few = few.or_insert(TooFew { tokens, needed });
        few.tokens = few.tokens.min(tokens);
    }
}
