//! The program as its users run it: arguments in; exit status, output and
//! files out.
//!
//! One binary, because each links llama.cpp. The real models are fetched by
//! scripts/fetch-models.sh.

#[macro_use]
mod support;
mod oracle;
#[path = "../plan_v1/mod.rs"]
mod plan_v1;
mod raw;

mod analyze;
mod bad_files;
mod bad_input;
mod bad_tables;
mod damaged;
mod duplicates;
mod edits;
mod inspect;
mod interrupted;
mod limited;
mod outputs;
mod plan_files;
mod ratio;
mod round_trip;
mod same_plan;
mod stdio;
mod unsupported;
mod unusable;
mod usage;
mod verify;
