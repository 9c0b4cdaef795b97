//! How good a model is. One file a measure; `subject` is what they have in common.

mod choice;
mod generate;
mod perplexity;
mod subject;

pub use choice::{Choice, ChoiceFigures, ChoiceResults, SeveralTasks, TaskFigures, item_context};
pub use generate::{ContinuePrompts, ContinuedPrompts};
pub use perplexity::{AgainstBase, Perplexity, PerplexityFigures};
pub use subject::MeasuredFile;
