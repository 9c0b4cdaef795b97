//! Texts and tasks that lie in the repository, or beside it.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    root().join("tests/data").join(name)
}

/// A text of these tests' own: 8 KB of plain English.
pub fn valley() -> PathBuf {
    data("valley.txt")
}

/// Questions with answers to choose from.
pub fn questions() -> PathBuf {
    data("choice/question.jsonl")
}

/// A data set that lies beside the repository; `None`, with a remark, where
/// there is none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: there is no ../shared/data/{name}");
    None
}
