//! The header of a plain file again, from a physical one: the source's own, and
//! the one whose data begin on pages.

use super::{RESERVED_PREFIX, SourceLayout};
use crate::gguf::{Gguf, HeaderBuilder, KEY_ALIGNMENT, KEY_ARCHITECTURE, align_up};
use crate::{FormatError, PageSize, TensorInfo};

/// Gives `tensors` the offsets that GGUF prescribes for `alignment`; returns
/// where the last one's data ends, from the start of the data section.
pub(crate) fn lay_out(tensors: &mut [TensorInfo], alignment: u64) -> Result<u64, FormatError> {
    let mut end = 0u64;
    for tensor in tensors {
        let overflow = || FormatError::tensor(&tensor.name, "the expanded size overflows");
        tensor.offset = align_up(end, alignment).ok_or_else(overflow)?;
        end = tensor
            .offset
            .checked_add(tensor.byte_len())
            .filter(|&end| i64::try_from(end).is_ok())
            .ok_or_else(overflow)?;
    }
    Ok(end)
}

/// The source's header, restored from a physical file's.
pub(crate) fn source_header(
    physical: &Gguf,
    source: &SourceLayout,
    tensors: &[TensorInfo],
) -> Vec<u8> {
    let mut header = HeaderBuilder::new(source.version);
    restore_records(physical, source, source.alignment, &mut header);
    for tensor in tensors {
        header.tensor(tensor);
    }
    header.finish()
}

pub(crate) fn paged_header(
    physical: &Gguf,
    source: &SourceLayout,
    tensors: &[TensorInfo],
    page: PageSize,
) -> Vec<u8> {
    let mut header = HeaderBuilder::new(3);
    let with_key = SourceLayout {
        has_alignment_key: true,
        ..source.clone()
    };
    restore_records(physical, &with_key, page.bytes(), &mut header);
    for tensor in tensors {
        header.tensor(tensor);
    }
    header.finish()
}

fn restore_records(
    physical: &Gguf,
    source: &SourceLayout,
    alignment: u64,
    header: &mut HeaderBuilder,
) {
    for kv in physical.kvs() {
        match kv.key.as_str() {
            KEY_ARCHITECTURE => {
                if let Some(architecture) = &source.architecture {
                    header.str(KEY_ARCHITECTURE, architecture);
                }
            }
            KEY_ALIGNMENT => {
                if source.has_alignment_key {
                    header.u32(
                        KEY_ALIGNMENT,
                        u32::try_from(alignment).expect("alignments are bounded"),
                    );
                }
            }
            key if key.starts_with(RESERVED_PREFIX) => {}
            _ => header.record(physical.record(kv)),
        }
    }
}
