//! What a person sees of a job while it runs.

use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where a job tells how far it is. All methods have defaults that do nothing, so
/// that [`Quiet`] is a whole implementation.
pub trait Ui: Sync {
    /// Something worth knowing, in a line.
    fn remark(&self, _text: &str) {}

    /// Something that may make the outcome worth less, in a line.
    fn warning(&self, _text: &str) {}

    /// Begins a stretch of work of `total` steps.
    fn bar(&self, _what: &'static str, _total: u64, _unit: Unit) -> Box<dyn Bar> {
        Box::new(Quiet)
    }

    /// A flag that is set when the job is to end early with what it has. A job that
    /// asks for it ends soon after it is set.
    fn stop(&self) -> Arc<AtomicBool> {
        Arc::default()
    }

    /// Takes the next piece of a text that is being generated; false when nobody
    /// reads any longer.
    ///
    /// # Errors
    /// When it cannot be shown.
    fn text(&self, _piece: &str) -> io::Result<bool> {
        Ok(true)
    }

    /// Standard output, without a buffer, for a job whose output is `-`.
    ///
    /// # Errors
    /// Where there is none.
    fn stdout(&self) -> io::Result<File> {
        Err(io::Error::other("there is no standard output here"))
    }

    /// Starts a process that calls [`worker::serve`](crate::worker::serve), for
    /// jobs that have others do parts of them.
    ///
    /// # Errors
    /// Where there is no such program.
    fn worker(&self) -> io::Result<Command> {
        Err(io::Error::other("there are no worker processes here"))
    }
}

/// A stretch of work; it is over when this is dropped.
pub trait Bar: Sync {
    /// How many steps are done.
    fn set(&self, _done: u64) {}

    /// How many steps there are, where that was not known before.
    fn set_total(&self, _total: u64) {}

    /// What has been found so far, in a few words.
    fn say(&self, _text: &str) {}
}

impl dyn Bar + '_ {
    /// How much is done, of a bar of 1000 steps.
    pub fn part(&self, done: f64) {
        self.set((done * 1000.0) as u64);
    }
}

/// What the steps of a stretch of work are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Anything else: only the part that is done says something.
    Parts,
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Ui for Quiet {}
impl Bar for Quiet {}
