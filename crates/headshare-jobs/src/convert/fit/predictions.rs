//! How well divergences are predicted: random plans of one size, really made.

use std::path::PathBuf;

use headshare_convert::input::ModelFile;
use headshare_eval::analyze::predictions::{Prediction, Predictions};
use serde::{Deserialize, Serialize};

use super::budget::{Budget, Tried};
use crate::analyze::Picture;
use crate::convert::{Change, Convert};
use crate::{Error, Ui};

/// Says how well the divergence of plans is predicted, which `--fit` chooses by: random plans
/// of one size are made with a few windows of the text and measured on others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnalyzePredictions {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// What the plans are to fit into: bytes.
    pub budget: Budget,
    /// How many plans.
    pub plans: u32,
    /// What they are drawn with.
    pub seed: u64,
    /// Where a picture is written: `.svg` or `.png`, or SVG to standard output.
    #[serde(with = "crate::path::option")]
    pub picture: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

impl AnalyzePredictions {
    /// Does it.
    ///
    /// # Errors
    /// When the model cannot be made to fit, or an output not be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Predictions, Error> {
        (self.budget).with_text_in_a_file(|budget| self.compared(budget, ui))
    }

    fn compared(&self, budget: &Budget, ui: &dyn Ui) -> Result<Predictions, Error> {
        let (Some(wanted), None) = (budget.bytes, budget.memory) else {
            return Err(Error::usage(
                "plans are compared that have so many bytes: give --fit a number",
            ));
        };
        let job = Convert {
            force: self.force,
            ..Convert::unwritten(&self.source, Change::Lossless)
        };
        let source = ModelFile::open_plain(&self.source)?;
        let inputs = job.inputs_to_fit(budget, &source)?;
        let picture = Picture::new(self.picture.as_deref(), self.force, &inputs)?;
        let plans = job.with_choices(budget, &source, &inputs, ui, |choices| {
            let size_of = |plan: &_| job.size_of(budget, &source, plan);
            let drawn = choices.random(wanted, (self.plans, self.seed), &size_of)?;
            let sizes: Vec<u64> = drawn.iter().map(|(_, _, bytes)| *bytes).collect();
            let drawn = drawn.into_iter().map(|(made, fit, _)| (made, fit)).collect::<Vec<_>>();
            let tell = |i: usize, of: &Tried| {
                let Tried { predicted, measured } = of;
                let (nth, bytes) = (i + 1, sizes[i]);
                let measured = measured.map_or("no numbers".to_owned(), |m| format!("{m:.4}"));
                ui.remark(&format!(
                    "plan {nth} of {}: {bytes} bytes, predicted {predicted:.4}, measured {measured}",
                    sizes.len()
                ));
            };
            let Some(tried) = job.tried(&drawn, budget, &source, &tell, ui)? else {
                return Err(Error::usage("plans are made with some windows and measured on others: --windows 4 are needed at least"));
            };
            let of = sizes.into_iter().zip(tried);
            Ok(of.filter_map(|(bytes, tried)| {
                Some(Prediction {
                    bytes,
                    predicted: tried.predicted,
                    measured: tried.measured?,
                })
            })
            .collect())
        })?;
        let name = source.path().display().to_string();
        let found = Predictions::new(name, wanted, self.seed, plans);
        picture.write(|| found.picture(), ui)?;
        Ok(found)
    }
}
