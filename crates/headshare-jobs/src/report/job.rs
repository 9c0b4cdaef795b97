//! What a report is to be about.

use std::path::PathBuf;

use headshare_convert::matching::MatchFunction;
use headshare_convert::repair::choose::Units;
use headshare_eval::bench::SpeedTest;
use headshare_eval::eval::choice::Kind;
use headshare_eval::report::{Series, SeriesTitle, Settings};
use headshare_runtime::threads::processor_name;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::convert::{Calibration, Stats};

/// Measures what sharing does to a model, next to what else could be done for the
/// same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeReport {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// Shares of the units, from 0 to 1, that use another unit's weights.
    pub ratios: Vec<f64>,
    /// The text that perplexity is of, UTF-8.
    #[serde(with = "crate::path")]
    pub text: PathBuf,
    /// Questions: jsonl, or the zip of MMLU or C-Eval.
    #[serde(with = "crate::path::list")]
    pub tasks: Vec<PathBuf>,
    /// Tells accuracies by subject, too, of tasks that have subjects.
    pub subjects: bool,
    /// How to score the questions, where the fields do not tell.
    pub kind: Option<Kind>,
    /// The folder of the report; a report that is in it is continued.
    #[serde(with = "crate::path")]
    pub output: PathBuf,
    /// Which parts of two units are compared; several functions have rows of their
    /// own at each ratio, and none stands for the default one.
    pub functions: Vec<MatchFunction>,
    /// Also refits the layers after what has changed.
    pub repair: Option<Calibration>,
    /// How a repair's units are chosen by measuring; null chooses them by the
    /// match function.
    pub measured: Option<MeasuredChoice>,
    /// Tokens of a window of the text.
    pub ctx: u32,
    /// Windows to evaluate at most, from the beginning.
    pub chunks: Option<u64>,
    /// Only the first questions of each task, and of each subject.
    pub limit: Option<u32>,
    /// What is run to measure speed.
    pub test: SpeedTest,
    /// Threads; by default one a physical core, fewer while other programs are
    /// busy.
    pub threads: Option<u32>,
    /// Times that speed is measured.
    pub repetitions: u32,
    /// Keeps the models that were made, in the report's folder.
    pub keep: bool,
}

/// A choice of units by what each of them does to the running model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredChoice {
    /// What becomes of them.
    pub units: Units,
    /// Where what is measured is kept, beside the report; a file that is to be
    /// written and is there already is read.
    pub stats: Stats,
}

impl MakeReport {
    /// Finds arguments that contradict each other.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.measured {
            Some(_) if !self.functions.is_empty() => Err(Error::usage(
                "units are chosen by measuring: there is no match function to compare",
            )),
            _ => Ok(()),
        }
    }

    /// The match functions, each once, in the order in which they were given.
    pub(super) fn functions(&self) -> Vec<MatchFunction> {
        let mut all = Vec::new();
        for &function in &self.functions {
            if !all.contains(&function) {
                all.push(function);
            }
        }
        if all.is_empty() {
            all.push(MatchFunction::default());
        }
        all
    }

    /// The ways to convert, of each match function the plain one first: it tells
    /// whether there is anything to repair.
    pub(super) fn series(&self) -> Vec<SeriesTitle> {
        let mut all = Vec::new();
        for function in self.functions() {
            all.push(SeriesTitle {
                name: Series::Shared,
                function: Some(function),
                title: format!("DirectShare, match {function}"),
            });
            if self.repair.is_none() {
                continue;
            }
            let (name, title) = match self.measured.as_ref().map(|choice| choice.units) {
                None => (
                    Series::Repaired,
                    "the same, then the layers after it refitted (convert --repair)",
                ),
                Some(Units::Share) => (
                    Series::Repaired,
                    "units that share chosen by measuring, the layers after them refitted \
                     (convert --repair)",
                ),
                Some(Units::Drop) => (
                    Series::Dropped,
                    "units to drop chosen by measuring, the layers after them refitted \
                     (convert --repair --units drop)",
                ),
                Some(Units::Auto) => (
                    Series::Auto,
                    "units to share or to drop, for the same bytes, chosen by measuring, the layers \
                     after them refitted (convert --repair --units auto)",
                ),
            };
            all.push(SeriesTitle {
                name,
                function: self.measured.is_none().then_some(function),
                title: title.to_owned(),
            });
        }
        all
    }

    /// What the report says of itself; `ratios` ascend.
    pub(super) fn settings(&self, ratios: &[f64]) -> Settings {
        let functions = self.functions();
        let functions: Vec<_> = functions.iter().map(|f| f.as_str()).collect();
        Settings {
            function: functions.join(","),
            ratios: ratios.to_vec(),
            ctx: self.ctx,
            chunks: self.chunks,
            limit: self.limit,
            kind: self.kind,
            n_prompt: self.test.n_prompt,
            n_gen: self.test.n_gen,
            repetitions: self.repetitions,
            threads: self.threads,
            cpu: processor_name(),
        }
    }
}
