//! Archives of many subjects: MMLU as it is published (tables of a question,
//! four choices and a letter), and C-Eval, whose tables have column names.
//!
//! Prompts are lm-evaluation-harness's: a line that names the subject, five
//! solved examples (the first of `dev`, or as many as there are), the question,
//! its choices by letters.
//! The questions are those of `test`; of `val` where `test` has no answers, as
//! in C-Eval.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

use zip::ZipArchive;

use super::item::{Item, Kind, Origin, SHOTS, Subject, Task};
use super::question::{CHINESE, LONG, Question};
use crate::eval::task_file::{TaskError, task_name};

/// No table of one subject is as large as this.
const MAX_TABLE: u64 = 64 << 20;
/// Endings of a table's name: split and file type.
const SPLITS: [&str; 3] = ["_dev.csv", "_test.csv", "_val.csv"];

/// A table of one subject and split.
#[derive(Default)]
struct Table {
    /// Its name in the archive.
    entry: Arc<str>,
    /// Questions with their lines.
    questions: Vec<(u64, Question)>,
    /// Column names were there, as in C-Eval.
    named: bool,
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
    let [dev, test, val] = SPLITS.map(|ending| entries(&archive, ending));
    // Questions without answers are of no use: all of one split.
    let mut asked = tables(path, &mut archive, &test, limit)?;
    if asked.values().all(|table| table.questions.is_empty()) {
        asked = tables(path, &mut archive, &val, limit)?;
    }
    asked.retain(|_, table| !table.questions.is_empty());
    if asked.is_empty() {
        let problem = "there are no questions with answers in the archive";
        return Err(TaskError::content(path, problem)
            .with_hint("tables are called SUBJECT_dev.csv, SUBJECT_test.csv, SUBJECT_val.csv"));
    }
    let examples = tables(path, &mut archive, &dev, SHOTS)?;
    let named = asked.values().any(|table| table.named);
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
        form: if named { "ceval" } else { "mmlu" },
        subjects,
        has_subjects: true,
    })
}

/// The subjects that have a table of this ending, with its place.
fn entries<R: Read + Seek>(archive: &ZipArchive<R>, ending: &str) -> Vec<(String, String)> {
    let of = |path: &str| {
        let name = path.rsplit('/').next()?.strip_suffix(ending)?;
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
        if i == 0 && record.iter().any(|name| name == "question") {
            found.named = true;
            let column = |name: &str| record.iter().position(|column| column == name);
            let missing =
                |name: &str| TaskError::line(path, line, format!("column {name:?} is missing"));
            let Some(answer) = column("answer") else {
                return Ok(found);
            };
            let mut choices = [0; 4];
            for (at, name) in choices.iter_mut().zip(["A", "B", "C", "D"]) {
                *at = column(name).ok_or_else(|| missing(name))?;
            }
            columns = Columns {
                question: column("question").unwrap_or_default(),
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
            frame: if found.named { CHINESE } else { LONG },
            choices,
            gold,
        };
        found.questions.push((line, question));
    }
    Ok(found)
}

/// What stands in front of all questions of a subject.
fn lead(subject: &str, table: &Table, examples: Option<&Table>) -> String {
    let mut lead = if table.named {
        let name = (CHINESE_NAMES.iter())
            .find(|(english, _)| *english == subject)
            .map_or(subject, |(_, chinese)| chinese);
        format!("以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n")
    } else {
        description(subject)
    };
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

/// C-Eval's subjects in the language that its prompts name them in.
#[rustfmt::skip]
const CHINESE_NAMES: [(&str, &str); 52] = [
    ("accountant", "注册会计师"), ("advanced_mathematics", "高等数学"), ("art_studies", "艺术学"),
    ("basic_medicine", "基础医学"), ("business_administration", "工商管理"),
    ("chinese_language_and_literature", "中国语言文学"), ("civil_servant", "公务员"),
    ("clinical_medicine", "临床医学"), ("college_chemistry", "大学化学"),
    ("college_economics", "大学经济学"), ("college_physics", "大学物理"),
    ("college_programming", "大学编程"), ("computer_architecture", "计算机组成"),
    ("computer_network", "计算机网络"), ("discrete_mathematics", "离散数学"),
    ("education_science", "教育学"), ("electrical_engineer", "注册电气工程师"),
    ("environmental_impact_assessment_engineer", "环境影响评价工程师"),
    ("fire_engineer", "注册消防工程师"), ("high_school_biology", "高中生物"),
    ("high_school_chemistry", "高中化学"), ("high_school_chinese", "高中语文"),
    ("high_school_geography", "高中地理"), ("high_school_history", "高中历史"),
    ("high_school_mathematics", "高中数学"), ("high_school_physics", "高中物理"),
    ("high_school_politics", "高中政治"),
    ("ideological_and_moral_cultivation", "思想道德修养与法律基础"), ("law", "法学"),
    ("legal_professional", "法律职业资格"), ("logic", "逻辑学"),
    ("mao_zedong_thought", "毛泽东思想和中国特色社会主义理论体系概论"),
    ("marxism", "马克思主义基本原理"), ("metrology_engineer", "注册计量师"),
    ("middle_school_biology", "初中生物"), ("middle_school_chemistry", "初中化学"),
    ("middle_school_geography", "初中地理"), ("middle_school_history", "初中历史"),
    ("middle_school_mathematics", "初中数学"), ("middle_school_physics", "初中物理"),
    ("middle_school_politics", "初中政治"), ("modern_chinese_history", "近代史纲要"),
    ("operating_system", "操作系统"), ("physician", "医师资格"), ("plant_protection", "植物保护"),
    ("probability_and_statistics", "概率统计"), ("professional_tour_guide", "导游资格"),
    ("sports_science", "体育学"), ("tax_accountant", "税务师"), ("teacher_qualification", "教师资格"),
    ("urban_and_rural_planner", "注册城乡规划师"), ("veterinary_medicine", "兽医学"),
];

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
