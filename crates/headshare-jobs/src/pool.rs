//! The threads among which jobs share their work.

use std::num::NonZero;

use headshare_runtime::memory;

use crate::Error;

/// Addresses that a thread takes before it does anything: a stack of 2 MiB, and what Rust and
/// the C library set up for it. Where that is not there, they end the process.
const A_THREAD: usize = 3 << 20;

/// Starts the threads among which jobs share their work, where a job would
/// otherwise start them itself and could not say that there cannot be as many.
/// To be called once, at the program's start.
///
/// # Errors
/// When there cannot be as many as processors.
pub fn start_pool() -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    memory::require(threads * A_THREAD);
    let pool = rayon::ThreadPoolBuilder::new().build_global();
    pool.map_err(|error| {
        Error::failed(error).about("cannot start as many threads as there are processors")
    })
}
