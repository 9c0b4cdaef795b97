//! Task files: one JSON object a line, or a JSON array of objects, read with
//! errors that name the file, the line and the field.

mod error;
mod list;
mod row;

use std::io::BufRead;
use std::path::Path;

use headshare_convert::input::text::{self, without_mark};
use list::List;

pub use error::TaskError;
pub(super) use row::{Choices, FieldResult, Row, check_choices, gold, list_of_texts, wrong};

/// What a task is called: its file without the ending.
pub fn task_name(path: &Path) -> String {
    if text::is_stdio(path) {
        return "stdin".to_owned();
    }
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

/// The rows of a file, each with its line from 1.
pub(super) fn rows<R: BufRead>(path: &Path, file: R) -> Rows<'_, R> {
    Rows {
        path,
        file,
        line: 0,
        begun: false,
        list: None,
    }
}

/// Reads rows one after the other; what comes after the last that is asked for
/// may be anything.
pub(super) struct Rows<'p, R> {
    path: &'p Path,
    file: R,
    /// Lines that were read.
    line: u64,
    /// There was a line that is not blank.
    begun: bool,
    /// The file is a JSON array.
    list: Option<List>,
}

impl<R: BufRead> Iterator for Rows<'_, R> {
    type Item = Result<(u64, Row), TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        while self.list.is_none() {
            bytes.clear();
            match self.file.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(e) => return Some(Err(TaskError::read(self.path, e))),
            }
            let Ok(line) = std::str::from_utf8(&bytes) else {
                let error = TaskError::line(self.path, self.line, NOT_UTF8);
                return Some(Err(error));
            };
            let line = match self.line {
                1 => without_mark(line),
                _ => line,
            };
            if line.trim().is_empty() {
                continue;
            }
            if !self.begun && line.trim_start().starts_with('[') {
                let line = line.trim_start().to_owned();
                if let Err(error) = self.read_list(line) {
                    return Some(Err(error));
                }
                continue;
            }
            self.begun = true;
            let row = Row::parse(line.trim()).map_err(|e| TaskError::line(self.path, self.line, e));
            return Some(row.map(|row| (self.line, row)));
        }
        let row = self.list.as_mut()?.next()?;
        Some(row.map_err(|(line, problem)| TaskError::line(self.path, line, problem)))
    }
}

const NOT_UTF8: &str = "the line is not UTF-8";

impl<R: BufRead> Rows<'_, R> {
    /// Reads the rest of the array that begins with `text`.
    fn read_list(&mut self, mut text: String) -> Result<(), TaskError> {
        let mut rest = Vec::new();
        let read = self.file.read_to_end(&mut rest);
        read.map_err(|e| TaskError::read(self.path, e))?;
        let rest = String::from_utf8(rest).map_err(|e| {
            let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let lines = before.iter().filter(|&&b| b == b'\n').count() as u64;
            TaskError::line(self.path, self.line + 1 + lines, NOT_UTF8)
        })?;
        text += &rest;
        self.list = Some(List::new(text, self.line));
        Ok(())
    }
}
