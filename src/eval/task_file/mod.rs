//! Task files: one JSON object a line, read with errors that name the file, the
//! line and the field.

mod error;
mod row;

use std::io::BufRead;
use std::path::Path;

use crate::input::text;
pub use error::TaskError;
pub(super) use row::{Choices, FieldResult, Row, gold, list_of_texts, wrong};

/// What a task is called: its file without the ending.
pub fn task_name(path: &Path) -> String {
    if text::is_stdio(path) {
        return "stdin".to_owned();
    }
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

/// The rows of a jsonl file, each with its line from 1; blank lines are none.
pub(super) fn rows<'p>(
    path: &'p Path,
    mut file: impl BufRead + 'p,
) -> impl Iterator<Item = Result<(u64, Row), TaskError>> + 'p {
    let mut number = 0;
    let mut bytes = Vec::new();
    std::iter::from_fn(move || {
        loop {
            bytes.clear();
            match file.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => number += 1,
                Err(e) => return Some(Err(TaskError::read(path, e))),
            }
            let Ok(line) = std::str::from_utf8(&bytes) else {
                let error = TaskError::line(path, number, "the line is not UTF-8");
                return Some(Err(error));
            };
            let line = match number {
                1 => line.trim_start_matches('\u{feff}').trim(),
                _ => line.trim(),
            };
            if !line.is_empty() {
                let row = Row::parse(line).map_err(|e| TaskError::line(path, number, e));
                return Some(row.map(|row| (number, row)));
            }
        }
    })
}
