//! Converted files that are not what they were when they were written.

use std::fmt;
use std::path::PathBuf;

use headshare_format::alias;
use rayon::prelude::*;
use serde::Serialize;

use super::digest::digest_stored;
use crate::input::{EDIT_PLAIN_FILE, InputError, ModelFile};

/// A check that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked: `header`, a tensor's name, `expanded file`, ...
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The subject of findings about the header.
pub(super) const HEADER: &str = "header";
/// The subject of findings about the plain file as a whole.
pub(super) const EXPANDED: &str = "expanded file";

/// A converted file that is not what it was when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    path: PathBuf,
    /// At least one.
    findings: Vec<Finding>,
}

impl Damage {
    /// What `findings` say of `file`.
    pub(super) fn new(file: &ModelFile, findings: Vec<Finding>) -> Self {
        let path = file.path().to_owned();
        Self { path, findings }
    }

    /// Every part is what its digest says, and the whole is not.
    pub(super) fn of_the_whole(file: &ModelFile) -> Self {
        let problem = "what it stands for does not have the source's digest";
        Self::new(file, vec![finding(EXPANDED, problem)])
    }

    /// An error if anything was found.
    pub(super) fn found(file: &ModelFile, findings: Vec<Finding>) -> Result<(), Self> {
        match findings.is_empty() {
            true => Ok(()),
            false => Err(Self::new(file, findings)),
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> &'static str {
        match self.findings.iter().all(|f| f.subject == HEADER) {
            true => EDIT_PLAIN_FILE,
            false => {
                "get the file again, or convert its source again; headshare-gguf verify FILE lists all that differs"
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        // A line names some; `verify` lists all.
        const NAMED: usize = 3;
        for (i, finding) in self.findings.iter().take(NAMED).enumerate() {
            f.write_str(if i == 0 { ": " } else { "; " })?;
            match finding.subject.as_str() {
                HEADER => f.write_str(alias::HEADER_CHANGED)?,
                EXPANDED => f.write_str(&finding.problem)?,
                tensor => write!(f, "tensor {tensor:?}: {}", finding.problem)?,
            }
        }
        match self.findings.len().saturating_sub(NAMED) {
            0 => Ok(()),
            1 => f.write_str("; and one more tensor"),
            more => write!(f, "; and {more} more tensors"),
        }
    }
}

impl std::error::Error for Damage {}

/// The header and the stored tensors that are not what their digests say.
pub(super) fn differing(file: &ModelFile) -> Result<Vec<Finding>, InputError> {
    let content = || InputError::content(file.path());
    let mut findings = Vec::new();
    if !alias::metadata_is_intact(&file.gguf).map_err(content())? {
        findings.push(finding(
            HEADER,
            "was changed after it was written: it differs from its digest",
        ));
    }
    let stated = alias::stored_digests(&file.gguf).map_err(content())?;
    let differing: Vec<Finding> = file
        .gguf
        .tensors()
        .par_iter()
        .zip(stated)
        .filter(|(info, stated)| digest_stored(file, info) != *stated)
        .map(|(info, _)| finding(&info.name, "its data differs from its digest"))
        .collect();
    findings.extend(differing);
    Ok(findings)
}

pub(super) fn finding(subject: impl Into<String>, problem: impl Into<String>) -> Finding {
    Finding {
        subject: subject.into(),
        problem: problem.into(),
    }
}
