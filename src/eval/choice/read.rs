//! Reading a task file: jsonl, or a zip of tables.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use super::forms::Form;
use super::item::{Item, Kind, Subject, Task};
use super::subjects;
use crate::eval::task_file::{Row, TaskError, rows, task_name};
use crate::input::text;

/// What a zip file begins with.
const ZIP: &[u8] = b"PK";

impl Task {
    /// Reads the task file at `path`: jsonl whose rows have one of the known
    /// forms, or a zip of tables as MMLU and C-Eval are published. `kind`
    /// forces the way of scoring; `limit` takes that many of the first items,
    /// of each subject where there are subjects.
    ///
    /// # Errors
    /// [`TaskError`], naming the file, the line and the field.
    pub fn read(path: &Path, kind: Option<Kind>, limit: Option<usize>) -> Result<Self, TaskError> {
        let unreadable = |e| TaskError::read(path, e);
        let file = text::open(path).map_err(unreadable)?;
        let mut file = BufReader::new(file);
        let limit = limit.unwrap_or(usize::MAX);
        if file.fill_buf().map_err(unreadable)?.starts_with(ZIP) {
            file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
            return subjects::read(path, file, kind, limit);
        }
        let (form, kind, items) = items(path, file, kind, limit)?;
        let name = task_name(path);
        Ok(Self {
            kind,
            form: form.name(),
            subjects: vec![Subject {
                name: name.clone(),
                items,
                shots: None,
            }],
            name,
            has_subjects: false,
        })
    }
}

fn items(
    path: &Path,
    file: impl BufRead,
    forced: Option<Kind>,
    limit: usize,
) -> Result<(Form, Kind, Vec<Item>), TaskError> {
    let mut found: Option<(Form, Kind)> = None;
    let mut items = Vec::new();
    for row in rows(path, file) {
        let (number, row) = row?;
        let at_line = |problem: String| TaskError::line(path, number, problem);
        // The first row tells the form; the others must have it too.
        let (form, kind) = match found {
            Some(found) => found,
            None => {
                let form = Form::of(&row).ok_or_else(|| unknown(path, number, &row))?;
                (form, form.kind(&row, forced).map_err(at_line)?)
            }
        };
        found = Some((form, kind));
        for mut item in form.items(&row, kind).map_err(at_line)? {
            item.place.line = number;
            items.push(item);
        }
        if items.len() >= limit {
            items.truncate(limit);
            break;
        }
    }
    match found {
        Some((form, kind)) => Ok((form, kind, items)),
        None => Err(TaskError::content(path, "the file holds no items")),
    }
}

fn unknown(path: &Path, line: u64, row: &Row) -> TaskError {
    let problem = format!(
        "the fields are {}, which is no known form of a task",
        row.names()
    );
    let hint = format!("known forms: {}", Form::known());
    TaskError::line(path, line, problem).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], limit: usize) -> Result<(Form, Kind, Vec<Item>), TaskError> {
        items(Path::new("t.jsonl"), text, None, limit)
    }

    #[track_caller]
    fn problem(text: &[u8]) -> String {
        read(text, usize::MAX).unwrap_err().to_string()
    }

    #[test]
    fn items_know_their_lines() {
        let text = b"\xef\xbb\xbf{\"context\":\"a\",\"continuation\":\"b\"}\r\n\n \
                     {\"context\":\"c\",\"continuation\":\"d\",\"more\":1}";
        let (_, _, items) = read(text, usize::MAX).unwrap();
        let lines: Vec<_> = items.iter().map(|item| item.place.line).collect();
        assert_eq!(lines, [1, 3]);
        // A broken line after the limit is not read.
        let text = b"{\"context\":\"a\",\"continuation\":\"b\"}\n{";
        assert_eq!(read(text, 1).unwrap().2.len(), 1);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        assert_eq!(problem(b""), "t.jsonl: the file holds no items");
        assert_eq!(problem(b"\n \n"), "t.jsonl: the file holds no items");
        let good = "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":0}\n";
        for (line, part) in [
            ("{\"query\":\"a\",", "t.jsonl:2: not valid JSON"),
            (
                "{\"query\":\"a\",\"gold\":0}",
                "t.jsonl:2: field \"choices\" is missing",
            ),
            (
                "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":2}",
                "t.jsonl:2: field \"gold\" is 2, but there are 2 choices (0 to 1)",
            ),
            ("7", "t.jsonl:2: the line holds a number"),
        ] {
            let problem = problem(format!("{good}{line}\n").as_bytes());
            assert!(problem.starts_with(part), "{problem}");
        }
        assert!(problem(b"{\"query\": \"\xff\"}").contains("t.jsonl:1: the line is not UTF-8"));
    }

    #[test]
    fn unknown_fields_list_what_is_known() {
        let error = read(b"{\"prompt\":\"a\",\"best\":1}", 9).unwrap_err();
        assert_eq!(
            error.to_string(),
            "t.jsonl:1: the fields are prompt, best, which is no known form of a task"
        );
        assert!(error.hint().unwrap().contains("{query, choices, gold}"));
    }
}
