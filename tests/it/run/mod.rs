//! `run`, once and in a chat, with real models.

mod once;
mod piped;
mod session;
mod started;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(target_os = "linux")]
mod typed;
