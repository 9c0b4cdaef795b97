//! `run`, once and in a chat, with the models that `scripts/fetch-models.sh`
//! fetches.

mod once;
mod piped;
mod session;
mod support;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(target_os = "linux")]
mod typed;
