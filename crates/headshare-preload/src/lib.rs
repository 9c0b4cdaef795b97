//! What `exec` puts into programs that nobody here built: the preload library
//! (`c/hooks.c` says what it does) and the plan that it is handed.
//!
//! The plan is made here, from files that are validated, so that the library
//! parses nothing that could be wrong. Both reach the program without leaving
//! anything behind: the plan as a sealed memory file, the library as a private
//! file that all runs of this version share.
#![forbid(unsafe_code)]

mod layout;
mod library;
#[cfg(target_os = "linux")]
mod place;
mod plan;

pub use library::LIBRARY;
#[cfg(target_os = "linux")]
pub use place::{Handover, hand_over};
pub use plan::{FileIdentity, HandedPlan};
