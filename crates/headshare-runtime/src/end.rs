//! Ending the process while llama.cpp's threads may be at work.

/// Removes the temporary files of outputs that are being written, and ends the
/// process at once: without the exit handlers of the libraries that this crate
/// links, whose threads may still use what those take away.
pub fn end_process(status: i32) -> ! {
    headshare_files::remove_temporary_files();
    // SAFETY: never returns, and needs nothing of the process's state.
    unsafe { libc::_exit(status) }
}
