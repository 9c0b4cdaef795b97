//! Where results and progress go.

use std::io::{self, IsTerminal, Write};

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

    /// Prints `result` as JSON, or as the text that `render` makes of it.
    pub(super) fn result<T: Serialize>(
        &self,
        result: &T,
        json: bool,
        render: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let mut text = if json {
            serde_json::to_string(result)?
        } else {
            render(result)
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
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
            "{prefix} [{bar:32}] {percent}% ETA {eta}"
        };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        ProgressBar::with_draw_target(Some(total), target)
            .with_style(style.progress_chars("=> "))
            .with_prefix(what)
    }
}
