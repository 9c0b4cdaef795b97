//! Tasks as they are scored: contexts and continuations.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Solved examples that stand in front of the questions of MMLU and C-Eval.
pub const SHOTS: usize = 5;

/// How items are put to the model and scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The query as it is, then each choice.
    Choices,
    /// `Question: ...`, a line with `Answer:`, then each choice.
    Question,
    /// The choices listed as `A.`, `B.`, ...; the letters are scored.
    Letters,
    /// One continuation after each of several contexts (partial scoring).
    Partial,
    /// One continuation: is it what the model would have written?
    LastWord,
}

impl Kind {
    /// As it is written in arguments and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Choices => "choices",
            Self::Question => "question",
            Self::Letters => "letters",
            Self::Partial => "partial",
            Self::LastWord => "last-word",
        }
    }
}

/// Which of its two accuracies a task is reported by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// By the sum of log-probabilities.
    Accuracy,
    /// By the sum over the choice's length.
    #[default]
    AccuracyNorm,
}

impl Metric {
    /// As it is written in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::AccuracyNorm => "accuracy_norm",
        }
    }
}

/// A context and a continuation whose log-probability is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What comes after the item's [`lead`](Item::lead).
    pub context: String,
    /// What is scored, with the space in front of it.
    pub continuation: String,
    /// Characters of the choice, for `accuracy_norm`.
    pub length: usize,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What all contexts of a subject begin with: its description and examples.
    pub lead: Arc<str>,
    /// One for each choice.
    pub pairs: Vec<Pair>,
    /// Which of them is right.
    pub gold: usize,
    /// Where it stands.
    pub origin: Origin,
}

/// Where an item stands, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The table, where a file has several.
    pub table: Option<Arc<str>>,
    /// The line, counted from 1.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(table) = &self.table {
            write!(f, "{table}, ")?;
        }
        write!(f, "line {}", self.line)
    }
}

impl Item {
    /// Choices after one context.
    pub(super) fn of_choices(context: &str, choices: &[String], gold: usize) -> Self {
        let pair = |choice: &String| Pair {
            context: context.to_owned(),
            continuation: spaced(context, choice),
            length: choice.chars().count(),
        };
        Self::new(choices.iter().map(pair).collect(), gold)
    }

    /// Puts a space in front of each continuation, also where there is white space already.
    pub(super) fn delimited(mut self) -> Self {
        for pair in &mut self.pairs {
            if pair.continuation.chars().count() == pair.length {
                pair.continuation.insert(0, ' ');
            }
        }
        self
    }

    /// One continuation after several contexts.
    pub(super) fn of_contexts(contexts: Vec<String>, continuation: &str, gold: usize) -> Self {
        let pair = |context: String| Pair {
            continuation: spaced(&context, continuation),
            context,
            length: continuation.chars().count(),
        };
        Self::new(contexts.into_iter().map(pair).collect(), gold)
    }

    fn new(pairs: Vec<Pair>, gold: usize) -> Self {
        Self {
            lead: Arc::from(""),
            pairs,
            gold,
            origin: Origin::default(),
        }
    }
}

/// The continuation with a space in front, unless there is white space already.
fn spaced(context: &str, continuation: &str) -> String {
    if context.ends_with(char::is_whitespace) || continuation.starts_with(char::is_whitespace) {
        continuation.to_owned()
    } else {
        format!(" {continuation}")
    }
}

/// Items that are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name; that of the task where there are no subjects.
    pub name: String,
    /// Its questions.
    pub items: Vec<Item>,
    /// Solved examples in front of each, where the file has such examples apart.
    pub shots: Option<usize>,
}

/// A task file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The file's name without its ending.
    pub name: String,
    /// How it is scored.
    pub kind: Kind,
    /// The accuracy that lm-evaluation-harness reports for such a task, the last one where it
    /// reports both.
    pub metric: Metric,
    /// The form of its rows: the name of the data set that has it, or their
    /// fields.
    pub form: &'static str,
    /// One, or as many as an archive has.
    pub subjects: Vec<Subject>,
    /// Whether the file divides its items into subjects.
    pub has_subjects: bool,
}

impl Task {
    /// All items, in order.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.subjects.iter().flat_map(|subject| &subject.items)
    }

    /// The subjects whose questions have fewer examples in front than they are
    /// meant to have, by the number of these.
    pub fn short_of_examples(&self) -> BTreeMap<usize, Vec<&str>> {
        let mut short: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for subject in &self.subjects {
            if let Some(shots) = subject.shots.filter(|shots| *shots < SHOTS) {
                short.entry(shots).or_default().push(&subject.name);
            }
        }
        short
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.subjects.iter().map(|s| s.items.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_space_stands_between_context_and_choice() {
        let of = |context: &str, choice: &str| {
            Item::of_choices(context, &[choice.to_owned()], 0).pairs[0]
                .continuation
                .clone()
        };
        assert_eq!(of("It is", "so"), " so");
        assert_eq!(of("It is ", "so"), "so");
        assert_eq!(of("It is\n", "so"), "so");
        assert_eq!(of("It is", " so"), " so");
        assert_eq!(of("", "So"), " So");
    }

    #[test]
    fn lengths_are_in_characters_without_the_space() {
        let choices = ["naïve".to_owned(), "是".to_owned()];
        let item = Item::of_choices("It is", &choices, 0);
        assert_eq!(item.pairs[0].length, 5);
        assert_eq!(item.pairs[1].length, 1);
    }
}
