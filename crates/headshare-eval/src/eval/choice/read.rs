//! Reading a task file: rows of JSON, or a zip of tables.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::forms::Form;
use super::item::{Item, Kind, Subject, Task};
use super::subjects;
use crate::eval::task_file::{Row, TaskError, rows, task_name};
use headshare_convert::input::text;

/// What a zip file begins with.
const ZIP: &[u8] = b"PK";

impl Task {
    /// Reads the task at `path`: a file with objects of one of the known forms, one a
    /// line or in a JSON array; a folder of such files (RACE), each folder in which is a
    /// subject; or a zip of tables as MMLU, C-Eval and CMMLU are published. `kind`
    /// forces the way of scoring; `limit` takes that many of the first items,
    /// of each subject where there are subjects.
    ///
    /// # Errors
    /// [`TaskError`], naming the file, the line and the field.
    pub fn read(path: &Path, kind: Option<Kind>, limit: Option<usize>) -> Result<Self, TaskError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut reading = Reading {
            forced: kind,
            limit,
            found: None,
        };
        if !text::is_stdio(path) && path.is_dir() {
            reading.folder(path, "")?;
            return reading.task(path);
        }
        let unreadable = |e| TaskError::read(path, e);
        let file = text::open(path).map_err(unreadable)?;
        let mut file = BufReader::new(file);
        if file.fill_buf().map_err(unreadable)?.starts_with(ZIP) {
            file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
            return subjects::read(path, file, kind, limit);
        }
        reading.rows(path, file, "", None)?;
        reading.task(path)
    }
}

/// What the rows that were read are.
#[derive(Debug)]
struct Found {
    form: Form,
    kind: Kind,
    /// The items of each subject; all under no name where there are none.
    subjects: BTreeMap<String, Vec<Item>>,
}

/// Endings of files in folders of tasks.
const ENDINGS: [&str; 3] = ["json", "jsonl", "txt"];

/// Reads rows of one or several files.
struct Reading {
    forced: Option<Kind>,
    limit: usize,
    found: Option<Found>,
}

impl Reading {
    /// Reads the files of a folder, in the order of their names, as those of `subject`,
    /// and the folders in it as subjects.
    fn folder(&mut self, path: &Path, subject: &str) -> Result<(), TaskError> {
        let unreadable = |e| TaskError::read(path, e);
        let entries = std::fs::read_dir(path).map_err(unreadable)?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut entries: Vec<PathBuf> = entries.collect::<Result<_, _>>().map_err(unreadable)?;
        entries.sort();
        for entry in entries {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            // Files that macOS adds to archives.
            if name.starts_with('.') {
                continue;
            }
            if entry.is_dir() && subject.is_empty() {
                self.folder(&entry, &name)?;
                continue;
            }
            let ending = entry.extension().unwrap_or_default();
            if !ENDINGS.iter().any(|known| ending == *known) {
                continue;
            }
            let file = File::open(&entry).map_err(|e| TaskError::read(&entry, e))?;
            let table = Some(Arc::from(&*name));
            self.rows(&entry, BufReader::new(file), subject, table)?;
        }
        Ok(())
    }

    /// Reads the rows of a file, as those of `subject` where they name none; `table` is
    /// its name where there are several.
    fn rows(
        &mut self,
        path: &Path,
        file: impl BufRead,
        subject: &str,
        table: Option<Arc<str>>,
    ) -> Result<(), TaskError> {
        for row in rows(path, file) {
            let (number, row) = row?;
            let at_line = |problem: String| TaskError::line(path, number, problem);
            // The first row tells the form; the others must have it too.
            let so_far = match &mut self.found {
                Some(found) => found,
                None => {
                    let form = Form::of(&row).ok_or_else(|| unknown(path, number, &row))?;
                    self.found.insert(Found {
                        form,
                        kind: form.kind(&row, self.forced).map_err(at_line)?,
                        subjects: BTreeMap::new(),
                    })
                }
            };
            let named = so_far.form.subject(&row).map_err(at_line)?;
            let lead: Arc<str> = match named {
                Some(subject) if so_far.kind == Kind::Letters => {
                    subjects::description(subject).into()
                }
                _ => "".into(),
            };
            let items = so_far
                .subjects
                .entry(named.unwrap_or(subject).to_owned())
                .or_default();
            for mut item in so_far.form.items(&row, so_far.kind).map_err(at_line)? {
                item.lead = Arc::clone(&lead);
                item.origin.line = number;
                item.origin.table.clone_from(&table);
                items.push(item);
            }
            items.truncate(self.limit);
            // Of a subject there may be more after others.
            if named.is_none() && items.len() == self.limit {
                break;
            }
        }
        Ok(())
    }

    /// The task, where there are items.
    fn task(self, path: &Path) -> Result<Task, TaskError> {
        let none = || {
            let problem = match path.is_dir() {
                true => {
                    "no file in it, or in a folder in it, ends in .json, .jsonl or .txt and has rows"
                }
                false => "there are no items in it",
            };
            TaskError::content(path, problem)
        };
        let mut found = self.found.ok_or_else(none)?;
        found.subjects.retain(|_, items| !items.is_empty());
        if found.subjects.is_empty() {
            return Err(none());
        }
        let Found {
            form,
            kind,
            subjects,
        } = found;
        let name = task_name(path);
        let has_subjects = !subjects.contains_key("");
        if !has_subjects && subjects.len() > 1 {
            let problem = "there are files beside folders of subjects: name one of them";
            return Err(TaskError::content(path, problem));
        }
        let subjects: Vec<Subject> = (subjects.into_iter())
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
        Ok(Task {
            kind,
            metric: form.metric(subjects.iter().flat_map(|subject| &subject.items)),
            form: form.name(),
            subjects,
            name,
            has_subjects,
        })
    }
}

fn unknown(path: &Path, line: u64, row: &Row) -> TaskError {
    let problem = format!(
        "the fields are {}, which is no known form of a task",
        row.contents()
    );
    let hint = format!("known forms: {}", Form::known());
    TaskError::line(path, line, problem).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(text: &[u8], forced: Option<Kind>, limit: usize) -> Result<Task, TaskError> {
        let mut reading = Reading {
            forced,
            limit,
            found: None,
        };
        let path = Path::new("t.jsonl");
        reading.rows(path, text, "", None)?;
        reading.task(path)
    }

    fn read(text: &[u8], limit: usize) -> Result<Vec<Item>, TaskError> {
        Ok(task(text, None, limit)?.items().cloned().collect())
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
        assert_eq!(problem(b"[]"), "t.jsonl: there are no items in it");
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
        let read = |forced| task(text.as_bytes(), forced, 1);
        let mmlu = read(None).unwrap();
        assert_eq!((mmlu.form, mmlu.kind), ("mmlu", Kind::Letters));
        let names: Vec<_> = mmlu.subjects.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["anatomy", "world_religions"]);
        let [item] = &mmlu.subjects[1].items[..] else {
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
        assert_eq!(mmlu.subjects[0].items[0].gold, 1);
        let question = read(Some(Kind::Question)).unwrap();
        let item = &question.subjects[0].items[0];
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
    fn a_folder_of_race_has_its_parts_as_subjects() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let article = |name: &str| {
            format!(
                "{{\"article\": \"{name}\", \"questions\": [\"Who?\"], \"id\": \"1\", \
                 \"options\": [[\"a\", \"b\"]], \"answers\": [\"B\"]}}"
            )
        };
        write("test/middle/2.txt", &article("M2"));
        write("test/middle/10.txt", &article("M10"));
        write("test/high/1.txt", &article("H1"));
        write("test/high/.DS_Store", "?");
        write("README.md", "?");
        let test = folder.path().join("test");
        let task = Task::read(&test, None, None).unwrap();
        let found: Vec<_> = (task.subjects.iter())
            .map(|s| (s.name.as_str(), s.items.len()))
            .collect();
        assert_eq!(found, [("high", 1), ("middle", 2)]);
        assert_eq!(
            (task.name.as_str(), task.form, task.has_subjects),
            ("test", "race", true)
        );
        let middle = Task::read(&test.join("middle"), None, Some(1)).unwrap();
        let items: Vec<_> = middle.items().collect();
        assert_eq!(items[0].pairs[0].context, "Article: M10\n\nWho?");
        assert_eq!(items[0].origin.to_string(), "10.txt, line 1");
        assert_eq!((items.len(), middle.has_subjects), (1, false));
        write("test/high/3.txt", "{\"article\": 1}");
        let problem = Task::read(&test, None, None).unwrap_err().to_string();
        assert!(problem.contains("high/3.txt:1: field"), "{problem}");
        let empty = Task::read(&folder.path().join("test/none"), None, None).unwrap_err();
        assert!(empty.to_string().contains("none"), "{empty}");
    }

    #[test]
    fn errors_name_file_line_and_field() {
        assert_eq!(problem(b""), "t.jsonl: there are no items in it");
        assert_eq!(problem(b"\n \n"), "t.jsonl: there are no items in it");
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
            "t.jsonl:1: the fields are prompt (text), best (a number), which is no known form of a task"
        );
        let TaskError::Line { hint, .. } = error else {
            panic!("{error:?}")
        };
        assert!(hint.unwrap().contains("{query, choices, gold}"));
    }
}
