//! Multiple choice by log-likelihood, in the conventions of
//! lm-evaluation-harness (its version 0.4.13 was read for them): how a question
//! becomes a context and its continuations, how both become tokens, and what
//! the numbers mean.
//!
//! - `accuracy`: the gold choice has the greatest sum of log-probabilities of
//!   its tokens, the first of several equal ones counting as the greatest.
//! - `accuracy_norm`: the same with each sum divided by the length of the
//!   choice in characters, without the space in front of it.
//! - `stderr`: the sample standard deviation over the square root of the number
//!   of items.
//!
//! A [`Task`] is a file that was read; [`encode`] turns its items into tokens,
//! [`schedule`] says which of them are evaluated together, [`score`] evaluates
//! them, and [`summary`] counts.

mod forms;
mod item;
mod labelled;
mod question;
mod read;
mod subject_names;
mod subjects;

pub mod encode;
pub mod schedule;
pub mod score;
pub mod summary;

pub use encode::ChoiceError;
pub use item::{Item, Kind, Metric, Origin, SHOTS, Subject, Task};
