//! The threads among which jobs share their work.

use std::num::NonZero;

use headshare_runtime::memory;
use headshare_runtime::threads::THREAD_BYTES;

use crate::Error;

/// Starts the threads among which jobs share their work, where a job would
/// otherwise start them itself and could not say that there cannot be as many.
/// To be called once, at the program's start.
///
/// # Errors
/// When there cannot be as many as processors.
pub fn start_pool() -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    memory::require(threads * THREAD_BYTES);
    let pool = rayon::ThreadPoolBuilder::new().build_global();
    pool.map_err(|error| {
        Error::failed(error).about("cannot start as many threads as there are processors")
    })
}
