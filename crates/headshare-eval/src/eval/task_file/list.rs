//! A task file that is one JSON array: its objects one by one, with their lines.

use serde_json::{Deserializer, Value};

use super::row::{FieldResult, Row};

/// The objects of a JSON array.
pub(super) struct List {
    text: String,
    /// What of the text is read.
    at: usize,
    /// The line of `at`.
    line: u64,
    /// What comes next.
    next: Next,
}

enum Next {
    /// `[`, and then a row or `]`.
    Begin,
    /// `,` and a row, or `]`.
    Row,
    Nothing,
}

impl List {
    /// `text` begins in this line of its file, with `[`.
    pub fn new(text: String, line: u64) -> Self {
        Self {
            text,
            at: 0,
            line,
            next: Next::Begin,
        }
    }

    fn skip(&mut self, bytes: usize) {
        let skipped = &self.text.as_bytes()[self.at..self.at + bytes];
        self.line += skipped.iter().filter(|&&b| b == b'\n').count() as u64;
        self.at += bytes;
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.skip(rest.len() - rest.trim_start().len());
    }

    /// Goes over `mark` and the blanks after it, if it comes next.
    fn skip_mark(&mut self, mark: char) -> bool {
        let comes = self.text[self.at..].starts_with(mark);
        if comes {
            self.skip(mark.len_utf8());
            self.skip_blanks();
        }
        comes
    }

    /// The next row.
    fn row(&mut self) -> FieldResult<Option<(u64, Row)>> {
        let begun = match self.next {
            Next::Nothing => return Ok(None),
            Next::Begin => self.skip_mark('['),
            Next::Row => {
                self.skip_blanks();
                self.skip_mark(',')
            }
        };
        let first = matches!(self.next, Next::Begin);
        self.next = Next::Nothing;
        if (first || !begun) && self.skip_mark(']') {
            return match self.text[self.at..].is_empty() {
                true => Ok(None),
                false => Err("there is more after the end of the list".to_owned()),
            };
        }
        if !begun {
            return Err("the list does not go on with a comma, nor end with ]".to_owned());
        }
        let mut values = Deserializer::from_str(&self.text[self.at..]).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(e)) => {
                self.line += e.line() as u64 - 1;
                return Err(Row::broken(&e));
            }
            None => return Err("the list does not end with ]".to_owned()),
        };
        let len = values.byte_offset();
        let line = self.line;
        let row = Row::of(value)?;
        self.skip(len);
        self.next = Next::Row;
        Ok(Some((line, row)))
    }
}

impl Iterator for List {
    type Item = Result<(u64, Row), (u64, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row()
            .map_err(|problem| (self.line, problem))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the rows, and the error at the end, if there is one.
    fn read(text: &str) -> (Vec<u64>, Option<(u64, String)>) {
        let mut lines = Vec::new();
        for row in List::new(text.to_owned(), 3) {
            match row {
                Ok((line, row)) => {
                    assert!(row.has("a"));
                    lines.push(line);
                }
                Err(error) => return (lines, Some(error)),
            }
        }
        (lines, None)
    }

    #[test]
    fn rows_know_the_lines_that_they_begin_in() {
        assert_eq!(read("[]"), (vec![], None));
        assert_eq!(read(r#"[{"a": 1}, {"a": "]"}]"#), (vec![3, 3], None));
        let text = "[\n\n {\"a\":\n  [1,\n 2]}\n,\r\n{\"a\": 3},{\"a\": 4}\n]\n";
        assert_eq!(read(text), (vec![5, 9, 9], None));
    }

    #[test]
    fn broken_lists_name_the_line() {
        for (text, rows, line, part) in [
            ("[", 0, 3, "does not end"),
            ("[\n{\"a\": 1}\n", 1, 5, "nor end with ]"),
            ("[{\"a\": 1},\n", 1, 4, "does not end"),
            ("[{\"a\": 1},]", 1, 3, "not valid JSON: expected value"),
            ("[,{\"a\": 1}]", 0, 3, "not valid JSON: expected value"),
            (
                "[{\"a\": 1}\n {\"a\": 2}]",
                1,
                4,
                "does not go on with a comma",
            ),
            ("[{\"a\": 1}]\n\nx", 1, 5, "more after the end"),
            (
                "[{\"a\": 1},\n{\"a\":\n}]",
                1,
                5,
                "expected value at column 1",
            ),
            ("[{\"a\": 1}, 7]", 1, 3, "a number, not an object"),
            ("[[1]]", 0, 3, "a list, not an object"),
        ] {
            let (lines, error) = read(text);
            let (at, problem) = error.expect(text);
            assert_eq!((lines.len(), at), (rows, line), "{text}: {problem}");
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
