//! What tests of more than one module stand on, each piece once.

#[macro_use]
mod program;
mod alone;
mod data;
mod files;
mod models;
mod wait;

pub use alone::{alone, take_turns};
pub use data::{data, questions, root, shared, valley};
pub use files::{Folder, archive, assert_bytes, assert_same, read, svg_lines};
pub use headshare_testmodels::needs;
pub use models::{GEMMA, SMOLLM2, gemma, preset, small, smollm2, written};
pub use program::{PROGRAM, Ran, json, program, run, text};
#[cfg(target_os = "linux")]
pub use wait::wait_until_worked;
pub use wait::{PATIENCE, wait_until};
