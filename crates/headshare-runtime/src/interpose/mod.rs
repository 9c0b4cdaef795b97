//! What this crate takes over from the process: functions of the C library that
//! it defines itself. The crate's documentation says which, why, and what a
//! program that links it should know.
//!
//! Everything that is not the crate's business goes on to where it would have
//! gone. These functions can be called from anywhere, while a lock is held or in
//! a thread that ends, so they take no lock; and only what is noted for a load
//! in the calling thread allocates.

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod files;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod memory;
mod taken;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) use files::Registration;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) use taken::note_refused;
pub(crate) use taken::record;
