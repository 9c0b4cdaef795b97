//! Arguments of a command line, as they come together.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::load::Resolve;

const MARK: char = '\u{feff}';

/// Arguments, as they come together.
pub(super) struct Line(pub Vec<OsString>);

impl Line {
    /// Of a command.
    pub fn of(words: &[&str]) -> Self {
        Self(words.iter().map(Into::into).collect())
    }

    pub fn flag(mut self, flag: &str, given: bool) -> Self {
        if given {
            self.0.push(flag.into());
        }
        self
    }

    /// What looks like a flag, or is nothing, is said in one word.
    pub fn value(mut self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref();
        let as_flag = value.len() != 1 && value.as_encoded_bytes().starts_with(b"-");
        if as_flag || value.is_empty() {
            let mut word = OsString::from(flag);
            word.push("=");
            word.push(value);
            self.0.push(word);
        } else {
            self.0.extend([flag.into(), value.to_owned()]);
        }
        self
    }

    /// A text, of which a byte-order mark is not taken to be a part.
    pub fn text(self, flag: &str, text: &str) -> Self {
        match text.strip_prefix(MARK) {
            Some(_) => self.value(flag, format!("{MARK}{text}")),
            None => self.value(flag, text),
        }
    }

    pub fn number(self, flag: &str, number: impl ToString) -> Self {
        self.value(flag, number.to_string())
    }

    pub fn option<T: ToString>(self, flag: &str, number: Option<T>) -> Self {
        match number {
            Some(number) => self.number(flag, number),
            None => self,
        }
    }

    pub fn path(self, flag: &str, path: Option<&Path>) -> Self {
        match path {
            Some(path) => self.value(flag, path),
            None => self,
        }
    }

    pub fn resolve(self, resolve: Resolve) -> Self {
        let name = match resolve {
            Resolve::Auto => return self,
            Resolve::Fold => "fold",
            Resolve::Map => "map",
            Resolve::Expand => "expand",
        };
        self.value("--resolve", name)
    }

    /// The file that the command is about, after which nothing comes.
    pub fn file(self, path: &Path) -> Self {
        self.files([path])
    }

    pub fn files<'p>(mut self, paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let paths: Vec<OsString> = paths.into_iter().map(Into::into).collect();
        let as_flag = |path: &OsString| path.as_encoded_bytes().starts_with(b"-");
        if paths.iter().any(as_flag) {
            self.0.push("--".into());
        }
        self.0.extend(paths);
        self
    }
}
