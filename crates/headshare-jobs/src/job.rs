//! All kinds of jobs, and what comes of them.

use headshare_convert::convert::Verification;
use headshare_eval::analyze::attention::Attention;
use headshare_eval::analyze::predictions::Predictions;
use headshare_eval::analyze::ratios::Ratios;
use headshare_eval::analyze::weights::Weights;
use headshare_eval::inspect::Inspection;
use serde::{Deserialize, Serialize};

use crate::{
    AnalyzeAttention, AnalyzePredictions, AnalyzeRatios, AnalyzeWeights, Bench, BenchRow, Choice,
    ChoiceFigures, Continuation, ContinuePrompts, ContinuedPrompts, Convert, Converted, Error,
    Expand, Expanded, Generate, Inspect, MakePlan, MakeReport, Measure, Measured, Perplexity,
    PerplexityFigures, PlanToFit, Planned, Ui, Verify,
};

/// A job of any kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Job {
    /// Chooses which heads would share.
    Plan(MakePlan),
    /// Chooses what makes a model fit into so many bytes.
    PlanToFit(PlanToFit),
    /// Writes a smaller file.
    Convert(Convert),
    /// Writes the plain GGUF that a converted file stands for.
    Expand(Expand),
    /// Checks a converted file.
    Verify(Verify),
    /// Says what a GGUF file holds.
    Inspect(Inspect),
    /// Says how alike the weights of all heads are.
    AnalyzeWeights(AnalyzeWeights),
    /// Says how alike heads attend.
    AnalyzeAttention(AnalyzeAttention),
    /// Says which layers of converted files share.
    AnalyzeRatios(AnalyzeRatios),
    /// Says how well the divergence of plans is predicted.
    AnalyzePredictions(AnalyzePredictions),
    /// Measures how well a model predicts a text.
    Perplexity(Perplexity),
    /// Measures how well a model answers multiple-choice questions.
    Choice(Choice),
    /// Compares a model's continuations of prompts with references.
    ContinuePrompts(ContinuePrompts),
    /// Generates text.
    Generate(Generate),
    /// Measures speed, load time and memory, of several files side by side.
    Bench(Bench),
    /// Measures one file loaded in one way, once.
    Measure(Measure),
    /// Measures what sharing does to a model, next to what else could be done.
    Report(MakeReport),
    /// Trains a model whose heads share, or shall share.
    #[cfg(feature = "train")]
    Train(Box<crate::TrainModel>),
}

/// What came of a job; as JSON it is what the program prints for `--json`.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Outcome {
    /// Of [`Job::Plan`] and [`Job::PlanToFit`].
    Plan(Box<Planned>),
    /// Of [`Job::Convert`].
    Convert(Box<Converted>),
    /// Of [`Job::Expand`].
    Expand(Expanded),
    /// Of [`Job::Verify`].
    Verify(Verification),
    /// Of [`Job::Inspect`].
    Inspect(Box<Inspection>),
    /// Of [`Job::AnalyzeWeights`].
    AnalyzeWeights(Box<Weights>),
    /// Of [`Job::AnalyzeAttention`].
    AnalyzeAttention(Box<Attention>),
    /// Of [`Job::AnalyzeRatios`].
    AnalyzeRatios(Box<Ratios>),
    /// Of [`Job::AnalyzePredictions`].
    AnalyzePredictions(Box<Predictions>),
    /// Of [`Job::Perplexity`].
    Perplexity(Box<PerplexityFigures>),
    /// Of [`Job::Choice`].
    Choice(Box<ChoiceFigures>),
    /// Of [`Job::ContinuePrompts`].
    ContinuePrompts(Box<ContinuedPrompts>),
    /// Of [`Job::Generate`].
    Generate(Box<Continuation>),
    /// Of [`Job::Bench`].
    Bench(Vec<BenchRow>),
    /// Of [`Job::Measure`].
    Measure(Box<Measured>),
    /// Of [`Job::Report`].
    Report(Box<headshare_eval::report::Report>),
    /// Of [`Job::Train`].
    #[cfg(feature = "train")]
    Train(Box<crate::TrainedModel>),
}

impl Job {
    /// Does it; `ui` is told how far it is.
    ///
    /// # Errors
    /// [`Error`]; no output was written then.
    pub fn run(&self, ui: &dyn Ui) -> Result<Outcome, Error> {
        Ok(match self {
            Self::Plan(job) => Outcome::Plan(Box::new(job.run(ui)?)),
            Self::PlanToFit(job) => Outcome::Plan(Box::new(job.run(ui)?)),
            Self::Convert(job) => Outcome::Convert(Box::new(job.run(ui)?)),
            Self::Expand(job) => Outcome::Expand(job.run(ui)?),
            Self::Verify(job) => Outcome::Verify(job.run(ui)?),
            Self::Inspect(job) => Outcome::Inspect(Box::new(job.run(ui)?)),
            Self::AnalyzeWeights(job) => Outcome::AnalyzeWeights(Box::new(job.run(ui)?)),
            Self::AnalyzeAttention(job) => Outcome::AnalyzeAttention(Box::new(job.run(ui)?)),
            Self::AnalyzeRatios(job) => Outcome::AnalyzeRatios(Box::new(job.run(ui)?)),
            Self::AnalyzePredictions(job) => Outcome::AnalyzePredictions(Box::new(job.run(ui)?)),
            Self::Perplexity(job) => Outcome::Perplexity(Box::new(job.run(ui)?)),
            Self::Choice(job) => Outcome::Choice(Box::new(job.run(ui)?)),
            Self::ContinuePrompts(job) => Outcome::ContinuePrompts(Box::new(job.run(ui)?)),
            Self::Generate(job) => Outcome::Generate(Box::new(job.run(ui)?)),
            Self::Bench(job) => Outcome::Bench(job.run(ui)?),
            Self::Measure(job) => Outcome::Measure(Box::new(job.run(ui)?)),
            Self::Report(job) => Outcome::Report(Box::new(job.run(ui)?)),
            #[cfg(feature = "train")]
            Self::Train(job) => Outcome::Train(Box::new(job.run(ui)?)),
        })
    }

    /// Whether it shares its work among threads of this process that
    /// [`start_pool`](crate::start_pool) can start before.
    pub fn shares_its_work(&self) -> bool {
        !matches!(self, Self::Inspect(_) | Self::Bench(_) | Self::Measure(_))
    }
}
