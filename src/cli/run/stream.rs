//! Standard output while text streams to it.

use std::io::{self, IsTerminal, Write};

use crate::process::output::escaped_but;

/// Shows text as it comes.
pub(super) struct Stream {
    terminal: bool,
    gone: bool,
    in_line: bool,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            gone: false,
            in_line: false,
        }
    }

    /// Shows a piece; false when the reader is gone, who then had enough.
    pub(super) fn show(&mut self, piece: &str) -> io::Result<bool> {
        if self.gone || piece.is_empty() {
            return Ok(!self.gone);
        }
        self.in_line = !piece.ends_with('\n');
        let mut stdout = io::stdout().lock();
        let written = if self.terminal {
            stdout.write_all(tame(piece).as_bytes())
        } else {
            stdout.write_all(piece.as_bytes())
        };
        match written.and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.gone = true,
            result => result?,
        }
        Ok(!self.gone)
    }

    /// Ends the line, if one was begun.
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        if self.in_line {
            self.show("\n")?;
        }
        Ok(())
    }

    /// Whether nobody reads any longer.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }
}

/// Control characters but line ends and tabs escaped: what a model says must
/// not command the terminal.
fn tame(text: &str) -> String {
    escaped_but(text, &['\n', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_does_not_command_the_terminal() {
        assert_eq!(tame("a\tb\n\u{fc}"), "a\tb\n\u{fc}");
        assert_eq!(tame("\u{1b}[2J\r"), "\\u{1b}[2J\\r");
    }
}
