//! Reading and writing GGUF headers, versions 2 and 3, little-endian.
//!
//! [`Gguf::parse`] validates everything before it allocates anything of a size
//! that the file states; key-value records are kept raw, typed and in order,
//! so that a header can be written again byte for byte.
//!
//! Source: the GGUF specification and llama.cpp's `gguf.cpp`, whose loader
//! wants tensors without gaps, in the order of their infos.

mod foreign;
mod value;
mod walker;
mod writer;

use std::collections::HashMap;
use std::ops::Range;

pub use value::{ArrayView, Value, ValueType};
pub use writer::HeaderBuilder;

use crate::{FormatError, GgmlType};

/// The key that names the model's architecture.
pub const KEY_ARCHITECTURE: &str = "general.architecture";
/// The key that states the alignment of tensor data.
pub const KEY_ALIGNMENT: &str = "general.alignment";
/// The alignment where [`KEY_ALIGNMENT`] is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment we accept, in bytes. Real files use 32 to 65536; a
/// bound keeps a small file from describing a huge one.
pub const MAX_ALIGNMENT: u64 = 1 << 20;
/// ggml's `GGML_MAX_NAME`: a tensor's name is shorter than this, in bytes.
pub const MAX_TENSOR_NAME: u64 = 64;
/// ggml's `GGML_MAX_DIMS`.
pub const MAX_DIMS: u32 = 4;

/// A validated GGUF header.
///
/// ```
/// use headshare_format::gguf::{HeaderBuilder, Value};
/// use headshare_format::{GgmlType, Gguf, TensorInfo};
///
/// let norm = TensorInfo {
///     name: "output_norm.weight".to_owned(),
///     ggml_type: GgmlType::F32,
///     dims: vec![8],
///     offset: 0,
/// };
/// let mut header = HeaderBuilder::new(3);
/// header.str("general.architecture", "llama");
/// header.u32("llama.block_count", 1);
/// header.tensor(&norm);
/// let mut file = header.finish();
/// file.resize(file.len().next_multiple_of(32) + 8 * 4, 0);
///
/// let gguf = Gguf::parse(&file)?;
/// assert_eq!(gguf.architecture()?, Some("llama"));
/// assert_eq!(gguf.value("llama.block_count"), Some(Value::U32(1)));
/// assert_eq!(gguf.tensors(), [norm]);
/// let data = gguf.data_range(&gguf.tensors()[0]);
/// assert_eq!(data.end, file.len() as u64);
/// # Ok::<(), headshare_format::FormatError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gguf {
    version: u32,
    kvs: Vec<Kv>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    header_end: u64,
    data_offset: u64,
    file_len: u64,
    header: Vec<u8>,
    kv_index: HashMap<String, usize>,
    tensor_index: HashMap<String, usize>,
}

/// One key-value record.
#[derive(Debug, Clone)]
pub struct Kv {
    /// The key.
    pub key: String,
    /// The value's type.
    pub value_type: ValueType,
    /// The whole record (key, type, value) as a range of the file.
    record: Range<usize>,
    /// The value alone.
    value: Range<usize>,
}

/// One tensor info.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub ggml_type: GgmlType,
    /// Elements along each dimension, the contiguous one (`ne[0]`) first; at
    /// most four, as many as the file states.
    pub dims: Vec<u64>,
    /// Offset of its data from [`Gguf::data_offset`], in bytes.
    pub offset: u64,
}

impl TensorInfo {
    /// Elements of a row (`ne[0]`).
    pub fn row_elems(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.row_elems() / self.ggml_type.block_elems() * self.ggml_type.block_bytes()
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Bytes of the tensor's data.
    pub fn byte_len(&self) -> u64 {
        self.row_bytes() * self.rows()
    }

    /// Checks what the other methods rely on: at most four dimensions, none of
    /// them zero, rows of whole blocks, and no overflow.
    ///
    /// # Errors
    /// Names the tensor and the dimension.
    pub fn validate(&self) -> Result<(), FormatError> {
        let fail = |problem: String| Err(FormatError::tensor(&self.name, problem));
        if self.dims.len() > MAX_DIMS as usize {
            return fail(format!(
                "{} dimensions; GGUF allows at most {MAX_DIMS}",
                self.dims.len()
            ));
        }
        if let Some(i) = self.dims.iter().position(|&d| d == 0) {
            return fail(format!("dimension {i} is zero"));
        }
        // ggml counts elements and bytes in i64.
        let elems = self
            .dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| i64::try_from(n).is_ok());
        if elems.is_none() {
            return fail(format!(
                "the product of dimensions {:?} overflows",
                self.dims
            ));
        }
        let block = self.ggml_type.block_elems();
        if !self.row_elems().is_multiple_of(block) {
            return fail(format!(
                "rows of {} elements are no whole number of {} blocks of {block}",
                self.row_elems(),
                self.ggml_type,
            ));
        }
        let bytes = self
            .ggml_type
            .row_bytes(self.row_elems())
            .and_then(|row| row.checked_mul(self.rows()))
            .filter(|&n| i64::try_from(n).is_ok());
        if bytes.is_none() {
            return fail(format!("the byte size of {:?} overflows", self.dims));
        }
        Ok(())
    }
}

/// `n` rounded up to a multiple of `alignment`, a power of two.
///
/// # Errors
/// `None` when the result does not fit.
pub fn align_up(n: u64, alignment: u64) -> Option<u64> {
    debug_assert!(alignment.is_power_of_two());
    n.checked_add(alignment - 1).map(|n| n & !(alignment - 1))
}

impl Gguf {
    /// Its version of GGUF: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The key-value records, in file order.
    pub fn kvs(&self) -> &[Kv] {
        &self.kvs
    }

    /// The tensors, in file order, which is also the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Alignment of the tensor data, in bytes: a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensor infos end, in bytes from the start of the file.
    pub fn header_end(&self) -> u64 {
        self.header_end
    }

    /// Where tensor data starts: [`header_end`](Self::header_end) rounded up to
    /// the alignment. Lies past the end of a file without tensors that does not
    /// pad.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Length of the whole file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The raw record (key, type and value) of a key-value pair.
    pub fn record(&self, kv: &Kv) -> &[u8] {
        &self.header[kv.record.clone()]
    }

    /// The header's bytes: from the magic to the end of the tensor infos.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header
    }

    /// The typed value of a key-value pair.
    pub fn value_of(&self, kv: &Kv) -> Value<'_> {
        Value::decode(kv.value_type, &self.header[kv.value.clone()])
    }

    /// Where the value of `kv` lies in the file.
    pub fn value_range(&self, kv: &Kv) -> Range<usize> {
        kv.value.clone()
    }

    /// The record of `key`.
    pub fn kv(&self, key: &str) -> Option<&Kv> {
        self.kv_index.get(key).map(|&i| &self.kvs[i])
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.kv(key).map(|kv| self.value_of(kv))
    }

    /// The value of `key` as a non-negative integer of any integer type.
    ///
    /// # Errors
    /// When the key is there with another type, or negative.
    pub fn u64_value(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.value(key)
            .map(|v| {
                v.as_u64().ok_or_else(|| {
                    FormatError::key(
                        key,
                        format!("expected a non-negative integer, found {}", v.describe()),
                    )
                })
            })
            .transpose()
    }

    /// The value of `key` as UTF-8 text.
    ///
    /// # Errors
    /// When the key is there with another type, or not UTF-8.
    pub fn str_value(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|e| FormatError::key(key, format!("not UTF-8: {e}"))),
            Some(v) => Err(FormatError::key(
                key,
                format!("expected a string, found {}", v.describe()),
            )),
        }
    }

    /// The value of `key` as an array.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn array_value(&self, key: &str) -> Result<Option<ArrayView<'_>>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(v) => Err(FormatError::key(
                key,
                format!("expected an array, found {}", v.describe()),
            )),
        }
    }

    /// The model's architecture (`general.architecture`), if stated.
    ///
    /// # Errors
    /// When it is stated as anything but UTF-8 text.
    pub fn architecture(&self) -> Result<Option<&str>, FormatError> {
        self.str_value(KEY_ARCHITECTURE)
    }

    /// The index of the tensor `name`.
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        self.tensor_index.get(name).copied()
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name).map(|i| &self.tensors[i])
    }

    /// Where the data of `tensor` lies in the file. Within the file for every
    /// tensor of a parsed header.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_offset + tensor.offset;
        start..start + tensor.byte_len()
    }

    /// Where the last tensor's data ends; the end of the header in a file
    /// without tensors.
    pub fn data_end(&self) -> u64 {
        self.tensors
            .last()
            .map_or(self.header_end, |t| self.data_range(t).end)
    }

    /// The ranges of the file that belong to neither header nor tensors:
    /// padding after the header and after each tensor, and whatever follows
    /// the last one. In file order, empty ones left out.
    pub fn filler_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut end = self.header_end;
        for tensor in &self.tensors {
            let data = self.data_range(tensor);
            ranges.push(end..data.start);
            end = data.end;
        }
        ranges.push(end..self.file_len);
        ranges.retain(|r| !r.is_empty());
        ranges
    }
}
