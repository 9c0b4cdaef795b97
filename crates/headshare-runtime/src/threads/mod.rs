//! How many threads evaluate by default, and what they took of the processor.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use crate::memory;

mod governor;
mod others;
mod processor;
mod team;

pub use governor::ThreadUse;
pub(crate) use governor::{Governor, note_start};
pub use processor::{physical_cores, processor_name, processor_time};
pub(crate) use team::Team;

/// Addresses that a thread takes before it does anything: a stack of 2 MiB, and what Rust and
/// the C library set up for it. Where that is not there, they end the process.
pub const THREAD_BYTES: usize = 3 << 20;

/// Starts a thread, and waits until it runs; the standard library's own function panics where it
/// cannot.
///
/// # Errors
/// When the system has no more threads, or no memory for one.
pub fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    memory::require(THREAD_BYTES);
    let (here, is_here) = sync_channel(1);
    let thread = std::thread::Builder::new().spawn(move || {
        // Nobody waits for this any more where the receiver is gone.
        let _ = here.send(());
        work()
    });
    let thread =
        thread.map_err(|e| io::Error::new(e.kind(), format!("cannot start a thread: {e}")))?;
    // While it starts, nothing else is to use up its memory.
    let _ = is_here.recv();
    Ok(thread)
}
