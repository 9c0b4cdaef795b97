//! Reading a task file: rows of JSON, or a zip of tables.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::forms::Form;
use super::item::{Item, Kind, Subject, Task};
use super::subjects;
use crate::eval::task_file::{Row, TaskError, rows, task_name};
use headshare_convert::input::text;

/// What a zip file begins with.
const ZIP: &[u8] = b"PK";

impl Task {
    /// Reads the task file at `path`: objects of one of the known forms, one a
    /// line or in a JSON array, or a zip of tables as MMLU and C-Eval are published. `kind`
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
        let Found {
            form,
            kind,
            subjects,
        } = found(path, file, kind, limit)?;
        let name = task_name(path);
        let has_subjects = !subjects.contains_key("");
        let subjects = (subjects.into_iter())
            .map(|(subject, items)| match has_subjects {
                // Examples would stand in a file of their own.
                true => Subject {
                    name: subject,
                    items,
                    shots: (kind == Kind::Letters).then_some(0),
                },
                false => Subject {
                    name: name.clone(),
                    items,
                    shots: None,
                },
            })
            .collect();
        Ok(Self {
            kind,
            form: form.name(),
            subjects,
            name,
            has_subjects,
        })
    }
}

/// What the rows of a file are.
#[derive(Debug)]
struct Found {
    form: Form,
    kind: Kind,
    /// The items of each subject; all under no name where there are none.
    subjects: BTreeMap<String, Vec<Item>>,
}

fn found(
    path: &Path,
    file: impl BufRead,
    forced: Option<Kind>,
    limit: usize,
) -> Result<Found, TaskError> {
    let mut found: Option<Found> = None;
    for row in rows(path, file) {
        let (number, row) = row?;
        let at_line = |problem: String| TaskError::line(path, number, problem);
        // The first row tells the form; the others must have it too.
        let so_far = match &mut found {
            Some(found) => found,
            None => {
                let form = Form::of(&row).ok_or_else(|| unknown(path, number, &row))?;
                found.insert(Found {
                    form,
                    kind: form.kind(&row, forced).map_err(at_line)?,
                    subjects: BTreeMap::new(),
                })
            }
        };
        let subject = so_far.form.subject(&row).map_err(at_line)?;
        let lead: Arc<str> = match subject {
            Some(subject) if so_far.kind == Kind::Letters => subjects::description(subject).into(),
            _ => "".into(),
        };
        let items = so_far
            .subjects
            .entry(subject.unwrap_or_default().to_owned())
            .or_default();
        for mut item in so_far.form.items(&row, so_far.kind).map_err(at_line)? {
            item.lead = Arc::clone(&lead);
            item.origin.line = number;
            items.push(item);
        }
        items.truncate(limit);
        // Of a subject there may be more after others.
        if subject.is_none() && items.len() == limit {
            break;
        }
    }
    found.ok_or_else(|| TaskError::content(path, "the file holds no items"))
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

    fn read(text: &[u8], limit: usize) -> Result<Vec<Item>, TaskError> {
        let found = found(Path::new("t.jsonl"), text, None, limit)?;
        Ok(found.subjects.into_values().flatten().collect())
    }

    #[track_caller]
    fn problem(text: &[u8]) -> String {
        read(text, usize::MAX).unwrap_err().to_string()
    }

    #[test]
    fn items_know_their_lines() {
        let text = b"\xef\xbb\xbf{\"context\":\"a\",\"continuation\":\"b\"}\r\n\n \
                     {\"context\":\"c\",\"continuation\":\"d\",\"more\":1}";
        let items = read(text, usize::MAX).unwrap();
        let lines: Vec<_> = items.iter().map(|item| item.origin.line).collect();
        assert_eq!(lines, [1, 3]);
        // A broken line after the limit is not read.
        let text = b"{\"context\":\"a\",\"continuation\":\"b\"}\n{";
        assert_eq!(read(text, 1).unwrap().len(), 1);
    }

    #[test]
    fn an_array_is_read_as_lines_are() {
        let lines = "{\"context\":\"a\",\"continuation\":\"b\"}\n{\"context\":\"c\",\"continuation\":\"d\"}";
        let array = format!("\u{feff}[{}]\n", lines.replace('\n', ",\n"));
        assert_eq!(
            read(array.as_bytes(), 9).unwrap(),
            read(lines.as_bytes(), 9).unwrap()
        );
        // Blank lines stand in front of it, and what comes after the limit is
        // not read.
        let cut = format!("\n \n{}", &array[..array.len() - 5]);
        let cut = cut.replace('\u{feff}', "");
        assert_eq!(read(cut.as_bytes(), 1).unwrap()[0].origin.line, 3);
        assert!(problem(cut.as_bytes()).starts_with("t.jsonl:4: not valid JSON"));
        assert_eq!(problem(b"[]"), "t.jsonl: the file holds no items");
        assert!(
            problem(b"[\n{\"context\": 1,\n\"x\": \"\xff\"}]")
                .contains("t.jsonl:3: the line is not")
        );
    }

    #[test]
    fn rows_of_mmlu_belong_to_subjects() {
        let row = |subject: &str, answer: &str| {
            format!(
                "{{\"question\": \"Who?\", \"subject\": \"{subject}\", \
                 \"choices\": [\"w\", \"x\", \"y\", \"z\"], \"answer\": {answer}}}\n"
            )
        };
        let text =
            row("world_religions", "2") + &row("world_religions", "0") + &row("anatomy", "\"B\"");
        let read = |forced| found(Path::new("t"), text.as_bytes(), forced, 1);
        let mmlu = read(None).unwrap();
        assert_eq!((mmlu.form.name(), mmlu.kind), ("mmlu", Kind::Letters));
        let names: Vec<_> = mmlu.subjects.keys().map(String::as_str).collect();
        assert_eq!(names, ["anatomy", "world_religions"]);
        let [item] = &mmlu.subjects["world_religions"][..] else {
            panic!("{:?}", mmlu.subjects);
        };
        assert_eq!(
            &*item.lead,
            "The following are multiple choice questions (with answers) about world religions.\n\n"
        );
        assert_eq!(
            item.pairs[2].context,
            "Who?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
        );
        assert_eq!((item.pairs[2].continuation.as_str(), item.gold), (" C", 2));
        assert_eq!(mmlu.subjects["anatomy"][0].gold, 1);
        let question = read(Some(Kind::Question)).unwrap();
        let item = &question.subjects["anatomy"][0];
        assert_eq!(
            (&*item.lead, item.pairs[0].context.as_str()),
            ("", "Question: Who?\nAnswer:")
        );
        for (row, part) in [
            (
                row("a", "4"),
                "field \"answer\" is 4, but there are 4 choices",
            ),
            (row(" ", "0"), "field \"subject\" is empty"),
            (
                row("a", "0").replace("\"subject\": \"a\"", "\"subject\": 7"),
                "field \"subject\" must be a text",
            ),
        ] {
            assert!(
                problem(row.as_bytes()).contains(part),
                "{}",
                problem(row.as_bytes())
            );
        }
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
        let TaskError::Line { hint, .. } = error else {
            panic!("{error:?}")
        };
        assert!(hint.unwrap().contains("{query, choices, gold}"));
    }
}
