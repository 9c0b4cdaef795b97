//! Pieces of text that tables and pictures of a report are made of.

use std::path::Path;

use super::rows::Report;
use crate::analyze::file_name;

/// What the report is about.
pub(super) fn title(report: &Report) -> String {
    let name = file_name(Path::new(&report.source.path));
    match report.settings.sizes.is_empty() {
        true => format!("Sharing heads of {name}"),
        false => format!("{name} in fewer bytes"),
    }
}

/// A number of bytes as it may have been given: in M where it is whole ones.
pub(super) fn size(bytes: u64) -> String {
    const M: u64 = 1 << 20;
    match bytes.is_multiple_of(M) && bytes > 0 {
        true => format!("{}M", bytes / M),
        false => format!("{} bytes", grouped(bytes)),
    }
}

/// Groups of three digits.
pub(super) fn grouped(n: u64) -> String {
    let mut digits = n.to_string();
    let mut at = digits.len();
    while at > 3 {
        at -= 3;
        digits.insert(at, ',');
    }
    digits
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
