//! How many threads evaluate by default, and what they took of the processor.

use std::io;
use std::thread::JoinHandle;

mod governor;
mod others;
mod processor;
mod team;

pub use governor::ThreadUse;
pub(crate) use governor::{Governor, note_start};
pub use processor::{physical_cores, processor_name, processor_time};
pub(crate) use team::Team;

/// Starts a thread; the standard library's own function panics where it cannot.
///
/// # Errors
/// When the system has no more threads, or no memory for one.
pub fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().spawn(work);
    thread.map_err(|e| io::Error::new(e.kind(), format!("cannot start a thread: {e}")))
}
