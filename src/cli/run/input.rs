//! Reading the user's messages: an edited line of a terminal, or plain lines.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, BufRead, IsTerminal, Write};

use headshare_jobs::Error;
use rustyline::completion::Completer;
use rustyline::config::Config;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Editor, Helper};

use crate::input::text::without_mark;

const PROMPT: &str = "> ";
const CONTINUED: &str = ". ";
/// Bold and green, as llama-cli shows what is typed.
const TYPED: &str = "\x1b[1;32m";
const USUAL: &str = "\x1b[0m";

/// Where messages come from.
pub(super) struct Input {
    reader: Reader,
    /// Ctrl-C on an empty line ends the program.
    ready_to_end: bool,
    /// No line was read yet.
    at_begin: bool,
}

enum Reader {
    Terminal(Box<Editor<Typed, MemHistory>>),
    Lines {
        /// Someone types, who wants to see when.
        prompt: bool,
    },
}

enum Line {
    Text(String),
    /// Ctrl-C.
    Cancelled {
        typed: bool,
    },
    End,
}

impl Input {
    /// Lines are edited, and coloured, where both ends are a terminal.
    pub(super) fn new(color: bool) -> Result<Self, Error> {
        let typing = io::stdin().is_terminal();
        let reader = if typing && io::stdout().is_terminal() {
            let config = Config::builder().auto_add_history(false).build();
            let history = MemHistory::with_config(&config);
            let mut editor = Editor::with_history(config, history).map_err(|error| {
                Error::failed(error).about("cannot edit lines on this terminal")
            })?;
            editor.set_helper(Some(Typed {
                color,
                ..Typed::default()
            }));
            Reader::Terminal(Box::new(editor))
        } else {
            Reader::Lines { prompt: typing }
        };
        Ok(Self {
            reader,
            ready_to_end: false,
            at_begin: true,
        })
    }

    /// Shows a message that was not typed here, where a person reads along.
    pub(super) fn show(&mut self, message: &str) {
        match &mut self.reader {
            Reader::Terminal(editor) => {
                editor.add_history_entry(message).ok();
                let shown = match editor.helper() {
                    Some(typed) => typed.highlight(message, 0),
                    None => message.into(),
                };
                let _ = writeln!(io::stdout(), "{PROMPT}{shown}");
            }
            Reader::Lines { prompt: true } => {
                let _ = writeln!(io::stderr(), "{PROMPT}{message}");
            }
            Reader::Lines { prompt: false } => {}
        }
    }

    /// Whether a person types the messages, who can try again.
    pub(super) fn is_interactive(&self) -> bool {
        !matches!(self.reader, Reader::Lines { prompt: false })
    }

    /// An answer was stopped by Ctrl-C: the next one ends the program.
    pub(super) fn answer_was_stopped(&mut self) {
        self.ready_to_end = true;
    }

    /// The next message; `None` at the end of them. A line that ends with a
    /// backslash is continued by the next.
    pub(super) fn message(&mut self) -> Result<Option<String>, Error> {
        let mut message = String::new();
        let mut begun = false;
        loop {
            match self.line(if begun { CONTINUED } else { PROMPT })? {
                Line::Text(line) => {
                    self.ready_to_end = false;
                    if let Some(line) = line.strip_suffix('\\') {
                        message += line;
                        message.push('\n');
                        begun = true;
                        continue;
                    }
                    message += &line;
                    break;
                }
                Line::Cancelled { typed } if typed || begun => {
                    message.clear();
                    begun = false;
                    self.ready_to_end = false;
                }
                Line::Cancelled { .. } if self.ready_to_end => return Ok(None),
                Line::Cancelled { .. } => {
                    self.ready_to_end = true;
                    let _ = writeln!(io::stderr(), "Ctrl-C again, or /quit, ends the chat");
                }
                Line::End if begun => break,
                Line::End => return Ok(None),
            }
        }
        if let Reader::Terminal(editor) = &mut self.reader
            && !message.trim().is_empty()
        {
            editor.add_history_entry(&message).ok();
        }
        Ok(Some(message))
    }

    fn line(&mut self, prompt: &str) -> Result<Line, Error> {
        match &mut self.reader {
            Reader::Terminal(editor) => {
                if let Some(typed) = editor.helper() {
                    typed.anything.set(false);
                }
                match editor.readline(prompt) {
                    Ok(line) => Ok(Line::Text(line)),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(ReadlineError::Interrupted) => Ok(Line::Cancelled {
                        typed: editor.helper().is_some_and(|typed| typed.anything.get()),
                    }),
                    Err(error) => Err(error).map_err(|error| {
                        Error::failed(error).about("cannot read from the terminal")
                    }),
                }
            }
            Reader::Lines { prompt: asked } => {
                if *asked {
                    let mut stderr = io::stderr();
                    let _ = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
                }
                plain_line(std::mem::take(&mut self.at_begin))
            }
        }
    }
}

/// The next line of standard input; a byte-order mark may stand `at_begin`.
fn plain_line(at_begin: bool) -> Result<Line, Error> {
    let mut bytes = Vec::new();
    let read = io::stdin()
        .lock()
        .read_until(b'\n', &mut bytes)
        .map_err(|error| Error::failed(error).about("cannot read from standard input"))?;
    if read == 0 {
        return Ok(Line::End);
    }
    let mut line = String::from_utf8(bytes)
        .map_err(|_| Error::bad_input("a line on standard input is not UTF-8"))?;
    if at_begin {
        line = without_mark(&line).to_owned();
    }
    if line.ends_with('\n') {
        line.pop();
        if line.ends_with('\r') {
            line.pop();
        }
    }
    Ok(Line::Text(line))
}

/// Notes whether anything is typed, which the editor does not say when Ctrl-C
/// ends a line: it asks for a hint whenever the line changes. Colours it, too.
#[derive(Default)]
struct Typed {
    anything: Cell<bool>,
    color: bool,
}

impl Hinter for Typed {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &rustyline::Context<'_>) -> Option<String> {
        self.anything.set(!line.is_empty());
        None
    }
}

impl Highlighter for Typed {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        match self.color {
            true => format!("{TYPED}{line}{USUAL}").into(),
            false => line.into(),
        }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        self.color && kind != CmdKind::MoveCursor
    }
}

impl Completer for Typed {
    type Candidate = String;
}

impl Validator for Typed {}
impl Helper for Typed {}
