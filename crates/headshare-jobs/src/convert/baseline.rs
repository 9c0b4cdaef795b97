//! Units that are removed by a baseline's measure: which, and in which way.

use std::path::{Path, PathBuf};

use headshare_convert::baseline::{Baseline, Ranking, Way};
use headshare_convert::convert;
use headshare_convert::convert::variant::{Limits, ShapeError};
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::plan::Plan;
use serde::{Deserialize, Serialize};

use super::calibrate::is_own;
use crate::error::Context as _;
use crate::{Error, Ui};

/// Units that are removed by a measure of their importance, as many parameters of attention
/// as sharing saves: what the paper compares with. They are dropped where llama.cpp has
/// numbers of heads for each layer, and silenced elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removal {
    /// Share of the units, from 0 to 1, that sharing would be at.
    pub ratio: f64,
    /// The measure.
    pub by: Baseline,
    /// The text that LLM-Pruner's gradients are of; none for others.
    #[serde(with = "crate::path::option")]
    pub text: Option<PathBuf>,
    /// Silences units where they could be dropped, too.
    pub silence: bool,
}

impl Removal {
    /// The plan.
    pub(super) fn plan(&self, source: &ModelFile, ui: &dyn Ui) -> Result<Plan, Error> {
        let map = convert::attention_map(source)?;
        let way = match Limits::of(source, &map) {
            _ if self.silence => Way::Silence,
            Ok(limits) => Way::Drop(limits),
            Err(ShapeError::Model(error)) => {
                return Err(InputError::content(source.path())(error).into());
            }
            Err(ShapeError::Units(why)) => {
                ui.remark(&format!(
                    "note: units are silenced, which saves nothing, since they cannot be dropped: {why}"
                ));
                Way::Silence
            }
        };
        let ranking = match self.by {
            Baseline::Magnitude => {
                Ranking::magnitude(source, &map).about(|| source.path().display())?
            }
            Baseline::LlmPruner => by_gradients(source, &map, self.text()?, ui)?,
        };
        let plan = ranking.plan(self.ratio, way);
        plan.about(|| source.path().display())
    }

    fn text(&self) -> Result<&Path, Error> {
        match &self.text {
            Some(text) if is_own(text) => Err(Error::usage(
                "llm-pruner reads a text that is there already: it must be a file",
            )),
            Some(text) => Ok(text),
            None => Err(Error::usage("llm-pruner needs a text for its gradients")),
        }
    }
}

#[cfg(feature = "train")]
use crate::train::ranking as by_gradients;

#[cfg(not(feature = "train"))]
fn by_gradients(
    _: &ModelFile,
    _: &headshare_convert::model::AttentionMap,
    _: &Path,
    _: &dyn Ui,
) -> Result<Ranking, Error> {
    Err(Error::usage(
        "llm-pruner needs gradients, and this program was built without its feature `train`",
    ))
}
