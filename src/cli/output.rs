//! Where results and progress go.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use headshare_jobs::Error;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Standard output for results, standard error for the rest.
pub(super) struct Output {
    quiet: bool,
}

impl Output {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether only warnings and errors go to stderr.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints `result` as JSON, or as the text that `render` makes of it.
    pub(super) fn result<T: Serialize>(
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
    pub(super) fn result_beside<T: Serialize>(
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
    pub(super) fn text(&self, mut text: String) -> Result<(), Error> {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Prints `bytes`; whether anybody reads them matters as little as for
    /// [`text`](Self::text).
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Standard output without a buffer, for large pieces.
    pub(super) fn stream(&self) -> io::Result<File> {
        Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// A remark for people, on stderr.
    pub(super) fn remark(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A warning, on stderr.
    pub(super) fn warning(&self, text: &str) {
        let _ = writeln!(io::stderr(), "warning: {text}");
    }

    /// A progress bar of `total` steps, on stderr if that is a terminal.
    pub(super) fn bar(&self, what: &'static str, total: u64, bytes: bool) -> ProgressBar {
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

const CANNOT_WRITE: &str = "standard output: cannot write";

/// How writing to standard output ended. A reader that is gone had enough.
pub(super) fn written(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| Error::failed(error).about(CANNOT_WRITE)),
    }
}

/// `text` with control characters but line ends escaped: what stands in a file
/// must not command the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut line, c| {
        if c.is_control() && c != '\n' {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// `n` with thin groups of three digits: `98,362,432`.
pub(super) fn grouped(n: impl Into<i128>) -> String {
    let n = n.into();
    let digits = n.unsigned_abs().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if n < 0 { format!("-{text}") } else { text }
}

/// `part` of `whole` in percent: `3.2%`.
pub(super) fn percent(part: i64, whole: u64) -> String {
    if whole == 0 {
        return "0.0%".to_owned();
    }
    format!("{:.1}%", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-98_362_432, "-98,362,432"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn percentages_have_one_digit() {
        assert_eq!(percent(32, 1000), "3.2%");
        assert_eq!(percent(-1, 100), "-1.0%");
        assert_eq!(percent(1, 0), "0.0%");
    }
}
