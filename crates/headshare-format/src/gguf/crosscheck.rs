//! A second opinion on a walked header: gguf-rs reads it too, and both must
//! see the same keys, counts and tensors.
//!
//! Left out, because gguf-rs cannot be asked: headers with tensor types above
//! 39 (it errors or panics), and headers that would cost it far more memory
//! than they have bytes (it keeps array elements as JSON values, but those of
//! `tokenizer.` keys only if asked to). Its tensor sizes are wrong for several
//! types, so sizes are not compared.

use std::io::{Cursor, Read};

use super::{Gguf, Value};
use crate::FormatError;

/// The last tensor type that gguf-rs 0.1.8 knows (MXFP4).
const LAST_KNOWN_TYPE: u32 = 39;
/// Array elements that we let gguf-rs turn into JSON values, of up to 100
/// bytes each.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 17;
/// It tells alignments only where they are multiples of this.
const LEAST_KNOWN_ALIGNMENT: u64 = 8;
const MAX_HEADER_BYTES: usize = 64 << 20;

pub(super) fn check(gguf: &Gguf) -> Result<(), FormatError> {
    let elements = gguf
        .kvs
        .iter()
        .filter(|kv| !kv.key.starts_with("tokenizer."))
        .map(|kv| match gguf.value_of(kv) {
            Value::Array(a) => a.len,
            _ => 0,
        })
        .fold(0u64, u64::saturating_add);
    if gguf.header.len() > MAX_HEADER_BYTES
        || elements > MAX_ARRAY_ELEMENTS
        || gguf
            .tensors
            .iter()
            .any(|t| t.ggml_type.id() > LAST_KNOWN_TYPE)
    {
        return Ok(());
    }
    let disagree = |what: String| {
        FormatError::new(
            "header",
            format!("two readers disagree on it ({what}); please report this file"),
        )
    };

    // The container wants the bytes after the magic, and counts from there.
    let mut reader = Cursor::new(gguf.header.clone());
    reader.set_position(4);
    let boxed: Box<dyn Read> = Box::new(reader);
    let model = gguf_rs::GGUFContainer::new(gguf_rs::ByteOrder::LE, boxed, 0)
        .decode()
        .map_err(|e| disagree(format!("gguf-rs: {e}")))?;

    if model.num_kv() != gguf.kvs.len() as u64 || model.num_tensor() != gguf.tensors.len() as u64 {
        return Err(disagree(format!(
            "{} keys and {} tensors against {} and {}",
            gguf.kvs.len(),
            gguf.tensors.len(),
            model.num_kv(),
            model.num_tensor()
        )));
    }
    if gguf.alignment >= LEAST_KNOWN_ALIGNMENT && model.data_offset() != gguf.data_offset {
        return Err(disagree(format!(
            "data begins at {} or {}",
            gguf.data_offset,
            model.data_offset()
        )));
    }
    if let Some(kv) = gguf
        .kvs
        .iter()
        .find(|kv| !model.metadata().contains_key(&kv.key))
    {
        return Err(disagree(format!("key {:?}", kv.key)));
    }
    for (ours, theirs) in gguf.tensors.iter().zip(model.tensors()) {
        if ours.name != theirs.name
            || ours.ggml_type.id() != theirs.kind
            || ours.dims != theirs.shape
            || ours.offset != theirs.offset
        {
            return Err(disagree(format!("tensor {:?}", ours.name)));
        }
    }
    Ok(())
}
