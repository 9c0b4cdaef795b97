//! One text, gone on from once.

use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use headshare_jobs::{Bar, Continuation, Error, Generate, Ui, Unit};
use headshare_runtime::StopReason;

use super::stream::Stream;
use crate::process::output::{Output, cannot_write};

/// Does the job, and shows the text as it comes, or one JSON object.
pub(super) fn generate(job: &Generate, json: bool, out: &Output) -> Result<Continuation, Error> {
    let done = if json {
        let done = job.run(out)?;
        out.result(&done, true, |_| String::new())?;
        done
    } else {
        let streaming = Streaming {
            out,
            stream: Mutex::new(Stream::new()),
        };
        let done = job.run(&streaming)?;
        streaming.with(Stream::end_line).map_err(cannot_write)?;
        done
    };
    if done.stop == StopReason::ContextFull {
        let details = &done.details;
        let full = format!("the context of {} tokens is full", details.n_ctx);
        out.remark(&match details.n_positions {
            Some(n) if n == details.n_ctx => full + ", and the model knows no larger",
            _ => full + "; -c makes it larger",
        });
    }
    Ok(done)
}

/// This terminal, with the text that is generated on standard output.
struct Streaming<'o> {
    out: &'o Output,
    stream: Mutex<Stream>,
}

impl Streaming<'_> {
    fn with<T>(&self, show: impl FnOnce(&mut Stream) -> T) -> T {
        show(&mut self.stream.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ui for Streaming<'_> {
    fn remark(&self, text: &str) {
        Ui::remark(self.out, text);
    }

    fn warning(&self, text: &str) {
        Ui::warning(self.out, text);
    }

    fn bar(&self, what: &'static str, total: u64, unit: Unit) -> Box<dyn Bar> {
        Ui::bar(self.out, what, total, unit)
    }

    fn stop(&self) -> Arc<AtomicBool> {
        self.out.stop()
    }

    fn text(&self, piece: &str) -> io::Result<bool> {
        self.with(|stream| stream.show(piece))
    }

    fn stdout(&self) -> io::Result<File> {
        self.out.stdout()
    }

    fn worker(&self) -> io::Result<Command> {
        self.out.worker()
    }
}
