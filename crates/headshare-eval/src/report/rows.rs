//! What a report holds; the shape of its JSON. Sizes in bytes, times in ms,
//! shares from 0 to 1. What the system does not tell is null.

use std::fmt;

use headshare_convert::matching::MatchFunction;
use serde::{Deserialize, Serialize};

use crate::eval::choice::summary::{Accuracy, SubjectSummary};
use crate::eval::choice::{Kind, Metric};

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program that made it.
    pub tool: String,
    /// The llama.cpp in it.
    pub llama_cpp: String,
    /// The model.
    pub source: File,
    /// The text that perplexity is of.
    pub text: File,
    /// The task files.
    pub tasks: Vec<File>,
    /// The text that was calibrated on, where the model was made to fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<File>,
    /// How it was measured.
    pub settings: Settings,
    /// The series of conversions.
    pub series: Vec<SeriesTitle>,
    /// The source in llama.cpp's own modes of loading: speed and memory.
    #[serde(rename = "source_ways")]
    pub source_load_modes: Vec<LoadModeSpeed>,
    /// The forms: the source first, then by ratio, each with its plain
    /// alternative.
    pub rows: Vec<Row>,
    /// Quality over ratio by match function; none where one function is all.
    #[serde(rename = "by_match", default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<FunctionCurve>,
    /// Who wins at which ratio.
    pub verdicts: Vec<Verdict>,
    /// Who wins, in a few sentences.
    pub summary: String,
}

/// An input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path, as it was given.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub digest: String,
}

/// How forms are made and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The match functions, with commas between them; absent where none chooses.
    #[serde(rename = "match", default, skip_serializing_if = "String::is_empty")]
    pub function: String,
    /// The ratios, ascending.
    pub ratios: Vec<f64>,
    /// The bytes that files were to have at most, descending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<u64>,
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows that were evaluated at most; null for all.
    pub chunks: Option<u64>,
    /// Questions of each task at most; null for all.
    pub limit: Option<u32>,
    /// The way of scoring that all tasks were forced to; null where their fields
    /// tell.
    pub kind: Option<Kind>,
    /// Tokens of the prompt of the speed test.
    pub n_prompt: u32,
    /// Tokens generated in it.
    pub n_gen: u32,
    /// How often it was repeated.
    pub repetitions: u32,
    /// Threads.
    pub threads: Option<u32>,
    /// The processor.
    pub cpu: String,
}

/// A way to convert the source at any ratio, or to any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Series {
    /// Units share.
    Shared,
    /// Units share, and the layers after them are refitted.
    Repaired,
    /// Units are dropped, and the layers after them are refitted.
    Dropped,
    /// Units share or are dropped, and the layers after them are refitted.
    Auto,
    /// It is made to fit into so many bytes.
    Fitted,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Repaired => "repaired",
            Self::Dropped => "dropped",
            Self::Auto => "auto",
            Self::Fitted => "fitted",
        })
    }
}

/// A series of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesTitle {
    /// Which it is.
    pub name: Series,
    /// The match function that chooses its units; absent where they are chosen by
    /// measuring.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub function: Option<MatchFunction>,
    /// What it does, in a few words.
    pub title: String,
}

/// The quality of one series over the ratio, its units chosen by one match function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCurve {
    /// The match function.
    #[serde(rename = "match")]
    pub function: MatchFunction,
    /// The series.
    pub series: Series,
    /// A point for each ratio, ascending.
    pub points: Vec<FunctionPoint>,
}

/// One ratio of a [`FunctionCurve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionPoint {
    /// The ratio.
    pub ratio: f64,
    /// Its row, which says the rest.
    pub row: usize,
    /// Units that use another unit's weights.
    pub changed: u64,
    /// The perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// It over the source's.
    pub ratio_to_source: f64,
    /// Mean Kullback-Leibler divergence from the source.
    pub kl_mean: f64,
}

/// A file loaded in one mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadModeSpeed {
    /// What it is called.
    pub name: String,
    /// Speed and memory.
    pub speed: Speed,
}

/// What a form is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// The source.
    Source,
    /// Converted by a series.
    Converted,
    /// Stored at lower types.
    Lower,
    /// One type for the embedding and one for the body, rounded.
    Plain,
    /// The same, rounded with an importance matrix.
    Imatrix,
    /// A mixture of llama.cpp's, rounded with an importance matrix.
    Mixture,
}

/// One form of the model, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub form: RowKind,
    /// The series, of a converted form.
    pub series: Option<Series>,
    /// The match function that chose what is shared, where one did.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub function: Option<MatchFunction>,
    /// The ratio, of a converted form.
    pub ratio: Option<f64>,
    /// The bytes that it was to have at most, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it is in words.
    pub label: String,
    /// The row of the plain alternative, which is as small, or of the best of
    /// llama.cpp's files of that size; null where nothing is saved, or where no plain
    /// file gets as small.
    pub rival: Option<usize>,
    /// Perplexity against that row's; null without one.
    pub to_rival: Option<Paired>,
    /// How the file came to be.
    pub made: FileFacts,
    /// How well it predicts the text.
    pub quality: Quality,
    /// How well it answers.
    pub tasks: Vec<TaskScore>,
    /// How fast it is, and what it takes of memory.
    pub speed: Speed,
}

/// A file, and how it came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Its size.
    pub file_bytes: u64,
    /// Its digest.
    pub digest: String,
    /// Units that use another unit's weights, or tensors at another type.
    pub changed: u64,
    /// Units that are dropped.
    pub dropped: u64,
    /// Of so many.
    pub of: u64,
    /// The share of the units that is aliased or dropped, of the body's
    /// weights that is lower, or of the matrices at another type.
    pub share: f64,
    /// What was done, in words: types, repair.
    pub how: String,
}

/// Perplexity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Windows.
    pub chunks: usize,
    /// Against the source; null for the source itself.
    #[serde(rename = "base")]
    pub against: Option<Against>,
}

/// The source's perplexity and the divergence from it, on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// Perplexity over the source's.
    pub ratio: f64,
    /// Its standard error.
    pub ratio_stderr: f64,
    /// Its logarithm.
    pub ln_ratio: f64,
    /// The logarithm's standard error.
    pub ln_ratio_stderr: f64,
    /// Mean Kullback-Leibler divergence.
    pub kl_mean: f64,
    /// Its standard error.
    pub kl_stderr: f64,
    /// 99 of 100 tokens have less.
    pub kl_p99: f64,
    /// How often both find the same token most probable.
    pub same_top: f64,
}

/// Two perplexities on the same tokens: what both find hard is no error of
/// their ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The one over the other.
    pub ratio: f64,
    /// Its standard error.
    pub ratio_stderr: f64,
    /// Its logarithm.
    pub ln_ratio: f64,
    /// The logarithm's standard error.
    pub ln_ratio_stderr: f64,
}

/// The score of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Its name.
    pub task: String,
    /// Which of its accuracies is shown.
    #[serde(default)]
    pub metric: Metric,
    /// Its accuracies.
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// Each subject, where the task has some and they are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<SubjectSummary>,
}

/// Speed and memory, measured in turns with the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Evaluating a prompt; null where it was left out.
    pub prefill: Option<Throughput>,
    /// Generating; null where it was left out.
    pub decode: Option<Throughput>,
    /// Median time to load.
    pub load_ms: f64,
    /// How shared blocks were brought into memory.
    pub resolve: String,
    /// PSS of the weights after generation.
    pub weights_pss_bytes: Option<u64>,
    /// PSS of the whole process.
    pub pss_bytes: Option<u64>,
    /// Bytes of weights that are in memory once although used twice.
    pub shared_bytes: u64,
}

/// Tokens a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Median of the rounds.
    pub tps: f64,
    /// To the source's, as `run` loads it, in the same round: the median.
    pub ratio: f64,
    /// The smallest.
    pub ratio_min: f64,
    /// The largest.
    pub ratio_max: f64,
}

impl SeriesTitle {
    /// Whether a row is one of the series.
    pub fn has(&self, row: &Row) -> bool {
        (row.series, row.function) == (Some(self.name), self.function)
    }
}

impl Report {
    /// Whether several match functions are compared.
    pub fn compares(&self) -> bool {
        let mut functions = self.series.iter().filter_map(|series| series.function);
        let first = functions.next();
        functions.any(|function| Some(function) != first)
    }
}

impl Row {
    /// Whether it is one of llama.cpp's files that one made to fit is held against.
    pub fn is_rival(&self) -> bool {
        matches!(
            self.form,
            RowKind::Plain | RowKind::Imatrix | RowKind::Mixture
        )
    }

    /// Bytes that the file has less than the source's.
    pub fn saved(&self, source: &Row) -> i64 {
        source.made.file_bytes as i64 - self.made.file_bytes as i64
    }

    /// How far the file is from the source, in nats a token; of the source there is nothing.
    pub fn divergence(&self) -> Option<f64> {
        self.quality.against.as_ref().map(|against| against.kl_mean)
    }

    /// Logarithm of the perplexity's ratio to the source's.
    pub fn ln_ratio(&self) -> f64 {
        self.quality.against.as_ref().map_or(0.0, |a| a.ln_ratio)
    }
}

/// Who is better at one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The converted file.
    Converted,
    /// The plain file that is as small.
    Lower,
    /// The best of llama.cpp's files of that size.
    Rival,
    /// Neither: the difference is within its error, or the one that predicts the text better
    /// is further from the source.
    Neither,
    /// The source: the converted file is not smaller.
    Source,
    /// Nobody: no plain file is as small as the converted one.
    Alone,
}

/// The outcome at one ratio: of the conversions, the one that does best against
/// the plain file of its size. Or the outcome at one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The bytes that it was to have at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its row.
    pub row: usize,
    /// Its size.
    pub file_bytes: u64,
    /// What it saves of the source.
    pub saved_bytes: i64,
    /// Who wins.
    pub winner: Winner,
    /// Perplexity over that of the plain alternative; null without one.
    pub ratio_to_rival: Option<f64>,
    /// Its standard error.
    pub ratio_to_rival_stderr: Option<f64>,
    /// The whole outcome in words.
    pub words: String,
}
