//! What `eval` says, one file a measure.

pub(crate) mod choice;
pub(crate) mod generate;
pub(crate) mod perplexity;

use headshare_jobs::{MeasuredFile, Resolved};

use super::numbers::grouped;

/// A model in a line.
fn line(measured: &MeasuredFile) -> String {
    let line = format!("{}: {} bytes", measured.file, grouped(measured.bytes));
    let line = match measured.resolve {
        Resolved::None => line,
        how => format!("{line}, {}", how.as_str()),
    };
    match measured.as_f16 {
        Some(tensors) if tensors > 0 => format!("{line}, {tensors} tensors as F16"),
        _ => line,
    }
}

fn with_error(value: f64, stderr: f64, digits: usize) -> String {
    format!("{value:.digits$} ± {stderr:.digits$}")
}
