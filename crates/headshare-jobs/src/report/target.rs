//! Model files of a report: there, or to be made.

use std::path::PathBuf;

use headshare_convert::matching::MatchFunction;
use headshare_convert::quantize::types::Wanted;
use headshare_eval::report::lower::Lowered;
use headshare_eval::report::{FileFacts, Series};

use super::input::Input;

/// How a model file comes to be.
#[derive(Debug, Clone)]
pub(super) enum Recipe {
    /// It is the source.
    Source,
    /// By a conversion of this series; `function` chooses the units where they are
    /// not chosen by measuring.
    Convert {
        series: Series,
        function: MatchFunction,
        ratio: f64,
    },
    /// By storing tensors at these types.
    Lower(Box<Lowered>),
    /// By making the source fit into so many bytes.
    Fit { bytes: u64 },
    /// By rounding to these types, with an importance matrix where there is one.
    Round(Box<Rounding>),
}

/// What llama.cpp's quantizer is asked for.
#[derive(Debug, Clone)]
pub(super) struct Rounding {
    pub wanted: Wanted,
    pub imatrix: Option<Input>,
}

/// A model file: to be made, or there.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The beginning of its cells' names.
    pub name: String,
    pub recipe: Recipe,
    pub path: PathBuf,
}

impl Target {
    pub fn is_source(&self) -> bool {
        matches!(self.recipe, Recipe::Source)
    }

    /// It, once it is made.
    pub fn input(&self, made: &FileFacts) -> Input {
        Input::known(&self.path, made.file_bytes, made.digest.clone())
    }
}
