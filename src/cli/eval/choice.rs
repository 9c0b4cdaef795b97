//! `eval choice`: how well a model answers multiple-choice questions.

use std::path::PathBuf;

use clap::ValueEnum;
use headshare_jobs::{Choice, Error};

use super::common::{Common, Fast};
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::cli::{Exit, stdio};
use crate::eval::choice::Kind;
use crate::process::output::Output;
use crate::render::eval::choice::render;

/// How well a model answers multiple-choice questions.
///
/// Each choice is scored by the log-probability that the model gives it after
/// the question, in the conventions of lm-evaluation-harness. `accuracy` takes
/// the sum over the choice's tokens, `accuracy_norm` divides that sum by the
/// choice's length in characters. Both have standard errors.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The fields of the first row tell what a file is:

- {query, choices, gold};
- {context_options, continuation, gold}: WinoGrande's partial scoring;
- {context, continuation} or {text}: LAMBADA. Accuracy is how often the model
  itself would have written the last word. The result also has a perplexity;
- PIQA, OpenBookQA, BoolQ, ARC, HellaSwag, SIQA, WinoGrande and RACE (passage,
  question, options) as they are published;
- OpenBookQA with its fact (fact1), RTE, AX-b, AX-g, CMNLI, OCNLI, CSL and
  TNEWS as they are published;
- the zip files of MMLU, C-Eval and CMMLU, with 5 examples from dev. The result
  has each subject and the mean;
- rows of MMLU {question, choices, answer, subject}, without examples.

The labels of PIQA and SIQA are published apart: put the label into the row.
OpenBookQA as its authors publish it ({question: {stem, choices}, answerKey})
has the fields of ARC: it needs --kind choices.

A row's query is used as it is. If a line of it begins with `Question:` and it
does not end with `Answer:`, a line with `Answer:` is added. --kind choices
never adds anything. --kind question adds `Question: ` and `Answer:` if they
are missing.

Items longer than the context lose tokens at their left end, as in
lm-evaluation-harness. The result says how many items did.

Models that keep a state instead of a KV cache (Mamba, RWKV and hybrids) are
always evaluated choice by choice.")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// File with questions: JSON lines, a JSON array, or the zip file of MMLU,
    /// C-Eval or CMMLU; or a folder of such files as RACE has; - reads standard
    /// input. Can be given several times.
    #[arg(long = "task", value_name = "FILE", required = true)]
    tasks: Vec<PathBuf>,
    /// How to score, if the fields of the file do not tell.
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Use only the first N questions of each task, and of each subject.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Most tokens of context for an item; 0, the default, means what the model
    /// was trained with.
    #[arg(short, long, value_name = "N", value_parser = context_size(2..=1 << 24))]
    ctx_size: Option<u32>,
    /// Evaluate every choice by itself. This is slow, and serves to check the
    /// batched scores.
    #[arg(long)]
    unbatched: bool,
    #[command(flatten)]
    fast: Fast,
    #[command(flatten)]
    common: Common,
}

/// How items are scored; names of tasks stand for what is usual for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum KindArg {
    /// The query as it is, then each choice.
    #[value(aliases = ["openbookqa", "hellaswag", "race"])]
    Choices,
    /// `Question: ...`, a line with `Answer:`, then each choice.
    #[value(aliases = ["piqa", "boolq", "arc", "siqa"])]
    Question,
    /// The choices are listed as A, B, ..., and the letters are scored.
    #[value(aliases = ["mmlu", "ceval"])]
    Letters,
    /// Each of several contexts, then one continuation, which is scored.
    #[value(aliases = ["winogrande"])]
    Partial,
    /// Whether the model itself would write the continuation.
    #[value(aliases = ["lambada"])]
    LastWord,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Choices => Self::Choices,
            KindArg::Question => Self::Question,
            KindArg::Letters => Self::Letters,
            KindArg::Partial => Self::Partial,
            KindArg::LastWord => Self::LastWord,
        }
    }
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.common.begin(out);
        stdio::check_inputs(self.tasks.iter().map(|path| ("--task", path.as_path())))?;
        let json = self.common.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> Choice {
        Choice {
            file: self.model.path().to_owned(),
            tasks: self.tasks,
            kind: self.kind.map(Kind::from),
            limit: self.limit,
            ctx_size: self.ctx_size.unwrap_or(0),
            unbatched: self.unbatched,
            resolve: self.common.resolve,
            fast: self.fast.fast,
            threads: self.common.threads.threads,
        }
    }
}
