//! Where results and progress go.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use headshare_jobs::Error;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Standard output for results, standard error for the rest.
pub(crate) struct Output {
    quiet: bool,
}

impl Output {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether only warnings and errors go to stderr.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints `result` as JSON, or as the text that `render` makes of it.
    pub(crate) fn result<T: Serialize>(
        &self,
        result: &T,
        json: bool,
        render: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        self.text(if json {
            serde_json::to_string(result).map_err(Error::failed)?
        } else {
            printable(&render(result))
        })
    }

    /// Prints `result` as [`result`](Self::result) does, or in words on stderr
    /// where something else takes standard output.
    pub(crate) fn result_beside<T: Serialize>(
        &self,
        taken: bool,
        result: &T,
        json: bool,
        render: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        if taken {
            self.remark(printable(&render(result)).trim_end());
            return Ok(());
        }
        self.result(result, json, render)
    }

    /// Prints `text` as it is, as lines.
    ///
    /// A reader that is gone had enough: that is no error, and does not change
    /// what the program found out.
    pub(crate) fn text(&self, mut text: String) -> Result<(), Error> {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Prints `bytes`; whether anybody reads them matters as little as for
    /// [`text`](Self::text).
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Standard output without a buffer, for large pieces.
    pub(crate) fn stream(&self) -> io::Result<File> {
        Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// A remark for people, on stderr.
    pub(crate) fn remark(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A warning, on stderr.
    pub(crate) fn warning(&self, text: &str) {
        let _ = writeln!(io::stderr(), "warning: {text}");
    }

    /// A progress bar of `total` steps, on stderr if that is a terminal.
    pub(crate) fn bar(&self, what: &'static str, total: u64, bytes: bool) -> ProgressBar {
        let target = if self.quiet || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let template = if bytes {
            "{prefix} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}"
        } else {
            "{prefix} [{bar:32}] {percent}% ETA {eta} {msg}"
        };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        ProgressBar::with_draw_target(Some(total), target)
            .with_style(style.progress_chars("=> "))
            .with_prefix(what)
    }
}

/// What is said when standard output cannot be written to.
pub(crate) fn cannot_write(error: io::Error) -> Error {
    Error::failed(error).about("standard output: cannot write")
}

/// How writing to standard output ended. A reader that is gone had enough.
fn written(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(cannot_write),
    }
}

/// `text` with control characters but line ends escaped: what stands in a file
/// must not command the terminal.
pub(crate) fn printable(text: &str) -> String {
    escaped_but(text, &['\n'])
}

/// `text` with control characters escaped, but for those in `kept`.
pub(crate) fn escaped_but(text: &str, kept: &[char]) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_control() && !kept.contains(&c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}
