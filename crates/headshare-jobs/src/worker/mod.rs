//! A job done by a process of its own, so that no measure disturbs another: a
//! [`Job`](crate::Job) as a line of JSON on stdin, its outcome or why there is none
//! on stdout.
//!
//! Nothing more is written to a worker's stdin, but its other end stays open as long
//! as someone waits: when it closes, the worker ends, too, so that none outlives the
//! process that started it.

mod ask;
mod said;
mod serve;

pub(crate) use ask::{Named, Work, ask};
pub use said::{Failed, tell};
pub use serve::serve;
