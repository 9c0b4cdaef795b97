//! The walk over a header's bytes: the only place that reads untrusted counts.
//!
//! Every count is held against the bytes that remain before anything of that
//! size is allocated or skipped, so a malformed file costs memory in proportion to
//! its own length: a table of tensors with short names some 15 times.

use std::collections::HashMap;
use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::{
    DEFAULT_ALIGNMENT, Gguf, KEY_ALIGNMENT, Kv, MAX_ALIGNMENT, MAX_DIMS, MAX_TENSOR_NAME,
    TensorInfo, Value, ValueType, align_up, foreign,
};
use crate::{ErrorKind, FormatError, GgmlType, Rule};

/// The least bytes of a key-value record: key length, one byte of key, type,
/// one byte of value.
const MIN_KV_BYTES: u64 = 8 + 1 + 4 + 1;
/// The least bytes of a tensor info: name length, dimension count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

impl Gguf {
    /// Reads and validates the header of the GGUF file whose bytes are `file`.
    ///
    /// # Errors
    /// Whatever keeps the file from being a single-file GGUF of version 2 or 3
    /// as llama.cpp loads it; see the tests for the catalogue.
    pub fn parse(file: &[u8]) -> Result<Self, FormatError> {
        Self::parse_header(file, file.len() as u64)
    }

    /// Reads and validates the header of a GGUF file of `file_len` bytes, of
    /// which `start` are the first: at least the whole header.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_header(start: &[u8], file_len: u64) -> Result<Self, FormatError> {
        walk(start, file_len)
    }
}

fn walk(file: &[u8], file_len: u64) -> Result<Gguf, FormatError> {
    let mut cursor = Cursor { file, pos: 0 };
    let version = read_version(&mut cursor, file_len)?;
    let n_tensors = cursor.u64("tensor count")?;
    let n_kvs = cursor.u64("key count")?;
    cursor.check_count("key count", n_kvs, MIN_KV_BYTES)?;
    cursor.check_count("tensor count", n_tensors, MIN_TENSOR_BYTES)?;

    let mut kvs = Vec::new();
    let mut kv_index = HashMap::new();
    for i in 0..n_kvs {
        let kv = read_kv(&mut cursor, i)?;
        if kv_index.insert(kv.key.clone(), kvs.len()).is_some() {
            return Err(FormatError::key(&kv.key, "stands twice in the file").breaking(Rule::Key));
        }
        kvs.push(kv);
    }
    refuse_split(file, &kvs)?;
    let alignment = alignment(file, &kvs)?;

    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut tensor_index = HashMap::new();
    for i in 0..n_tensors {
        let tensor = read_tensor(&mut cursor, i)?;
        if tensor_index
            .insert(tensor.name.clone(), tensors.len())
            .is_some()
        {
            return Err(
                FormatError::tensor(&tensor.name, "stands twice in the file")
                    .breaking(Rule::TensorName),
            );
        }
        tensors.push(tensor);
    }

    let header_end = cursor.pos as u64;
    let data_offset = align_up(header_end, alignment)
        .ok_or_else(|| malformed(Rule::Data, "header", "its padded end overflows"))?;
    check_data(&tensors, alignment, data_offset, file_len)?;
    Ok(Gguf {
        version,
        kvs,
        tensors,
        alignment,
        header_end,
        data_offset,
        file_len,
        header: file[..cursor.pos].to_vec(),
        kv_index,
        tensor_index,
    })
}

fn read_version(cursor: &mut Cursor, file_len: u64) -> Result<u32, FormatError> {
    let magic = cursor.take(4, "magic")?;
    if magic == b"FUGG" {
        return Err(big_endian());
    }
    if magic != b"GGUF" {
        return Err(foreign::refused(cursor.file, file_len));
    }
    match cursor.u32("version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(
            FormatError::unsupported("version", "GGUF version 1 is not supported")
                .hint("convert the model again with a current llama.cpp"),
        ),
        version if (1..=0xffff).contains(&version.swap_bytes()) => Err(big_endian()),
        version => Err(FormatError::unsupported(
            "version",
            format!("GGUF version {version} is not supported; versions 2 and 3 are"),
        )),
    }
}

fn malformed(rule: Rule, field: impl Into<String>, problem: impl Into<String>) -> FormatError {
    FormatError::new(ErrorKind::Malformed(rule), field, problem)
}

fn big_endian() -> FormatError {
    FormatError::unsupported(
        "version",
        "this GGUF file is big-endian; only little-endian is supported",
    )
    .hint("convert it with llama.cpp's gguf_convert_endian.py")
}

fn read_kv(cursor: &mut Cursor, index: u64) -> Result<Kv, FormatError> {
    let start = cursor.pos;
    let key = cursor.string(&format!("key number {index}"))?;
    let key = std::str::from_utf8(key)
        .map_err(|e| {
            malformed(
                Rule::Key,
                format!("key number {index}"),
                format!("not UTF-8: {e}"),
            )
        })?
        .to_owned();
    if key.is_empty() {
        return Err(malformed(
            Rule::Key,
            format!("key number {index}"),
            "is empty",
        ));
    }
    let field = format!("key {key:?}");
    let type_id = cursor.u32(&field)?;
    let value_type = ValueType::from_id(type_id)
        .ok_or_else(|| FormatError::key(&key, format!("unknown value type {type_id}")))?;
    let value_start = cursor.pos;
    match value_type {
        ValueType::String => {
            cursor.string(&field)?;
        }
        ValueType::Array => skip_array(cursor, &field)?,
        scalar => {
            cursor.take(scalar.size().expect("a scalar has a size") as u64, &field)?;
        }
    }
    Ok(Kv {
        key,
        value_type,
        record: start..cursor.pos,
        value: value_start..cursor.pos,
    })
}

fn skip_array(cursor: &mut Cursor, field: &str) -> Result<(), FormatError> {
    let type_id = cursor.u32(field)?;
    let elem = ValueType::from_id(type_id).ok_or_else(|| {
        malformed(
            Rule::Value,
            field,
            format!("unknown type {type_id} of array elements"),
        )
    })?;
    if elem == ValueType::Array {
        return Err(FormatError::unsupported(
            field,
            "arrays of arrays are not supported",
        ));
    }
    let len = cursor.u64(field)?;
    match elem.size() {
        Some(size) => {
            cursor.check_count(field, len, size as u64)?;
            cursor.take(len * size as u64, field)?;
        }
        None => {
            cursor.check_count(field, len, 8)?;
            for _ in 0..len {
                cursor.string(field)?;
            }
        }
    }
    Ok(())
}

fn read_tensor(cursor: &mut Cursor, index: u64) -> Result<TensorInfo, FormatError> {
    let number = format!("tensor number {index}");
    let name = cursor.string(&number)?;
    if name.len() as u64 >= MAX_TENSOR_NAME {
        return Err(malformed(
            Rule::TensorName,
            number,
            format!(
                "its name has {} bytes; ggml allows fewer than {MAX_TENSOR_NAME}",
                name.len()
            ),
        ));
    }
    let name = std::str::from_utf8(name)
        .map_err(|e| {
            malformed(
                Rule::TensorName,
                number.as_str(),
                format!("its name is not UTF-8: {e}"),
            )
        })?
        .to_owned();
    let field = format!("tensor {name:?}");
    let n_dims = cursor.u32(&field)?;
    if n_dims > MAX_DIMS {
        return Err(malformed(
            Rule::Shape,
            field,
            format!("{n_dims} dimensions; GGUF allows at most {MAX_DIMS}"),
        ));
    }
    let dims = (0..n_dims)
        .map(|_| cursor.u64(&field))
        .collect::<Result<Vec<_>, _>>()?;
    let type_id = cursor.u32(&field)?;
    let ggml_type = GgmlType::from_id(type_id).ok_or_else(|| {
        FormatError::unsupported(
            field.as_str(),
            format!(
                "ggml type {type_id} is unknown to, or was removed from, the bundled llama.cpp"
            ),
        )
    })?;
    let tensor = TensorInfo {
        name,
        ggml_type,
        dims,
        offset: cursor.u64(&field)?,
    };
    tensor.validate()?;
    Ok(tensor)
}

fn refuse_split(file: &[u8], kvs: &[Kv]) -> Result<(), FormatError> {
    let Some(kv) = kvs.iter().find(|kv| kv.key == "split.count") else {
        return Ok(());
    };
    match Value::decode(kv.value_type, &file[kv.value.clone()]).as_u64() {
        Some(0 | 1) => Ok(()),
        count => Err(FormatError::key(
            "split.count",
            format!(
                "this is one part of a model that is split over {} files",
                count.map_or_else(|| "several".to_owned(), |n| n.to_string())
            ),
        )
        .of(ErrorKind::Unsupported)
        .hint("join the parts first: llama-gguf-split --merge FIRST-PART MERGED.gguf")),
    }
}

fn alignment(file: &[u8], kvs: &[Kv]) -> Result<u64, FormatError> {
    let Some(kv) = kvs.iter().find(|kv| kv.key == KEY_ALIGNMENT) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let value = Value::decode(kv.value_type, &file[kv.value.clone()]);
    match value {
        Value::U32(a) if a.is_power_of_two() && u64::from(a) <= MAX_ALIGNMENT => Ok(a.into()),
        other => Err(FormatError::key(
            KEY_ALIGNMENT,
            format!(
                "must be a u32 power of two of at most {MAX_ALIGNMENT}, found {}",
                other.describe()
            ),
        )
        .breaking(Rule::Alignment)),
    }
}

/// Tensors follow each other in the order of their infos, without gaps but
/// alignment padding, and end within the file.
fn check_data(
    tensors: &[TensorInfo],
    alignment: u64,
    data_offset: u64,
    file_len: u64,
) -> Result<(), FormatError> {
    let mut expected = 0u64;
    for tensor in tensors {
        let error = |problem: String| FormatError::tensor(&tensor.name, problem);
        let fail = |problem: String| Err(error(problem).breaking(Rule::Data));
        let offset = tensor.offset;
        if !offset.is_multiple_of(alignment) {
            return fail(format!(
                "offset {offset} is no multiple of the alignment {alignment}"
            ));
        }
        if offset < expected {
            return fail(format!(
                "offset {offset} overlaps the tensor before it, which ends at {expected} with its padding"
            ));
        }
        if offset > expected {
            return fail(format!(
                "offset {offset} leaves a gap: the tensor before it ends at {expected} with its padding"
            ));
        }
        let range: Option<Range<u64>> = data_offset
            .checked_add(offset)
            .and_then(|start| start.checked_add(tensor.byte_len()).map(|end| start..end));
        match range {
            Some(range) if range.end <= file_len => {}
            Some(range) => {
                let problem = format!(
                    "its data ends at byte {}, but the file has {file_len} bytes: it is truncated or not fully downloaded",
                    range.end
                );
                return Err(error(problem).of(ErrorKind::Truncated));
            }
            None => return fail(format!("offset {offset} overflows")),
        }
        expected = offset
            .checked_add(tensor.byte_len())
            .and_then(|end| align_up(end, alignment))
            .ok_or_else(|| error("its end overflows".to_owned()).breaking(Rule::Data))?;
    }
    Ok(())
}

struct Cursor<'a> {
    file: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> u64 {
        (self.file.len() - self.pos) as u64
    }

    fn take(&mut self, len: u64, field: &str) -> Result<&'a [u8], FormatError> {
        if len > self.remaining() {
            return Err(FormatError::new(
                ErrorKind::Truncated,
                field,
                format!(
                    "needs {len} bytes at byte {}, but the file ends after {} more: it is truncated",
                    self.pos,
                    self.remaining()
                ),
            ));
        }
        let bytes = &self.file[self.pos..self.pos + len as usize];
        self.pos += len as usize;
        Ok(bytes)
    }

    fn u32(&mut self, field: &str) -> Result<u32, FormatError> {
        self.take(4, field).map(LittleEndian::read_u32)
    }

    fn u64(&mut self, field: &str) -> Result<u64, FormatError> {
        self.take(8, field).map(LittleEndian::read_u64)
    }

    fn string(&mut self, field: &str) -> Result<&'a [u8], FormatError> {
        let len = self.u64(field)?;
        self.take(len, field)
    }

    fn check_count(&self, field: &str, count: u64, min_bytes: u64) -> Result<(), FormatError> {
        if count > self.remaining() / min_bytes {
            return Err(FormatError::new(
                ErrorKind::Truncated,
                field,
                format!(
                    "{count} entries need more than the {} bytes that remain: the file is truncated or damaged",
                    self.remaining()
                ),
            ));
        }
        Ok(())
    }
}
