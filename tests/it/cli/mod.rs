//! The program as its users run it: arguments in; exit status, output and
//! files out.

mod oracle;
mod plan_v1;
mod raw;

mod alone;
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
mod odd_models;
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
