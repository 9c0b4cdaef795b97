//! What a job shows while it runs, on this terminal.

use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use headshare_jobs::{Bar, Ui, Unit};
use indicatif::ProgressBar;

use super::interrupt;
use super::output::{Output, printable};

impl Ui for Output {
    fn remark(&self, text: &str) {
        Self::remark(self, &printable(text));
    }

    fn warning(&self, text: &str) {
        Self::warning(self, &printable(text));
    }

    fn bar(&self, what: &'static str, total: u64, unit: Unit) -> Box<dyn Bar> {
        Box::new(Shown(Self::bar(self, what, total, unit == Unit::Bytes)))
    }

    fn stop(&self) -> Arc<AtomicBool> {
        interrupt::stop_flag()
    }

    fn stdout(&self) -> io::Result<File> {
        self.stream()
    }

    fn worker(&self) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(self.is_quiet().then_some("-q")).arg("worker");
        Ok(command)
    }
}

/// A bar that is gone when it is over.
struct Shown(ProgressBar);

impl Bar for Shown {
    fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }

    fn say(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
