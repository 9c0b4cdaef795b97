//! The forms that rows of a task file can have: which fields tell them, and
//! what context and continuations each becomes.
//!
//! The prompts are those of lm-evaluation-harness's tasks of the same names, but for
//! those in [`labelled`] that it has none for.
//! Deviations: rows that hold a finished `query` are not rewritten beyond the
//! missing `Answer:`; a RACE row is one question, so that no other questions on
//! the article stand in front of it.

use serde_json::Value;

use super::item::{Item, Kind, Metric};
use super::labelled;
use super::question::{Frame, LONG, Question, SHORT};
use crate::eval::task_file::{
    Choices, FieldResult, Row, check_choices, gold, list_of_texts, wrong,
};

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Query,
    Contexts,
    Piqa,
    WinoGrande,
    HellaSwag,
    Siqa,
    BoolQ,
    Race,
    RaceArticle,
    AxG,
    Rte,
    Csl,
    Relation,
    AxB,
    Tnews,
    Fact,
    OpenBookQa,
    Stem,
    Arc,
    Mmlu,
    Continuation,
    Text,
}

/// In the order in which they are tried: those with more fields first.
const FORMS: [Form; 22] = [
    Form::Query,
    Form::Contexts,
    Form::Piqa,
    Form::WinoGrande,
    Form::HellaSwag,
    Form::Siqa,
    Form::Race,
    Form::RaceArticle,
    Form::BoolQ,
    Form::AxG,
    Form::Rte,
    Form::Csl,
    Form::Relation,
    Form::AxB,
    Form::Tnews,
    Form::Fact,
    Form::OpenBookQa,
    Form::Stem,
    Form::Arc,
    Form::Mmlu,
    Form::Continuation,
    Form::Text,
];

const QUESTIONS: &[Kind] = &[Kind::Question, Kind::Choices, Kind::Letters];
const CHOICES: &[Kind] = &[Kind::Choices, Kind::Question, Kind::Letters];
const LETTERS: &[Kind] = &[Kind::Letters, Kind::Question, Kind::Choices];
const PARTIAL: &[Kind] = &[Kind::Partial];
const LAST_WORD: &[Kind] = &[Kind::LastWord];

/// Fields that are called differently in different files.
const PASSAGE: &[&str] = &["article", "passage", "context"];
const ANSWER: &[&str] = &["answer", "gold", "label"];

impl Form {
    /// The form of a row.
    pub fn of(row: &Row) -> Option<Self> {
        FORMS.into_iter().find(|form| {
            let has = |names: &&[&str]| names.iter().any(|name| row.has(name));
            form.fields().iter().all(has) && form.is_told(row)
        })
    }

    /// Whether the row is of this form, where the names of fields do not tell.
    fn is_told(self, row: &Row) -> bool {
        let chinese = || row.text("sentence1").is_ok_and(labelled::is_chinese);
        match self {
            Self::Stem => row.get("question").is_ok_and(Value::is_object),
            // Numbers mean other things in other data sets.
            Self::Relation => chinese() && row.text("label").is_ok(),
            Self::AxB => !chinese() && row.text("label").is_ok(),
            Self::AxG | Self::Rte => row.text("label").is_ok(),
            Self::Tnews => {
                row.has("label_desc") || row.text("sentence").is_ok_and(labelled::is_chinese)
            }
            Self::Fact => {
                row.has("question_stem") || row.get("question").is_ok_and(Value::is_object)
            }
            _ => true,
        }
    }

    /// The fields that tell it, each with its other names.
    fn fields(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Query => &[&["query"], &["choices"], &["gold"]],
            Self::Contexts => &[&["context_options"], &["continuation"], &["gold"]],
            Self::Piqa => &[&["goal"], &["sol1"], &["sol2"], &["label"]],
            Self::WinoGrande => &[&["sentence"], &["option1"], &["option2"], &["answer"]],
            Self::HellaSwag => &[&["endings"], &["label"], &["ctx", "ctx_a"]],
            Self::Siqa => &[
                &["context"],
                &["question"],
                &["answerA"],
                &["answerB"],
                &["answerC"],
                &["label"],
            ],
            Self::Race => &[PASSAGE, &["question"], &["options"], ANSWER],
            Self::RaceArticle => &[PASSAGE, &["questions"], &["options"], &["answers"]],
            Self::BoolQ => &[&["passage"], &["question"], ANSWER],
            Self::AxG => &[&["premise"], &["hypothesis"], &["label"], &["pair_id"]],
            Self::Rte => &[&["premise"], &["hypothesis"], &["label"]],
            Self::Csl => &[&["abst"], &["keyword"], &["label"]],
            Self::Relation | Self::AxB => &[&["sentence1"], &["sentence2"], &["label"]],
            Self::Tnews => &[&["sentence"], &["label_desc", "label"]],
            Self::Fact => &[&["question_stem", "question"], &["fact1"], &["answerKey"]],
            Self::OpenBookQa => &[&["question_stem"], &["choices"], &["answerKey"]],
            Self::Stem | Self::Arc => &[&["question"], &["answerKey"]],
            Self::Mmlu => &[&["question"], &["choices"], &["answer"], &["subject"]],
            Self::Continuation => &[&["context"], &["continuation"]],
            Self::Text => &[&["text"]],
        }
    }

    /// What it is called in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query, choices, gold",
            Self::Contexts => "context_options, continuation, gold",
            Self::Continuation => "context, continuation",
            Self::Text => "text",
            Self::Piqa => "piqa",
            Self::WinoGrande => "winogrande",
            Self::HellaSwag => "hellaswag",
            Self::Siqa => "siqa",
            Self::Race | Self::RaceArticle => "race",
            Self::BoolQ => "boolq",
            Self::AxG => "ax-g",
            Self::Rte => "rte",
            Self::Csl => "csl",
            // Both have these fields, and the same prompt.
            Self::Relation => "cmnli, ocnli",
            Self::AxB => "ax-b",
            Self::Tnews => "tnews",
            Self::Fact => "openbookqa, with facts",
            Self::OpenBookQa => "openbookqa",
            Self::Stem | Self::Arc => "arc",
            Self::Mmlu => "mmlu",
        }
    }

    /// The ways in which it can be scored; the first is the usual one.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Query | Self::HellaSwag | Self::OpenBookQa => CHOICES,
            // Their prompts are finished.
            Self::AxG | Self::AxB | Self::Relation | Self::Tnews => &[Kind::Choices],
            Self::Rte => &[Kind::Question],
            Self::Csl => &[Kind::Letters],
            Self::Fact => LETTERS,
            Self::Race | Self::RaceArticle => CHOICES,
            Self::Piqa | Self::Siqa | Self::BoolQ | Self::Stem | Self::Arc => QUESTIONS,
            Self::Mmlu => LETTERS,
            Self::Contexts | Self::WinoGrande => PARTIAL,
            Self::Continuation | Self::Text => LAST_WORD,
        }
    }

    /// The accuracy that the harness reports for `items` of this form: no other where choices
    /// are labels, which are the same everywhere, nor of RACE and SIQA.
    pub fn metric<'i>(self, mut items: impl Iterator<Item = &'i Item>) -> Metric {
        fn choices(item: &Item) -> impl Iterator<Item = &str> {
            item.pairs.iter().map(|pair| pair.continuation.as_str())
        }
        if matches!(
            self,
            Self::Race | Self::RaceArticle | Self::Siqa | Self::BoolQ
        ) {
            return Metric::Accuracy;
        }
        let (Some(first), Some(second)) = (items.next(), items.next()) else {
            return Metric::AccuracyNorm;
        };
        let mut others = std::iter::once(second).chain(items);
        match others.all(|item| choices(item).eq(choices(first))) {
            true => Metric::Accuracy,
            false => Metric::AccuracyNorm,
        }
    }

    /// How rows like `row` are scored: as `forced`, or as is usual.
    pub fn kind(self, row: &Row, forced: Option<Kind>) -> FieldResult<Kind> {
        let kinds = self.kinds();
        match forced {
            None if self == Self::Query && Question::is_announced(row.text("query")?) => {
                Ok(Kind::Question)
            }
            None => Ok(kinds[0]),
            Some(kind) if kinds.contains(&kind) => Ok(kind),
            Some(kind) => {
                let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                Err(format!(
                    "rows with the fields {} cannot be scored as {}; they can as {}",
                    row.names(),
                    kind.name(),
                    names.join(", ")
                ))
            }
        }
    }

    /// The subject that a row belongs to, where the form has subjects.
    pub fn subject(self, row: &Row) -> FieldResult<Option<&str>> {
        match self {
            Self::Mmlu => not_empty(row, "subject").map(Some),
            _ => Ok(None),
        }
    }

    /// The forms that there are, for messages.
    pub fn known() -> String {
        let fields = |form: &Form| {
            let names: Vec<_> = form.fields().iter().map(|names| names[0]).collect();
            format!("{{{}}}", names.join(", "))
        };
        let mut all: Vec<_> = FORMS.iter().map(fields).collect();
        all.dedup();
        all.join(" ")
    }

    /// The items of a row: one, or as many as an article has questions.
    pub fn items(self, row: &Row, kind: Kind) -> FieldResult<Vec<Item>> {
        match self {
            Self::Contexts => {
                let contexts = row.texts("context_options")?;
                check_choices(&contexts, "context_options")?;
                let gold = row.gold("gold", contexts.len())?;
                let continuation = not_empty(row, "continuation")?;
                Ok(vec![Item::of_contexts(contexts, continuation, gold)])
            }
            Self::WinoGrande => winogrande(row).map(|item| vec![item]),
            Self::Continuation => {
                let context = row.text("context")?;
                let continuation = not_empty(row, "continuation")?;
                Ok(vec![Item::of_choices(context, &[continuation.into()], 0)])
            }
            Self::Text => {
                let text = row.text("text")?.trim_end();
                let Some((context, word)) = text.rsplit_once(' ') else {
                    return Err("field \"text\" has no last word after others".to_owned());
                };
                Ok(vec![Item::of_choices(context, &[word.into()], 0)])
            }
            Self::RaceArticle => {
                let questions = race_article(row)?;
                (questions.iter())
                    .map(|question| Ok(question.item(kind)?.delimited()))
                    .collect()
            }
            Self::Relation => (labelled::relation(row)?.iter())
                .map(|question| question.item(kind))
                .collect(),
            // A choice may begin with a space; the harness puts one before it all the same.
            Self::HellaSwag
            | Self::Piqa
            | Self::Siqa
            | Self::BoolQ
            | Self::OpenBookQa
            | Self::Race
            | Self::Stem
            | Self::Arc => Ok(vec![self.question(row)?.item(kind)?.delimited()]),
            _ => Ok(vec![self.question(row)?.item(kind)?]),
        }
    }

    fn question(self, row: &Row) -> FieldResult<Question> {
        let plain = |text: String, choices: Vec<String>, gold: usize, frame: Frame| Question {
            lead: String::new(),
            text,
            frame,
            choices,
            gold,
        };
        Ok(match self {
            Self::Piqa => {
                let choices = several(row, &["sol1", "sol2"])?;
                let gold = row.gold("label", 2)?;
                plain(row.text("goal")?.to_owned(), choices, gold, LONG)
            }
            Self::HellaSwag => {
                let choices = row.choices("endings")?.texts;
                let gold = row.gold("label", choices.len())?;
                let choices = choices.iter().map(|text| without_marks(text)).collect();
                plain(hellaswag_query(row)?, choices, gold, LONG)
            }
            Self::Siqa => {
                let choices = several(row, &["answerA", "answerB", "answerC"])?;
                let gold = row.gold_from_1("label", 3)?;
                let text = format!("{} {}", row.text("context")?, row.text("question")?);
                plain(text, choices, gold, SHORT)
            }
            Self::BoolQ => {
                let question = row.text("question")?.trim_end().trim_end_matches('?');
                let gold = row.gold(row.any(ANSWER)?, 2)?;
                Question {
                    lead: format!("{}\n", row.text("passage")?),
                    text: format!("{question}?"),
                    frame: LONG,
                    choices: vec!["no".to_owned(), "yes".to_owned()],
                    gold,
                }
            }
            Self::Race => {
                let choices = row.choices("options")?;
                let gold = choices.key(row, row.any(ANSWER)?)?;
                let passage = row.text(row.any(PASSAGE)?)?;
                race(passage, row.text("question")?, choices.texts, gold)
            }
            Self::AxG => labelled::diagnostic(row, "premise", "hypothesis")?,
            Self::AxB => labelled::diagnostic(row, "sentence1", "sentence2")?,
            Self::Rte => labelled::rte(row)?,
            Self::Csl => labelled::keywords(row)?,
            Self::Tnews => labelled::topic(row)?,
            Self::Fact if row.has("question_stem") => {
                labelled::with_fact(row, Self::OpenBookQa.question(row)?)?
            }
            Self::Fact => labelled::with_fact(row, Self::Stem.question(row)?)?,
            Self::OpenBookQa => {
                let choices = row.choices("choices")?;
                let gold = choices.key(row, "answerKey")?;
                let text = row.text("question_stem")?.to_owned();
                plain(text, choices.texts, gold, LONG)
            }
            Self::Stem => {
                let part = |name: &str| match row.get("question")?.get(name) {
                    Some(value) => Ok(value),
                    None => Err(format!("field \"question.{name}\" is missing")),
                };
                let choices = Choices::of(part("choices")?, "question.choices")?;
                let gold = choices.key(row, "answerKey")?;
                let stem = part("stem")?;
                let Some(text) = stem.as_str() else {
                    return Err(wrong("question.stem", "a text", stem));
                };
                plain(text.to_owned(), choices.texts, gold, LONG)
            }
            Self::Mmlu => {
                let choices = row.choices("choices")?.texts;
                let gold = row.gold("answer", choices.len())?;
                plain(row.text("question")?.to_owned(), choices, gold, LONG)
            }
            Self::Arc => {
                let choices = row.choices("choices")?;
                let gold = choices.key(row, "answerKey")?;
                plain(row.text("question")?.to_owned(), choices.texts, gold, LONG)
            }
            _ => {
                let choices = row.choices("choices")?.texts;
                let gold = row.gold("gold", choices.len())?;
                plain(row.text("query")?.to_owned(), choices, gold, LONG)
            }
        })
    }
}

fn not_empty<'r>(row: &'r Row, name: &str) -> FieldResult<&'r str> {
    match row.text(name)? {
        text if text.trim().is_empty() => Err(format!("field {name:?} is empty")),
        text => Ok(text),
    }
}

fn several(row: &Row, names: &[&str]) -> FieldResult<Vec<String>> {
    let text = |name: &&str| not_empty(row, name).map(str::to_owned);
    names.iter().map(text).collect()
}

fn winogrande(row: &Row) -> FieldResult<Item> {
    let sentence = row.text("sentence")?;
    let Some((before, after)) = sentence.split_once('_') else {
        return Err("field \"sentence\" has no _ where the options go".to_owned());
    };
    let gold = row.gold_from_1("answer", 2)?;
    let options = several(row, &["option1", "option2"])?;
    let contexts = options.iter().map(|option| format!("{before}{option}"));
    Ok(Item::of_contexts(contexts.collect(), after.trim(), gold))
}

/// A question on an article.
fn race(passage: &str, question: &str, choices: Vec<String>, gold: usize) -> Question {
    Question {
        lead: format!("Article: {passage}\n\n"),
        text: question.to_owned(),
        frame: LONG,
        choices,
        gold,
    }
}

/// RACE as it is published: an article, its questions, and for each its options
/// and the letter of its answer.
fn race_article(row: &Row) -> FieldResult<Vec<Question>> {
    let passage = row.text(row.any(PASSAGE)?)?;
    let questions = row.texts("questions")?;
    let list = |name: &str| match row.get(name)?.as_array() {
        Some(list) if list.len() == questions.len() => Ok(list),
        Some(list) => Err(format!(
            "field {name:?} holds {} entries, but there are {} questions",
            list.len(),
            questions.len()
        )),
        None => Err(wrong(name, "a list", row.get(name)?)),
    };
    let (options, answers) = (list("options")?, list("answers")?);
    (questions.iter().enumerate())
        .map(|(i, question)| {
            let name = format!("options[{i}]");
            let choices = list_of_texts(&options[i], &name)?;
            check_choices(&choices, &name)?;
            let gold = gold(&answers[i], &format!("answers[{i}]"), choices.len(), 0)?;
            Ok(race(passage, question, choices, gold))
        })
        .collect()
}

fn hellaswag_query(row: &Row) -> FieldResult<String> {
    let context = if row.has("ctx_a") && row.has("ctx_b") {
        let mut rest = row.text("ctx_b")?.chars();
        let first = rest.next().map(|c| c.to_uppercase().to_string());
        let rest = rest.as_str().to_lowercase();
        format!("{} {}{rest}", row.text("ctx_a")?, first.unwrap_or_default())
    } else {
        row.text(row.any(&["ctx", "ctx_a"])?)?.to_owned()
    };
    Ok(without_marks(&if row.has("activity_label") {
        format!("{}: {context}", row.text("activity_label")?)
    } else {
        context
    }))
}

/// HellaSwag's text without the marks of its sources: `[title]` and the like.
fn without_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('[') {
        clean += before;
        match after.split_once(']') {
            // A mark does not reach over lines.
            Some((mark, end)) if !mark.contains('\n') => rest = end,
            _ => {
                clean.push('[');
                rest = after;
            }
        }
    }
    clean += rest;
    clean.replace("  ", " ")
}

#[cfg(test)]
#[path = "forms_tests.rs"]
mod tests;
