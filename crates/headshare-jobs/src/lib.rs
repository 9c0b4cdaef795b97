//! Everything that headshare-gguf does, as values: a [`Job`] says what is to be
//! done, its [`Outcome`] what came of it, an [`Error`] why nothing did.
//!
//! ```no_run
//! use headshare_jobs::{Expand, Quiet};
//!
//! # fn main() -> Result<(), headshare_jobs::Error> {
//! let expand = Expand {
//!     file: "converted.gguf".into(),
//!     output: "plain.gguf".into(),
//!     force: false,
//! };
//! println!("{} bytes", expand.run(&Quiet)?.bytes);
//! # Ok(())
//! # }
//! ```
//!
//! Each kind of job is a struct with documented fields and a `run` of its own that
//! gives its own kind of outcome; [`Job`] and [`Outcome`] are all of them. Jobs and
//! outcomes are plain data: they can be written as JSON, which for outcomes is what
//! the program prints for `--json`, and read again, which is how a [`worker`]
//! process is told what to do. What a person should see meanwhile goes to a [`Ui`].
//!
//! A path `-` stands for standard input where a file is read, and for standard
//! output where one is written.
#![forbid(unsafe_code)]

mod analyze;
mod bench;
mod command_line;
mod context;
mod convert;
mod error;
mod eval;
mod expand;
mod generate;
mod inspect;
mod job;
mod json;
mod load;
mod output;
mod path;
mod plan;
mod pool;
mod report;
mod stdin;
mod text;
#[cfg(feature = "train")]
mod train;
mod ui;
mod verify;
pub mod worker;

pub use analyze::{AnalyzeAttention, AnalyzeRatios, AnalyzeWeights};
pub use bench::{Bench, BenchRow, LoadMode, LoadedModel, Measure, Measured};
pub use convert::fit::plan::PlanToFit;
pub use convert::fit::predictions::AnalyzePredictions;
pub use convert::{
    Budget, Calibration, Change, Changes, Convert, Converted, FellBack, FileSize, InMemory,
    MadeToFit, OfMemory, OfType, OtherSize, Quantization, Quantized, Removal, Retyped, Stats,
    Tried, With, read_text,
};
pub use error::{Advice, Classify, Context, Error, Kind};
pub use eval::{
    AgainstBase, Choice, ChoiceFigures, ChoiceResults, ContinuePrompts, ContinuedPrompts,
    MeasuredFile, Perplexity, PerplexityFigures, SeveralTasks, TaskFigures, item_context,
};
pub use expand::{Expand, Expanded};
pub use generate::{
    Continuation, Details, Generate, ModelInMemory, Setup, ThreadTokens, said_of, sampling_in,
};
pub use headshare_eval::bench::{Elapsed, SpeedTest};
pub use inspect::Inspect;
pub use job::{Job, Outcome};
pub use json::from_json;
pub use load::{Memory, Resolve, Resolved};
pub use plan::{DuplicateCount, MakePlan, Planned, Sizes};
pub use pool::start_pool;
pub use report::{Fits, MakeReport, MeasuredChoice, PICTURE};
pub use text::{read_input, without_line_end};
#[cfg(feature = "train")]
pub use train::{
    Checkpoint, Method, PairDistance, TrainModel, TrainOn, TrainedModel, TrainingSpeed,
};
pub use ui::{Bar, Quiet, Ui, Unit};
pub use verify::Verify;
