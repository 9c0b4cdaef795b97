//! What is measured in turns.

use headshare_convert::input::ModelFile;
use headshare_convert::model::architecture;

use super::measure::{LoadMode, Measure};
use crate::Error;

/// One file loaded in one way.
#[derive(Debug)]
pub(super) struct Configuration {
    /// What it is called; no two are called the same.
    pub label: String,
    /// Size of the file.
    pub file_bytes: u64,
    pub measure: Measure,
}

impl Configuration {
    /// One more beside `others`; `several` says that the number of threads tells
    /// some apart.
    pub fn new(measure: Measure, file: &ModelFile, several: bool, others: &[Self]) -> Self {
        let path = &measure.file;
        let name = path.file_name().unwrap_or(path.as_os_str());
        let as_run = match measure.load_mode {
            LoadMode::Resolve(resolve) if file.table.is_some() => resolve.as_str(),
            _ => "dropping",
        };
        let what = measure.load_mode.stock_name().unwrap_or(as_run);
        let mut label = format!("{}: {what}", name.to_string_lossy());
        match measure.threads {
            _ if !several => {}
            Some(n) => label += &format!(", -t {n}"),
            None => label += ", -t auto",
        }
        let again = format!("{label} #");
        let same = |c: &&Self| c.label == label || c.label.starts_with(&again);
        let label = match others.iter().filter(same).count() {
            0 => label,
            n => format!("{again}{}", n + 1),
        };
        Self {
            label,
            file_bytes: file.len(),
            measure,
        }
    }
}

/// Refuses encoders; other models that do not generate are refused by the
/// worker, once llama.cpp has them.
///
/// # Errors
/// When it is one.
pub(crate) fn check_generates(file: &ModelFile) -> Result<(), Error> {
    let name = match &file.table {
        Some(table) => table.source.architecture.as_deref(),
        None => file.gguf.architecture().ok().flatten(),
    };
    let name = name.unwrap_or("");
    if architecture(name).is_some_and(|a| a.encoder_only) {
        let path = file.path().display();
        return Err(Error::bad_input(format!(
            "{path}: {name} models do not generate text: they are encoders"
        )));
    }
    Ok(())
}
