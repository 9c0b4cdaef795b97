//! Pieces of text that tables and pictures of a report are made of.

use std::path::Path;

use super::rows::Report;
use crate::analyze::file_name;

/// What the report is about.
pub(super) fn title(report: &Report) -> String {
    format!(
        "Sharing heads of {}",
        file_name(Path::new(&report.source.path))
    )
}

/// A line of a table.
pub(super) fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// A name as text: whatever stands in it begins no markup, ends no cell and no
/// line.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A share of right answers with its standard error, if it has one.
pub(super) fn accuracy(share: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{share:.3} ± {stderr:.3}"),
        None => format!("{share:.3}"),
    }
}
