//! One row of a task file: its fields by name, with errors that name them.

use serde_json::{Map, Value};

/// More choices than this are a mistake in the file.
const MAX_CHOICES: usize = 64;

/// What is wrong with a field.
pub(in crate::eval) type FieldResult<T> = Result<T, String>;

/// An object of a task file.
pub(in crate::eval) struct Row(Map<String, Value>);

impl Row {
    /// Reads a line.
    pub fn parse(line: &str) -> FieldResult<Self> {
        Self::of(serde_json::from_str(line).map_err(|e| Self::broken(&e))?)
    }

    /// The row that is this value.
    pub fn of(value: Value) -> FieldResult<Self> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(format!(
                "the line holds {}, not an object with fields",
                kind_of(&other)
            )),
        }
    }

    /// What is wrong with text that is no JSON.
    pub fn broken(error: &serde_json::Error) -> String {
        // The row is all it has seen: its own "line 1" says nothing.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message);
        format!("not valid JSON: {message} at column {}", error.column())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names of the fields, for messages.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        if names.is_empty() {
            return "none".to_owned();
        }
        names.join(", ")
    }

    /// The same with what each holds: the form of a task depends on that, too.
    pub fn contents(&self) -> String {
        let kind = |value: &Value| match value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        let fields = self
            .0
            .iter()
            .map(|(name, value)| format!("{name} ({})", kind(value)));
        let fields: Vec<String> = fields.collect();
        match fields.is_empty() {
            true => "none".to_owned(),
            false => fields.join(", "),
        }
    }

    pub fn get(&self, name: &str) -> FieldResult<&Value> {
        match self.0.get(name) {
            Some(value) => Ok(value),
            None => Err(format!(
                "field {name:?} is missing (there are: {})",
                self.names()
            )),
        }
    }

    /// The first of `names` that the row has.
    pub fn any<'a>(&self, names: &[&'a str]) -> FieldResult<&'a str> {
        match names.iter().find(|name| self.has(name)) {
            Some(name) => Ok(name),
            None => Err(format!(
                "field {:?} is missing (there are: {})",
                names[0],
                self.names()
            )),
        }
    }

    pub fn text(&self, name: &str) -> FieldResult<&str> {
        as_text(self.get(name)?, name)
    }

    /// A list of at least one text.
    pub fn texts(&self, name: &str) -> FieldResult<Vec<String>> {
        list_of_texts(self.get(name)?, name)
    }

    /// Choices: a list of two texts or more, none of them empty, as the field
    /// itself or in its `text`.
    pub fn choices(&self, name: &str) -> FieldResult<Choices> {
        Choices::parse(self.get(name)?, name)
    }

    /// Which of `n` choices is right: a number from 0, a letter, or true and
    /// false.
    pub fn gold(&self, name: &str, n: usize) -> FieldResult<usize> {
        gold(self.get(name)?, name, n, 0)
    }

    /// The same, with numbers from 1.
    pub fn gold_from_1(&self, name: &str, n: usize) -> FieldResult<usize> {
        gold(self.get(name)?, name, n, 1)
    }
}

/// Choices, and the labels that an answer key names them by.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::eval) struct Choices {
    pub texts: Vec<String>,
    labels: Vec<String>,
}

impl Choices {
    fn parse(value: &Value, name: &str) -> FieldResult<Self> {
        let mut labels = Vec::new();
        let texts = match value {
            // {"text": [...], "label": [...]}
            Value::Object(map) => {
                let field = |part: &str| {
                    let name = format!("{name}.{part}");
                    match map.get(part) {
                        Some(value) => list_of_texts(value, &name),
                        None => Err(format!("field {name:?} is missing")),
                    }
                };
                labels = field("label")?;
                field("text")?
            }
            // [{"text": ..., "label": ...}, ...]
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let part = |i: usize, part: &str| {
                    let name = format!("{name}[{i}].{part}");
                    match list[i].get(part) {
                        Some(value) => as_text(value, &name).map(str::to_owned),
                        None => Err(format!("field {name:?} is missing")),
                    }
                };
                labels = (0..list.len())
                    .map(|i| part(i, "label"))
                    .collect::<Result<_, _>>()?;
                (0..list.len())
                    .map(|i| part(i, "text"))
                    .collect::<Result<_, _>>()?
            }
            other => list_of_texts(other, name)?,
        };
        check_choices(&texts, name)?;
        if !labels.is_empty() && labels.len() != texts.len() {
            return Err(format!(
                "field {name:?} holds {} texts and {} labels",
                texts.len(),
                labels.len()
            ));
        }
        Ok(Self { texts, labels })
    }

    /// As above, for what is part of a field.
    pub fn of(value: &Value, name: &str) -> FieldResult<Self> {
        Self::parse(value, name)
    }

    /// The one that the answer key names.
    pub fn key(&self, row: &Row, name: &str) -> FieldResult<usize> {
        let value = row.get(name)?;
        if self.labels.is_empty() {
            return gold(value, name, self.texts.len(), 0);
        }
        let key = match value {
            Value::String(key) => key.trim().to_owned(),
            Value::Number(key) => key.to_string(),
            other => return Err(wrong(name, "a text", other)),
        };
        match self.labels.iter().position(|label| *label == key) {
            Some(at) => Ok(at),
            None => Err(format!(
                "field {name:?} is {key:?}, but the labels are {}",
                self.labels.join(", ")
            )),
        }
    }
}

/// Reads the right choice; see [`Row::gold`].
pub(in crate::eval) fn gold(
    value: &Value,
    name: &str,
    n: usize,
    first: usize,
) -> FieldResult<usize> {
    let out_of_range = |shown: &str| {
        Err(format!(
            "field {name:?} is {shown}, but there are {n} choices ({first} to {})",
            n + first - 1
        ))
    };
    let number = match value {
        Value::Bool(yes) => Some(i64::from(*yes) + first as i64),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => match text.trim().as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(i64::from(letter - b'A') + first as i64),
            [letter @ b'a'..=b'z'] => Some(i64::from(letter - b'a') + first as i64),
            _ => text.trim().parse().ok(),
        },
        other => return Err(wrong(name, "the number or letter of a choice", other)),
    };
    let Some(number) = number else {
        return Err(wrong(name, "the number or letter of a choice", value));
    };
    match usize::try_from(number)
        .ok()
        .and_then(|n| n.checked_sub(first))
    {
        Some(at) if at < n => Ok(at),
        _ => out_of_range(&value.to_string()),
    }
}

pub(in crate::eval) fn as_text<'v>(value: &'v Value, name: &str) -> FieldResult<&'v str> {
    value.as_str().ok_or_else(|| wrong(name, "a text", value))
}

pub(in crate::eval) fn list_of_texts(value: &Value, name: &str) -> FieldResult<Vec<String>> {
    let Some(list) = value.as_array() else {
        return Err(wrong(name, "a list of texts", value));
    };
    if list.is_empty() {
        return Err(format!("field {name:?} is an empty list"));
    }
    (list.iter().enumerate())
        .map(|(i, value)| match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(wrong(&format!("{name}[{i}]"), "a text", value)),
        })
        .collect()
}

/// Checks that there are choices in the field `name`, and not too many, and that none is empty.
pub(in crate::eval) fn check_choices(texts: &[String], name: &str) -> FieldResult<()> {
    if !(2..=MAX_CHOICES).contains(&texts.len()) {
        return Err(format!(
            "field {name:?} holds {} choices, where 2 to {MAX_CHOICES} can be",
            texts.len()
        ));
    }
    match texts.iter().position(|text| text.trim().is_empty()) {
        Some(i) => Err(format!("field {:?} is empty", format!("{name}[{i}]"))),
        None => Ok(()),
    }
}

pub(in crate::eval) fn wrong(name: &str, wanted: &str, value: &Value) -> String {
    let mut shown = value.to_string();
    if shown.chars().count() > 40 || value.is_object() || value.is_array() {
        shown = kind_of(value).to_owned();
    }
    format!("field {name:?} must be {wanted}, not {shown}")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Row {
        Row::parse(&value.to_string()).unwrap()
    }

    #[test]
    fn gold_is_a_number_a_letter_or_a_boolean() {
        for (value, n, at) in [
            (json!(0), 2, 0),
            (json!(3), 4, 3),
            (json!("2"), 4, 2),
            (json!("C"), 4, 2),
            (json!(" d "), 4, 3),
            (json!(true), 2, 1),
            (json!(false), 2, 0),
        ] {
            assert_eq!(gold(&value, "gold", n, 0), Ok(at), "{value}");
        }
        assert_eq!(gold(&json!("1"), "label", 3, 1), Ok(0));
        assert_eq!(gold(&json!("B"), "label", 3, 1), Ok(1));
        assert_eq!(gold(&json!(3), "label", 3, 1), Ok(2));
    }

    #[test]
    fn gold_out_of_range_says_what_there_is() {
        for value in [json!(2), json!(-1), json!("C"), json!(i64::MIN), json!("7")] {
            let problem = gold(&value, "gold", 2, 0).unwrap_err();
            assert_eq!(
                problem,
                format!("field \"gold\" is {value}, but there are 2 choices (0 to 1)")
            );
        }
        assert!(
            gold(&json!(0), "label", 3, 1)
                .unwrap_err()
                .contains("(1 to 3)")
        );
    }

    #[test]
    fn gold_of_another_type_names_the_field() {
        for value in [
            json!(null),
            json!([0]),
            json!(0.5),
            json!("yes"),
            json!(u64::MAX),
        ] {
            let problem = gold(&value, "gold", 2, 0).unwrap_err();
            assert!(problem.starts_with("field \"gold\" must be"), "{problem}");
        }
    }

    #[test]
    fn broken_json_names_the_column() {
        let problem = Row::parse(r#"{"query": "a", }"#).err().unwrap();
        assert!(problem.contains("column 16"), "{problem}");
        assert!(!problem.contains("line 1"), "{problem}");
        assert!(Row::parse("[1]").err().unwrap().contains("a list"));
    }

    #[test]
    fn choices_are_texts_or_texts_with_labels() {
        let plain = row(json!({"choices": ["a", "b"], "key": "B"}));
        let choices = plain.choices("choices").unwrap();
        assert_eq!(choices.texts, ["a", "b"]);
        assert_eq!(choices.key(&plain, "key"), Ok(1));
        let labelled = row(
            json!({"choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
                                  "key": "3"}),
        );
        let choices = labelled.choices("choices").unwrap();
        assert_eq!(choices.key(&labelled, "key"), Ok(2));
        let listed = row(json!({"choices": [{"text": "a", "label": "A"},
                                            {"text": "b", "label": "B"}], "key": "A"}));
        let choices = listed.choices("choices").unwrap();
        assert_eq!(choices.key(&listed, "key"), Ok(0));
    }

    #[test]
    fn bad_choices_name_the_field() {
        for (value, part) in [
            (
                json!("a"),
                "field \"choices\" must be a list of texts, not \"a\"",
            ),
            (json!([]), "field \"choices\" is an empty list"),
            (json!(["a"]), "holds 1 choices"),
            (
                json!(["a", 1]),
                "field \"choices[1]\" must be a text, not 1",
            ),
            (json!(["a", " "]), "field \"choices[1]\" is empty"),
            (json!(vec!["a"; 65]), "holds 65 choices"),
            (
                json!({"text": ["a", "b"]}),
                "field \"choices.label\" is missing",
            ),
            (
                json!({"text": ["a", "b"], "label": ["A"]}),
                "2 texts and 1 labels",
            ),
            (
                json!([{"text": "a", "label": "A"}, {"text": "b"}]),
                "choices[1].label",
            ),
        ] {
            let row = row(json!({"choices": value}));
            let problem = row.choices("choices").unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn an_unknown_key_lists_the_labels() {
        let row = row(json!({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "key": "E"}));
        let problem = row
            .choices("choices")
            .unwrap()
            .key(&row, "key")
            .unwrap_err();
        assert_eq!(problem, "field \"key\" is \"E\", but the labels are A, B");
    }
}
