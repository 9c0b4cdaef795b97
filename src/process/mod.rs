//! What the program is to the system: its standard streams, the signals and the
//! shortages that end it, and its exit status.

pub(crate) mod abort;
mod exit;
pub(crate) mod failure;
pub(crate) mod interrupt;
pub(crate) mod output;
pub(crate) mod shortage;
mod ui;

pub use exit::Exit;
