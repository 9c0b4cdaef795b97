//! What `expand` says.

use headshare_jobs::Expanded;

use super::numbers::grouped;

/// What was written.
pub(crate) fn render(done: &Expanded) -> String {
    format!(
        "{}: {} bytes, {}\n",
        done.path,
        grouped(done.bytes),
        match done.lossless {
            true => "the source byte for byte, by its digest",
            false =>
                "shared units written out; what is stored is as it was written, by its digests",
        }
    )
}
