//! A question with choices, put into words: the prompts of
//! lm-evaluation-harness.

use super::item::{Item, Kind};
use crate::eval::task_file::FieldResult;

/// The letters that choices are listed by.
pub(super) const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A question and its choices.
#[derive(Debug)]
pub(super) struct Question {
    /// What stands in front: a passage with its line ends.
    pub lead: String,
    /// The question itself.
    pub text: String,
    /// How it is announced when it is put as a question, and its answer.
    pub frame: Frame,
    pub choices: Vec<String>,
    pub gold: usize,
}

/// What announces a question and its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub question: &'static str,
    pub answer: &'static str,
}

pub(super) const LONG: Frame = Frame {
    question: "Question: ",
    answer: "Answer:",
};
pub(super) const SHORT: Frame = Frame {
    question: "Q: ",
    answer: "A:",
};
pub(super) const CHINESE: Frame = Frame {
    question: "",
    answer: "答案：",
};

impl Question {
    /// Whether the text announces itself as a question and leaves the answer
    /// open, as the query of a PIQA or BoolQ file does.
    pub fn is_announced(text: &str) -> bool {
        let announced = text
            .lines()
            .any(|line| line.trim_start().starts_with("Question:"));
        announced && !text.trim_end().ends_with("Answer:")
    }

    /// The context that `kind` makes of it.
    fn context(&self, kind: Kind) -> String {
        let Self { lead, text, .. } = self;
        let Frame { question, answer } = self.frame;
        match kind {
            Kind::Question if text.trim_end().ends_with(answer) => format!("{lead}{text}"),
            Kind::Question if Self::is_announced(text) => {
                format!("{lead}{}\n{answer}", text.trim_end())
            }
            Kind::Question => format!("{lead}{question}{}\n{answer}", text.trim()),
            Kind::Letters => {
                let mut context = format!("{lead}{}\n", text.trim());
                for (letter, choice) in LETTERS.chars().zip(&self.choices) {
                    context += &format!("{letter}. {choice}\n");
                }
                context + answer
            }
            _ => format!("{lead}{text}"),
        }
    }

    /// The item that `kind` makes of it.
    pub fn item(&self, kind: Kind) -> FieldResult<Item> {
        let context = self.context(kind);
        if kind != Kind::Letters {
            return Ok(Item::of_choices(&context, &self.choices, self.gold));
        }
        if self.choices.len() > LETTERS.len() {
            return Err(format!(
                "{} choices, but there are {} letters",
                self.choices.len(),
                LETTERS.len()
            ));
        }
        let letters: Vec<String> = (LETTERS.chars().take(self.choices.len()))
            .map(String::from)
            .collect();
        Ok(Item::of_choices(&context, &letters, self.gold))
    }

    /// The question with its right answer, as an example in front of others.
    pub fn example(&self) -> String {
        let answer = LETTERS.get(self.gold..=self.gold).unwrap_or_default();
        format!("{} {answer}\n\n", self.context(Kind::Letters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str) -> Question {
        Question {
            lead: String::new(),
            text: text.into(),
            frame: LONG,
            choices: vec!["red".into(), "blue".into()],
            gold: 1,
        }
    }

    fn context(text: &str, kind: Kind) -> String {
        question(text).item(kind).unwrap().pairs[0].context.clone()
    }

    #[test]
    fn a_query_is_put_as_it_is_or_as_a_question() {
        assert_eq!(context("The sky is", Kind::Choices), "The sky is");
        assert_eq!(
            context("What is it?", Kind::Question),
            "Question: What is it?\nAnswer:"
        );
        // Those of PIQA and BoolQ files announce themselves.
        let announced = "Question: What is it?\nAnswer:";
        assert_eq!(
            context("Question: What is it?\n", Kind::Question),
            announced
        );
        assert_eq!(context(announced, Kind::Question), announced);
        assert_eq!(
            context("Passage: It is.\nQuestion: is it?", Kind::Question),
            "Passage: It is.\nQuestion: is it?\nAnswer:"
        );
        assert!(Question::is_announced("Question: a\n"));
        assert!(!Question::is_announced("Ask this Question: a"));
        assert!(!Question::is_announced(announced));
    }

    #[test]
    fn choices_are_listed_by_letters() {
        let item = question(" Which? ").item(Kind::Letters).unwrap();
        assert_eq!(item.pairs[1].context, "Which?\nA. red\nB. blue\nAnswer:");
        assert_eq!(item.pairs[1].continuation, " B");
        assert_eq!(
            question("Which?").example(),
            "Which?\nA. red\nB. blue\nAnswer: B\n\n"
        );
        let mut many = question("Which?");
        many.choices = vec!["x".into(); 27];
        assert!(many.item(Kind::Letters).is_err());
    }
}
