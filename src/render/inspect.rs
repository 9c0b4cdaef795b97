//! What `inspect` says.

use super::numbers::{grouped, percent};
use super::plan::shared_units;
use crate::inspect::{Inspection, SharingInspection};

/// What a file holds, and what it shares.
pub(crate) fn render(i: &Inspection) -> String {
    let mut text = format!(
        "{}\n  {} bytes, GGUF v{}, architecture {}, alignment {}\n  {} keys, {} tensors of {} bytes\n",
        i.path,
        grouped(i.bytes),
        i.gguf_version,
        i.architecture.as_deref().unwrap_or("(none)"),
        i.alignment,
        i.keys,
        i.tensors,
        grouped(i.tensor_bytes)
    );
    for (name, count) in &i.types {
        text += &format!(
            "  {name:8} {:5} tensors {:>16} bytes\n",
            count.tensors,
            grouped(count.bytes)
        );
    }
    match &i.sharing {
        Some(sharing) => text += &render_sharing(sharing),
        None => text += "  a plain GGUF: nothing is shared\n",
    }
    text
}

fn render_sharing(s: &SharingInspection) -> String {
    let mut text = format!(
        "converted by {}, format version {}, pages of {} bytes\n  source: {} bytes, {}\n",
        s.tool,
        s.format_version,
        s.page_size,
        grouped(s.source_bytes),
        s.source_digest
    );
    if !s.header_intact {
        text += "  the header was changed after it was written: verify says what else differs\n";
    }
    text += &match &s.plan {
        Some(plan) => format!("  {}\n", shared_units(plan)),
        None => "  stated to be lossless: expand gives the source back byte for byte, or says what differs\n".to_owned(),
    };
    text += &format!(
        "  weights:  {} bytes, {} of them shared\n  file:     {} bytes ({}) saved\n  resident: {} bytes ({}) in pages that are in memory once\n",
        grouped(s.logical_bytes),
        grouped(s.shared_bytes),
        grouped(s.saved.file_bytes),
        percent(s.saved.file_bytes, s.source_bytes),
        grouped(s.saved.resident_bytes),
        percent(s.saved.resident_bytes as i64, s.logical_bytes)
    );
    if !s.layers.is_empty() {
        text += "\n  layer   units shared   bytes shared   of the layer\n";
    }
    for layer in &s.layers {
        text += &format!(
            "  {:>5}   {:12}   {:>12}   {:>12}\n",
            layer
                .layer
                .map_or_else(|| "-".to_owned(), |l| l.to_string()),
            // Lossless files share tensors and blocks, not units.
            match s.plan {
                Some(_) => layer.aliases.to_string(),
                None => "-".to_owned(),
            },
            grouped(layer.shared_bytes),
            percent(layer.shared_bytes as i64, layer.bytes)
        );
    }
    text
}
