//! Typed access to the keys that the format asks for.

use super::{METADATA_DIGEST_HEX_LEN, Replaced, keys};
use crate::gguf::{ArrayView, Gguf, Value};
use crate::{FormatError, TensorInfo};

pub(super) fn check_digest_form(key: &str, digest: &str) -> Result<(), FormatError> {
    let hex = digest.strip_prefix("blake3:").unwrap_or("");
    if hex.len() == METADATA_DIGEST_HEX_LEN
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Ok(());
    }
    Err(FormatError::key(
        key,
        format!("{digest:?} is no digest (\"blake3:\" and 64 hexadecimal digits)"),
    ))
}

pub(super) fn same_length(
    key: &str,
    len: usize,
    other: &str,
    expected: usize,
) -> Result<(), FormatError> {
    if len == expected {
        return Ok(());
    }
    Err(FormatError::key(
        key,
        format!("has {len} elements where {other} has {expected}"),
    ))
}

fn missing(key: &str) -> FormatError {
    FormatError::key(key, "is missing from a headshare file")
}

fn mismatch(key: &str, expected: &str, found: Value<'_>) -> FormatError {
    FormatError::key(
        key,
        format!("expected {expected}, found {}", found.describe()),
    )
}

fn required<'a>(physical: &'a Gguf, key: &str) -> Result<Value<'a>, FormatError> {
    physical.value(key).ok_or_else(|| missing(key))
}

pub(super) fn required_u32(physical: &Gguf, key: &str) -> Result<u32, FormatError> {
    match required(physical, key)? {
        Value::U32(v) => Ok(v),
        other => Err(mismatch(key, "a u32", other)),
    }
}

pub(super) fn required_u64(physical: &Gguf, key: &str) -> Result<u64, FormatError> {
    match required(physical, key)? {
        Value::U64(v) => Ok(v),
        other => Err(mismatch(key, "a u64", other)),
    }
}

pub(super) fn required_bool(physical: &Gguf, key: &str) -> Result<bool, FormatError> {
    match required(physical, key)? {
        Value::Bool(v) => Ok(v),
        other => Err(mismatch(key, "a bool", other)),
    }
}

pub(super) fn required_str<'a>(physical: &'a Gguf, key: &str) -> Result<&'a str, FormatError> {
    physical.str_value(key)?.ok_or_else(|| missing(key))
}

pub(super) fn required_digest<'a>(physical: &'a Gguf, key: &str) -> Result<&'a str, FormatError> {
    let digest = required_str(physical, key)?;
    check_digest_form(key, digest)?;
    Ok(digest)
}

pub(super) fn required_array<'a>(
    physical: &'a Gguf,
    key: &str,
) -> Result<ArrayView<'a>, FormatError> {
    physical.array_value(key)?.ok_or_else(|| missing(key))
}

pub(super) fn required_u32s(physical: &Gguf, key: &str) -> Result<Vec<u32>, FormatError> {
    required_array(physical, key)?
        .u32s()
        .ok_or_else(|| FormatError::key(key, "expected an array of u32"))
}

pub(super) fn required_u64s(physical: &Gguf, key: &str) -> Result<Vec<u64>, FormatError> {
    required_array(physical, key)?
        .u64s()
        .ok_or_else(|| FormatError::key(key, "expected an array of u64"))
}

// R13: the tensors that were computed anew, if any.
pub(super) fn replaced(
    physical: &Gguf,
    tensors: &[TensorInfo],
    lossless: bool,
) -> Result<Option<Replaced>, FormatError> {
    let fail = |problem: &str| Err(FormatError::key(keys::REPLACED_TENSORS, problem));
    let by = physical.str_value(keys::REPLACED_BY)?;
    if physical.value(keys::REPLACED_TENSORS).is_none() {
        return match by {
            None => Ok(None),
            Some(_) => fail("is missing beside headshare.replaced.by"),
        };
    }
    let names = required_array(physical, keys::REPLACED_TENSORS)?.strs();
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return fail("expected an array of at least one string");
    };
    let by = required_str(physical, keys::REPLACED_BY)?.to_owned();
    if lossless {
        return fail("is there although the file is lossless");
    }
    // Both lists are in the source's order, so one walk finds all.
    let mut rest = (0..).zip(tensors);
    let found: Vec<u32> = names
        .iter()
        .filter_map(|name| rest.find(|(_, t)| t.name == *name).map(|(i, _)| i))
        .collect();
    if found.len() != names.len() {
        return fail("names what is no logical tensor, or not in the order of these");
    }
    Ok(Some(Replaced { by, tensors: found }))
}
