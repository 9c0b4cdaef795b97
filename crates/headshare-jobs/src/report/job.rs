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
use crate::convert::{Budget, Calibration, Stats};

/// Measures what sharing does to a model, or making it fit into so many bytes, next to
/// what else could be done for the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeReport {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// Shares of the units, from 0 to 1, that use another unit's weights; none where the
    /// model is made to fit.
    pub ratios: Vec<f64>,
    /// Makes the model fit into some sizes instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fits>,
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

/// Sizes that a model is made to fit into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    /// Bytes that the files may have.
    pub sizes: Vec<u64>,
    /// The types that tensors may get; by default those that ggml is good at.
    pub types: Option<Vec<String>>,
    /// Seconds that measuring may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    /// The text that is probed and fitted with, and that llama.cpp's files get their
    /// importance matrix of.
    pub calibration: Calibration,
    /// Where what is measured is kept, beside the report; a file that is to be
    /// written and is there already is read.
    pub stats: Stats,
}

impl Fits {
    /// The sizes, each once, the largest first.
    pub(super) fn sizes(&self) -> Vec<u64> {
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
        sizes.dedup();
        sizes
    }

    /// What a file of so many `bytes` is made by.
    pub(super) fn budget(&self, bytes: u64, calibration: Calibration, stats: Stats) -> Budget {
        Budget {
            bytes: Some(bytes),
            memory: None,
            time: self.time,
            types: self.types.clone(),
            calibration,
            stats,
        }
    }
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
        let shares = !self.ratios.is_empty() || self.repair.is_some() || self.measured.is_some();
        match &self.fit {
            Some(_) if shares || !self.functions.is_empty() => Err(Error::usage(
                "a report is about ratios of shared units or about sizes, not both",
            )),
            Some(fit) if fit.sizes.is_empty() => Err(Error::usage("no size is given")),
            None if self.ratios.is_empty() => Err(Error::usage("no ratio is given")),
            _ if self.measured.is_some() && !self.functions.is_empty() => Err(Error::usage(
                "units are chosen by measuring: there is no match function to compare",
            )),
            _ => Ok(()),
        }
    }

    /// The text that is fitted to, and what may be spent on it.
    pub(super) fn calibration(&self) -> Option<&Calibration> {
        let of_fit = self.fit.as_ref().map(|fit| &fit.calibration);
        self.repair.as_ref().or(of_fit)
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
        if self.fit.is_some() {
            let title = "types of all tensors chosen by what their errors do, then all fitted to the \
                         calibration text (convert --fit)";
            return vec![SeriesTitle {
                name: Series::Fitted,
                function: None,
                title: title.to_owned(),
            }];
        }
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
            function: match self.fit {
                None => functions.join(","),
                Some(_) => String::new(),
            },
            ratios: ratios.to_vec(),
            sizes: self.fit.as_ref().map_or_else(Vec::new, Fits::sizes),
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
