//! What `verify` says.

use std::path::Path;

use super::numbers::grouped;
use crate::convert::Verification;

/// What differs in the file at `path`, and what was checked.
pub(crate) fn render(path: &Path, report: &Verification) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!("{}: {}\n", finding.subject, finding.problem);
    }
    let mut checked = match report.plain {
        true if report.replaced_tensors == 0 => "nothing but its form: it states no digests".into(),
        true => format!(
            "{} computed tensors against their digests",
            report.replaced_tensors
        ),
        false => format!(
            "{} stored tensors and the header against their digests",
            report.stored_tensors
        ),
    };
    if report.lossless {
        checked += ", the expanded file against the source's digest";
    }
    if let Some(bytes) = report.compared_bytes {
        checked += &format!(", {} bytes against the source", grouped(bytes));
    }
    if report.replaced_tensors > 0 && !report.plain {
        let n = report.replaced_tensors;
        checked += &format!("; {n} tensors were computed anew");
    }
    if report.plain && report.compared_bytes.is_none() {
        checked += "; --source FILE compares the others";
    }
    let verdict = if report.ok { "ok" } else { "NOT OK" };
    text + &format!("{}: {verdict} (checked {checked})\n", path.display())
}
