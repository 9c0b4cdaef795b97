//! Builders of GGUF files, well-formed and not, for this crate's tests.
#![allow(dead_code, missing_docs)]

pub mod converted;
pub mod random;

use headshare_format::gguf::ValueType;
use headshare_format::{Advice, ErrorKind, FormatError, GgmlType, Gguf};

/// A GGUF file, part by part. Everything that a header states can be stated
/// wrongly; what is `None` is stated as it is.
#[derive(Debug, Clone)]
pub struct RawGguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_kvs: Option<u64>,
    pub kvs: Vec<Vec<u8>>,
    pub tensors: Vec<RawTensor>,
    /// The alignment that the layout follows (the key is the test's).
    pub alignment: usize,
    /// What padding bytes are.
    pub padding: u8,
    /// Whether the last tensor is padded.
    pub end_padding: bool,
    pub trailing: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct RawTensor {
    pub name: Vec<u8>,
    pub name_len: Option<u64>,
    pub n_dims: Option<u32>,
    pub dims: Vec<u64>,
    pub type_id: u32,
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl Default for RawGguf {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_kvs: None,
            kvs: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            padding: 0,
            end_padding: true,
            trailing: Vec::new(),
        }
    }
}

/// Neither keys nor tensors.
pub fn empty() -> RawGguf {
    RawGguf::default()
}

/// One key.
pub fn with_kv(kv: Vec<u8>) -> RawGguf {
    RawGguf {
        kvs: vec![kv],
        ..empty()
    }
}

/// Two tensors; tests bend the second.
pub fn two_tensors() -> RawGguf {
    RawGguf {
        kvs: vec![kv_str("general.architecture", "llama")],
        tensors: vec![f32_tensor("one", &[5, 3]), f32_tensor("two", &[4, 2, 2])],
        ..empty()
    }
}

impl RawGguf {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        let n = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        out.extend(n.to_le_bytes());
        out.extend(self.n_kvs.unwrap_or(self.kvs.len() as u64).to_le_bytes());
        for kv in &self.kvs {
            out.extend(kv);
        }
        let mut offset = 0usize;
        for tensor in &self.tensors {
            let name_len = tensor.name_len.unwrap_or(tensor.name.len() as u64);
            out.extend(name_len.to_le_bytes());
            out.extend(&tensor.name);
            let n_dims = tensor.n_dims.unwrap_or(tensor.dims.len() as u32);
            out.extend(n_dims.to_le_bytes());
            for dim in &tensor.dims {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(self.alignment);
        }
        let last = self.tensors.len();
        if last > 0 || self.end_padding {
            self.pad(&mut out);
        }
        for (i, tensor) in self.tensors.iter().enumerate() {
            out.extend(&tensor.data);
            if i + 1 < last || self.end_padding {
                self.pad(&mut out);
            }
        }
        out.extend(&self.trailing);
        out
    }

    fn pad(&self, out: &mut Vec<u8>) {
        out.resize(out.len().next_multiple_of(self.alignment), self.padding);
    }

    pub fn parse(&self) -> Result<Gguf, FormatError> {
        Gguf::parse(&self.bytes())
    }

    /// The error that parsing the file gives.
    pub fn refused(&self) -> FormatError {
        match self.parse() {
            Ok(_) => panic!("the file was accepted: {self:?}"),
            Err(error) => error,
        }
    }
}

/// A tensor of `dims`, with data that depends on `seed`.
pub fn tensor(name: &str, ggml_type: GgmlType, dims: &[u64], seed: u64) -> RawTensor {
    let block = ggml_type.block_elems();
    let elems: u64 = dims.iter().product();
    let len = elems / block * ggml_type.block_bytes();
    RawTensor {
        name: name.as_bytes().to_vec(),
        name_len: None,
        n_dims: None,
        dims: dims.to_vec(),
        type_id: ggml_type.id(),
        offset: None,
        data: noise(len as usize, seed),
    }
}

/// An F32 tensor.
pub fn f32_tensor(name: &str, dims: &[u64]) -> RawTensor {
    tensor(name, GgmlType::F32, dims, name.len() as u64)
}

/// `len` bytes that look random.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out
}

/// A key-value record with the type's number and the value's bytes as given.
pub fn record(key: &[u8], type_id: u32, value: &[u8]) -> Vec<u8> {
    let mut out = string(key);
    out.extend(type_id.to_le_bytes());
    out.extend(value);
    out
}

pub fn kv_u32(key: &str, value: u32) -> Vec<u8> {
    record(key.as_bytes(), ValueType::U32 as u32, &value.to_le_bytes())
}

pub fn kv_str(key: &str, value: &str) -> Vec<u8> {
    record(
        key.as_bytes(),
        ValueType::String as u32,
        &string(value.as_bytes()),
    )
}

/// An array record: the element type's number, the stated length, the bytes.
pub fn kv_array(key: &str, elem: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    let mut value = elem.to_le_bytes().to_vec();
    value.extend(len.to_le_bytes());
    value.extend(bytes);
    record(key.as_bytes(), ValueType::Array as u32, &value)
}

/// The words in which an error advises something.
#[track_caller]
pub fn words(error: &FormatError) -> &str {
    match &error.advice {
        Some(Advice::Words(words)) => words,
        other => panic!("{error}: {other:?}"),
    }
}

/// Asserts what an error is about and what it says.
#[track_caller]
pub fn assert_error(error: &FormatError, field: &str, problem: &str) {
    assert_eq!(error.field, field, "{error}");
    let truncated = error.kind == ErrorKind::Truncated;
    assert_eq!(truncated, error.problem.contains("truncated"), "{error}");
    assert!(
        error.problem.contains(problem),
        "{:?} does not say {problem:?}",
        error.problem
    );
}
