//! What makes a model fit, as a plan that `convert --plan` carries out.

use std::path::PathBuf;

use headshare_convert::input::ModelFile;
use headshare_convert::plan::Expected;
use serde::{Deserialize, Serialize};

use super::budget::Budget;
use crate::convert::{Change, Convert};
use crate::output::{self, Written};
use crate::plan::Planned;
use crate::{Error, Quiet, Ui};

/// Chooses what makes a model fit, and writes it as a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanToFit {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// What it is to fit into.
    pub budget: Budget,
    /// Where the plan is written.
    #[serde(with = "crate::path::option")]
    pub output: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

impl PlanToFit {
    /// Does it.
    ///
    /// # Errors
    /// When the model cannot be made to fit, or the plan cannot be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Planned, Error> {
        (self.budget).with_text_in_a_file(|budget| self.chosen(budget, ui))
    }

    fn chosen(&self, budget: &Budget, ui: &dyn Ui) -> Result<Planned, Error> {
        let job = Convert {
            force: self.force,
            output: self.output.clone(),
            ..Convert::unwritten(&self.source, Change::Lossless)
        };
        let source = ModelFile::open_plain(&self.source)?;
        let inputs = job.inputs_to_fit(budget, &source)?;
        let written = self.output.as_deref().map(|path| Written {
            path,
            force: self.force,
            inputs: &inputs,
        });
        written.as_ref().map(Written::check).transpose()?;
        let (mut plan, fit) = job.chosen_to_fit(budget, &source, &inputs, false, ui)?;
        let made = job.make(budget, &source, &plan, true, &Quiet)?;
        plan.source = source.digest().to_owned();
        plan.expected = Some(Expected {
            saved: Some(made.saved),
            divergence: Some(fit.predicted),
        });
        if let Some(written) = written {
            written.write(&output::json_lines(&plan)?, ui)?;
        }
        Ok(Planned {
            plan,
            sizes: made.sizes(),
            fit: Some(fit),
        })
    }
}
