//! Finished cells on disk: what was measured, and of what.
//!
//! A cell is one measure of one form of the model, a JSON file that appears
//! whole or not at all. It holds its key: everything that its value depends on
//! (digests, settings, this build of the program), and nothing else, such as
//! paths. A cell is found again by its key, so a changed input leaves exactly those
//! cells unused that depend on it. How its value can be had by hand stands beside
//! it.

use std::path::{Path, PathBuf};

use headshare_files::AtomicFile;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ReportError;

/// The folder of the cells in the report's.
const CELLS: &str = "cells";
/// The folder of the models in the report's.
const FILES: &str = "files";
/// The report itself.
const RESULTS: [&str; 8] = [
    "report.md",
    "report.json",
    "quality.svg",
    "quality.png",
    "match.svg",
    "match.png",
    "subjects.svg",
    "subjects.png",
];

/// A report's folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

/// Everything that a cell's value depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key(Value);

impl Key {
    /// All that `on` holds.
    ///
    /// # Errors
    /// When that is no JSON.
    pub fn of<T: Serialize>(on: &T) -> Result<Self, ReportError> {
        let on = serde_json::to_value(on).map_err(ReportError::Json)?;
        Ok(Self(on))
    }

    /// The beginning of its digest, in hexadecimal.
    fn digest(&self, digits: usize) -> String {
        let digest = blake3::hash(self.0.to_string().as_bytes());
        digest.to_hex().chars().take(digits).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    key: Key,
    /// The arguments of the program that give the value by hand.
    command: Vec<String>,
    value: T,
}

impl Store {
    /// Checks that `folder` is a report's, empty, or not there.
    ///
    /// # Errors
    /// When it is no folder, cannot be read, or holds something else.
    pub fn check(folder: &Path) -> Result<(), ReportError> {
        let io = |error| ReportError::Folder {
            path: folder.to_owned(),
            error,
        };
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(io)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(io)?.file_name());
        }
        names.sort();
        let ours = |name: &std::ffi::OsString| {
            let name = name.to_string_lossy();
            let known = [CELLS, FILES].iter().chain(&RESULTS);
            // A run that was killed may have left temporary files.
            let temporary = name.starts_with('.') && name.ends_with(".tmp");
            temporary || known.into_iter().any(|known| *known == name)
        };
        let foreign = names.iter().find(|name| !ours(name));
        // Without cells, even a report.md is somebody else's.
        let foreign = foreign.or(names.first().filter(|_| !folder.join(CELLS).is_dir()));
        match foreign {
            None => Ok(()),
            Some(name) => Err(ReportError::Foreign {
                path: folder.to_owned(),
                name: name.to_string_lossy().into_owned(),
            }),
        }
    }

    /// Opens `folder`, or makes it.
    ///
    /// # Errors
    /// As [`check`](Self::check), and when it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, ReportError> {
        Self::check(folder)?;
        let this = Self {
            folder: folder.to_owned(),
        };
        this.make(CELLS)?;
        Ok(this)
    }

    fn make(&self, name: &str) -> Result<PathBuf, ReportError> {
        let path = self.folder.join(name);
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(error) => Err(ReportError::Folder { path, error }),
        }
    }

    /// The value of the cell `name` whose key is `key`, if it is there. A
    /// damaged cell is none.
    pub fn get<T: DeserializeOwned>(&self, name: &str, key: &Key) -> Option<T> {
        let text = std::fs::read(self.cell(name, key)).ok()?;
        // By way of a `Value`: types that are flattened cannot read the numbers that
        // serde_json keeps as text because a crate of the workspace has it do so.
        let stored: Stored<Value> = serde_json::from_slice(&text).ok()?;
        let value = (stored.key == *key).then_some(stored.value)?;
        serde_json::from_value(value).ok()
    }

    /// Whether there is the cell `name` whose key is `key`, whatever it holds.
    pub fn has(&self, name: &str, key: &Key) -> bool {
        self.get::<IgnoredAny>(name, key).is_some()
    }

    /// Keeps a cell; `command` has the arguments of the program that give its value
    /// by hand, or none where it takes more than that.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put<T: Serialize>(
        &self,
        name: &str,
        key: &Key,
        command: &[String],
        value: &T,
    ) -> Result<(), ReportError> {
        let stored = Stored {
            key: key.clone(),
            command: command.to_vec(),
            value,
        };
        let mut text = serde_json::to_vec_pretty(&stored).map_err(ReportError::Json)?;
        text.push(b'\n');
        write(&self.cell(name, key), &text)
    }

    fn cell(&self, name: &str, key: &Key) -> PathBuf {
        let file = format!("{name}.{}.json", key.digest(12));
        self.folder.join(CELLS).join(file)
    }

    /// Where the model file `name` goes; its folder is made.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn model(&self, name: &str) -> Result<PathBuf, ReportError> {
        Ok(self.make(FILES)?.join(format!("{name}.gguf")))
    }

    /// Where what `convert --save-stats` measures for `key` is kept.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn stats(&self, key: &Key) -> Result<PathBuf, ReportError> {
        let name = format!("choice-{}.json", key.digest(16));
        Ok(self.make(CELLS)?.join(name))
    }

    /// Where the importance matrix that is measured for `key` is kept.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn imatrix(&self, key: &Key) -> Result<PathBuf, ReportError> {
        let name = format!("imatrix-{}.gguf", key.digest(16));
        Ok(self.make(CELLS)?.join(name))
    }

    /// Removes the folder of model files if it is empty.
    pub fn tidy(&self) {
        let _ = std::fs::remove_dir(self.folder.join(FILES));
    }

    /// Writes a file of the report itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ReportError> {
        debug_assert!(RESULTS.contains(&name));
        write(&self.folder.join(name), bytes)
    }

    /// Removes a file of an earlier report that this one does not have.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), ReportError> {
        debug_assert!(RESULTS.contains(&name));
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ReportError::Folder { path, error })
            }
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    Ok(AtomicFile::write(path, bytes, true, &[])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cell_is_found_by_its_key_and_only_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("report")).unwrap();
        let key = Key::of(&json!({"source": "a", "ctx": 8})).unwrap();
        assert_eq!(store.get::<f64>("shared-0.1.perplexity", &key), None);
        assert!(!store.has("shared-0.1.perplexity", &key));
        let command = ["eval".to_owned()];
        (store.put("shared-0.1.perplexity", &key, &command, &1.25)).unwrap();
        assert!(store.has("shared-0.1.perplexity", &key));
        assert_eq!(store.get("shared-0.1.perplexity", &key), Some(1.25));
        let other = Key::of(&json!({"source": "a", "ctx": 16})).unwrap();
        assert_eq!(store.get::<f64>("shared-0.1.perplexity", &other), None);
        assert_eq!(store.get::<f64>("shared-0.2.perplexity", &key), None);
        // Opened again, it is still there; damaged, it is not.
        let store = Store::open(&folder.path().join("report")).unwrap();
        assert_eq!(store.get("shared-0.1.perplexity", &key), Some(1.25));
        std::fs::write(store.cell("shared-0.1.perplexity", &key), "{\"key\":").unwrap();
        assert_eq!(store.get::<f64>("shared-0.1.perplexity", &key), None);
    }

    #[test]
    fn scores_of_subjects_come_back_as_they_were() {
        use crate::eval::choice::summary::{Accuracy, SubjectSummary};

        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("report")).unwrap();
        let key = Key::of(&json!({"task": "a"})).unwrap();
        let subject = SubjectSummary {
            subject: "anatomy".to_owned(),
            shots: None,
            accuracy: Accuracy {
                accuracy: 1.0 / 3.0,
                accuracy_norm: 0.1 + 0.2,
                stderr: Some(1e-17),
                stderr_norm: None,
                n: 3,
            },
        };
        store.put("source.task", &key, &[], &subject).unwrap();
        assert_eq!(store.get("source.task", &key), Some(subject));
    }

    #[test]
    fn folders_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        Store::check(path).unwrap();
        std::fs::write(path.join("report.md"), "mine").unwrap();
        let error = Store::check(path).unwrap_err().to_string();
        assert!(error.contains("report.md"), "{error}");
        std::fs::create_dir(path.join(CELLS)).unwrap();
        Store::check(path).unwrap();
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        let error = Store::open(path).unwrap_err().to_string();
        assert!(error.contains("notes.txt"), "{error}");
        assert!(matches!(
            Store::check(&path.join("notes.txt")),
            Err(ReportError::Folder { .. })
        ));
    }
}
