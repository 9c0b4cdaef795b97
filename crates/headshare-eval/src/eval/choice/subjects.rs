//! Archives of many subjects: MMLU as it is published (tables of a question,
//! four choices and a letter), and C-Eval and CMMLU, whose tables have column names.
//!
//! Prompts are lm-evaluation-harness's: a line that names the subject, five
//! solved examples (the first of `dev`, or as many as there are; it gives none unless it is
//! asked for some), the question, its choices by letters.
//! The questions are those of `test`; of `val` where `test` has no answers, as
//! in C-Eval.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

use zip::ZipArchive;

use super::item::{Item, Kind, Metric, Origin, SHOTS, Subject, Task};
use super::question::{CHINESE, Frame, LONG, Question};
use super::subject_names;
use crate::eval::task_file::{TaskError, task_name};

/// No table of one subject is as large as this.
const MAX_TABLE: u64 = 64 << 20;
/// Parts of the questions.
const SPLITS: [&str; 3] = ["dev", "test", "val"];

/// Whose tables an archive has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Style {
    /// Tables without names of columns.
    #[default]
    Mmlu,
    /// With a column `question`.
    Ceval,
    /// With a column `Question`.
    Cmmlu,
}

impl Style {
    /// By the names of columns, if that is what the first row has.
    fn of(mut row: impl Iterator<Item = impl AsRef<str>>) -> Self {
        let name = row.find(|name| ["question", "Question"].contains(&name.as_ref()));
        match name {
            None => Self::Mmlu,
            Some(name) if name.as_ref() == "question" => Self::Ceval,
            Some(_) => Self::Cmmlu,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mmlu => "mmlu",
            Self::Ceval => "ceval",
            Self::Cmmlu => "cmmlu",
        }
    }

    /// The columns of the question and of its answer.
    fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Cmmlu => ["Question", "Answer"],
            _ => ["question", "answer"],
        }
    }

    fn frame(self) -> Frame {
        match self {
            Self::Mmlu => LONG,
            Self::Ceval | Self::Cmmlu => CHINESE,
        }
    }

    /// The line that names a subject.
    fn description(self, subject: &str) -> String {
        let named = |names: &[(&'static str, &'static str)]| {
            let found = names.iter().find(|(english, _)| *english == subject);
            found.map_or(subject, |(_, chinese)| *chinese).to_owned()
        };
        match self {
            Self::Mmlu => description(subject),
            Self::Ceval => format!(
                "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n",
                named(&subject_names::CEVAL)
            ),
            Self::Cmmlu => format!(
                "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
                named(&subject_names::CMMLU)
            ),
        }
    }
}

/// A table of one subject and split.
#[derive(Default)]
struct Table {
    /// Its name in the archive.
    entry: Arc<str>,
    /// Questions with their lines.
    questions: Vec<(u64, Question)>,
    style: Style,
}

/// Reads the archive at `path`.
pub(super) fn read(
    path: &Path,
    file: impl Read + Seek,
    kind: Option<Kind>,
    limit: usize,
) -> Result<Task, TaskError> {
    if let Some(kind) = kind.filter(|kind| *kind != Kind::Letters) {
        let problem = format!(
            "an archive of subjects is scored as letters, not as {}",
            kind.name()
        );
        return Err(TaskError::content(path, problem));
    }
    let mut archive =
        ZipArchive::new(file).map_err(|e| TaskError::content(path, format!("no zip file: {e}")))?;
    let [dev, test, val] = SPLITS.map(|split| entries(&archive, split));
    // Questions without answers are of no use: all of one split.
    let mut asked = tables(path, &mut archive, &test, limit)?;
    if asked.values().all(|table| table.questions.is_empty()) {
        asked = tables(path, &mut archive, &val, limit)?;
    }
    asked.retain(|_, table| !table.questions.is_empty());
    if asked.is_empty() {
        let problem = "there are no questions with answers in the archive";
        return Err(TaskError::content(path, problem)
            .with_hint("tables are called SUBJECT_dev.csv, SUBJECT_test.csv, SUBJECT_val.csv, or dev/SUBJECT.csv and so on"));
    }
    let examples = tables(path, &mut archive, &dev, SHOTS)?;
    let style = asked.values().map(|table| table.style).next();
    let subjects = (asked.into_iter())
        .map(|(name, table)| {
            let examples = examples.get(&name);
            let lead: Arc<str> = lead(&name, &table, examples).into();
            let shots = Some(examples.map_or(0, |table| table.questions.len()));
            let items = (table.questions.iter())
                .map(|(line, question)| {
                    let mut item = question.item(Kind::Letters)?;
                    item.lead = Arc::clone(&lead);
                    item.origin = Origin {
                        table: Some(Arc::clone(&table.entry)),
                        line: *line,
                    };
                    Ok(item)
                })
                .collect::<Result<Vec<Item>, String>>()
                .map_err(|problem| TaskError::content(path, problem))?;
            Ok(Subject { name, items, shots })
        })
        .collect::<Result<_, TaskError>>()?;
    Ok(Task {
        name: task_name(path),
        kind: Kind::Letters,
        metric: Metric::Accuracy,
        form: style.unwrap_or_default().name(),
        subjects,
        has_subjects: true,
    })
}

/// The subjects that have a table of this split, with its place: `SUBJECT_dev.csv`, or
/// `dev/SUBJECT.csv`.
fn entries<R: Read + Seek>(archive: &ZipArchive<R>, split: &str) -> Vec<(String, String)> {
    let of = |path: &str| {
        let mut parts = path.rsplit('/');
        let name = parts.next()?.strip_suffix(".csv")?;
        let name = match name.rsplit_once('_') {
            Some((name, of)) if of == split => name,
            Some((_, of)) if SPLITS.contains(&of) => return None,
            _ if parts.next() == Some(split) => name,
            _ => return None,
        };
        // Files that macOS adds to archives.
        (!name.starts_with('.') && !name.is_empty()).then(|| (name.to_owned(), path.to_owned()))
    };
    // Names that cannot be read are none of ours.
    let names = archive.file_names().filter_map(Result::ok);
    names.filter_map(|path| of(&path)).collect()
}

fn tables<R: Read + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    entries: &[(String, String)],
    limit: usize,
) -> Result<BTreeMap<String, Table>, TaskError> {
    for (i, (subject, entry)) in entries.iter().enumerate() {
        if let Some((_, first)) = entries[..i].iter().find(|(known, _)| known == subject) {
            let problem =
                format!("{first} and {entry} are tables of one subject: leave one of them");
            return Err(TaskError::content(path, problem));
        }
    }
    (entries.iter())
        .map(|(subject, entry)| {
            let shown = path.join(entry);
            let unreadable = |e: &dyn std::fmt::Display| TaskError::content(&shown, e);
            let file = archive.by_name(entry).map_err(|e| unreadable(&e))?;
            let mut bytes = Vec::new();
            let read = file.take(MAX_TABLE + 1).read_to_end(&mut bytes);
            read.map_err(|e| unreadable(&e))?;
            if bytes.len() as u64 > MAX_TABLE {
                return Err(unreadable(&format!("larger than {MAX_TABLE} bytes")));
            }
            let mut table = table(&shown, &bytes, limit)?;
            table.entry = entry.as_str().into();
            Ok((subject.clone(), table))
        })
        .collect()
}

/// Where the parts of a question stand in a row.
struct Columns {
    question: usize,
    choices: [usize; 4],
    answer: usize,
}

const UNNAMED: Columns = Columns {
    question: 0,
    choices: [1, 2, 3, 4],
    answer: 5,
};

/// Reads a table. One without answers gives no questions.
fn table(path: &Path, bytes: &[u8], limit: usize) -> Result<Table, TaskError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut found = Table::default();
    let mut columns = UNNAMED;
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|e| TaskError::content(path, e))?;
        let line = record.position().map_or(0, csv::Position::line);
        if i == 0 {
            found.style = Style::of(record.iter());
        }
        if i == 0 && found.style != Style::Mmlu {
            let [question, answer] = found.style.columns();
            let column = |name: &str| record.iter().position(|column| column == name);
            let missing =
                |name: &str| TaskError::line(path, line, format!("column {name:?} is missing"));
            let Some(answer) = column(answer) else {
                return Ok(found);
            };
            let mut choices = [0; 4];
            for (at, name) in choices.iter_mut().zip(["A", "B", "C", "D"]) {
                *at = column(name).ok_or_else(|| missing(name))?;
            }
            columns = Columns {
                question: column(question).unwrap_or_default(),
                choices,
                answer,
            };
            continue;
        }
        if found.questions.len() >= limit {
            break;
        }
        let cell = |at: usize, name: &str| {
            record.get(at).ok_or_else(|| {
                let problem = format!(
                    "the row has {} columns, and none for {name} (a question, four choices \
                     and a letter are needed)",
                    record.len()
                );
                TaskError::line(path, line, problem)
            })
        };
        let answer = cell(columns.answer, "the answer")?.trim();
        let gold = ["A", "B", "C", "D"].iter().position(|a| *a == answer);
        let Some(gold) = gold else {
            let problem = format!("the answer is {answer:?}, not A, B, C or D");
            return Err(TaskError::line(path, line, problem));
        };
        let mut choices = Vec::with_capacity(4);
        for at in columns.choices {
            choices.push(cell(at, "a choice")?.to_owned());
        }
        let question = Question {
            lead: String::new(),
            text: cell(columns.question, "the question")?.to_owned(),
            frame: found.style.frame(),
            choices,
            gold,
        };
        found.questions.push((line, question));
    }
    Ok(found)
}

/// What stands in front of all questions of a subject.
fn lead(subject: &str, table: &Table, examples: Option<&Table>) -> String {
    let mut lead = table.style.description(subject);
    for (_, question) in examples.iter().flat_map(|table| &table.questions) {
        lead += &question.example();
    }
    lead
}

/// The line that names a subject of MMLU.
pub(super) fn description(subject: &str) -> String {
    let name = subject.replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {name}.\n\n")
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn archive(files: &[(&str, &str)]) -> Cursor<Vec<u8>> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for (name, text) in files {
            writer.start_file(*name, options).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap()
    }

    fn task(files: &[(&str, &str)], limit: usize) -> Result<Task, TaskError> {
        read(Path::new("a.zip"), archive(files), None, limit)
    }

    const DEV: &str = "\"1, or\n2?\",w,x,y,z,B\n";

    #[test]
    fn mmlu_has_examples_from_dev_and_questions_from_test() {
        let task = task(
            &[
                ("data/README.txt", "?"),
                ("data/dev/world_religions_dev.csv", DEV),
                (
                    "data/test/world_religions_test.csv",
                    "Who?,a,b,c,d,D\nHow?,a,b,c,d,A\n",
                ),
                ("data/test/anatomy_test.csv", "Where?,a,b,c,d,C\n"),
                ("data/val/anatomy_val.csv", "Why?,a,b,c,d,C\n"),
            ],
            1,
        )
        .unwrap();
        assert_eq!(
            (task.kind, task.form, task.n_items()),
            (Kind::Letters, "mmlu", 2)
        );
        let names: Vec<_> = task.subjects.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["anatomy", "world_religions"]);
        let item = &task.subjects[1].items[0];
        assert_eq!(
            &*item.lead,
            "The following are multiple choice questions (with answers) about world religions.\
             \n\n1, or\n2?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n"
        );
        assert_eq!(
            item.pairs[3].context,
            "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
        );
        assert_eq!((item.pairs[3].continuation.as_str(), item.gold), (" D", 3));
        assert!(!task.subjects[0].items[0].lead.contains("Answer"));
        let shots: Vec<_> = task.subjects.iter().map(|s| s.shots).collect();
        assert_eq!(shots, [Some(0), Some(1)]);
        let short = task.short_of_examples();
        assert_eq!(short[&0], ["anatomy"]);
        assert_eq!(short[&1], ["world_religions"]);
    }

    #[test]
    fn five_examples_are_as_it_should_be() {
        let dev = DEV.repeat(7);
        let files = [
            ("a_dev.csv", dev.as_str()),
            ("a_test.csv", "Who?,a,b,c,d,D\n"),
        ];
        let task = task(&files, 9).unwrap();
        assert_eq!(task.subjects[0].shots, Some(5));
        assert!(task.short_of_examples().is_empty());
    }

    #[test]
    fn ceval_has_column_names_and_its_answers_in_val() {
        let task = task(
            &[
                (
                    "dev/law_dev.csv",
                    "id,question,A,B,C,D,answer,explanation\n0,问,甲,乙,丙,丁,A,x\n",
                ),
                ("test/law_test.csv", "id,question,A,B,C,D\n0,q,a,b,c,d\n"),
                (
                    "val/law_val.csv",
                    "id,question,A,B,C,D,answer\n0,何,一,二,三,四,C\n",
                ),
            ],
            9,
        )
        .unwrap();
        assert_eq!((task.form, task.n_items()), ("ceval", 1));
        let item = &task.subjects[0].items[0];
        assert_eq!(
            &*item.lead,
            "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n\
             问\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案： A\n\n"
        );
        assert_eq!(
            item.pairs[2].context,
            "何\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
        );
        assert_eq!(
            (item.gold, item.origin.to_string()),
            (2, "val/law_val.csv, line 2".into())
        );
    }

    #[test]
    fn cmmlu_has_its_splits_in_folders() {
        let header = ",Question,A,B,C,D,Answer\n";
        let dev = format!("{header}0,问,甲,乙,丙,丁,A\n");
        let test = format!("{header}0,何,一,二,三,四,C\n1,谁,一,二,三,四,B\n");
        let files = [("dev/agronomy.csv", &*dev), ("test/agronomy.csv", &*test)];
        let task = task(&files, 9).unwrap();
        assert_eq!((task.form, task.n_items()), ("cmmlu", 2));
        assert_eq!(task.subjects[0].name, "agronomy");
        let item = &task.subjects[0].items[1];
        assert_eq!(
            &*item.lead,
            "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n\
             问\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案： A\n\n"
        );
        assert_eq!(
            item.pairs[2].context,
            "谁\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
        );
        assert_eq!(item.gold, 1);
    }

    #[test]
    fn bad_tables_name_archive_table_and_line() {
        let problem = |files: &[(&str, &str)]| task(files, 9).unwrap_err().to_string();
        let of = |text: &str| problem(&[("x_test.csv", text)]);
        assert_eq!(
            of("a,b,c,d,e,A\na,b,c,d,e,F\n"),
            "a.zip/x_test.csv:2: the answer is \"F\", not A, B, C or D"
        );
        assert!(of("a,b,c\n").starts_with("a.zip/x_test.csv:1: the row has 3 columns"));
        assert!(of("question,A,B,C,answer\n").contains("column \"D\" is missing"));
        assert!(of("").contains("no questions with answers"));
        assert!(problem(&[]).contains("no questions with answers"));
        let broken = read(Path::new("a.zip"), Cursor::new(b"PK nonsense"), None, 9);
        assert!(
            broken
                .unwrap_err()
                .to_string()
                .starts_with("a.zip: no zip file")
        );
        let kind = read(Path::new("a.zip"), archive(&[]), Some(Kind::Choices), 9);
        assert!(
            kind.unwrap_err()
                .to_string()
                .contains("letters, not as choices")
        );
    }
}
