//! How many threads evaluate by default, and what they took of the processor.

mod governor;
mod others;
mod processor;
mod team;

pub use governor::ThreadUse;
pub(crate) use governor::{Governor, note_start};
pub use processor::{physical_cores, processor_time};
pub(crate) use team::Team;
