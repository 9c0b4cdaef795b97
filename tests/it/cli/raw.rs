//! GGUF files part by part, valid or not: a writer that shares no code with
//! the program's.

use headshare_format::Gguf;

pub const U8: u32 = 0;
pub const I8: u32 = 1;
pub const U16: u32 = 2;
pub const I16: u32 = 3;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
pub const I64: u32 = 11;
pub const F64: u32 = 12;

/// A file in parts. What is `None` is written as it should be.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_kvs: Option<u64>,
    pub n_tensors: Option<u64>,
    /// Whole records.
    pub kvs: Vec<Vec<u8>>,
    pub tensors: Vec<RawTensor>,
    /// Alignment that the data is written with.
    pub alignment: usize,
    /// Whether padding follows the last tensor.
    pub pad_end: bool,
}

#[derive(Clone)]
pub struct RawTensor {
    pub name: Vec<u8>,
    pub n_dims: Option<u32>,
    pub dims: Vec<u64>,
    pub ggml_type: u32,
    /// The offset that the header states.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

pub fn tensor(name: &str, ggml_type: u32, dims: &[u64], data: Vec<u8>) -> RawTensor {
    RawTensor {
        name: name.into(),
        n_dims: None,
        dims: dims.to_vec(),
        ggml_type,
        offset: None,
        data,
    }
}

/// The record of a key: `value` as it stands in the file.
pub fn record(key: impl AsRef<[u8]>, value_type: u32, value: &[u8]) -> Vec<u8> {
    let mut record = string_bytes(key.as_ref());
    record.extend(value_type.to_le_bytes());
    record.extend(value);
    record
}

pub fn string_bytes(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

pub fn string(key: &str, text: &str) -> Vec<u8> {
    record(key, STRING, &string_bytes(text.as_bytes()))
}

pub fn u32(key: &str, n: u32) -> Vec<u8> {
    record(key, U32, &n.to_le_bytes())
}

pub fn u64(key: &str, n: u64) -> Vec<u8> {
    record(key, U64, &n.to_le_bytes())
}

pub fn array(key: &str, elem: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    let mut value = elem.to_le_bytes().to_vec();
    value.extend(len.to_le_bytes());
    value.extend(elements);
    record(key, ARRAY, &value)
}

pub fn u32s(key: &str, list: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = list.iter().flat_map(|n| n.to_le_bytes()).collect();
    array(key, U32, list.len() as u64, &bytes)
}

pub fn u64s(key: &str, list: &[u64]) -> Vec<u8> {
    let bytes: Vec<u8> = list.iter().flat_map(|n| n.to_le_bytes()).collect();
    array(key, U64, list.len() as u64, &bytes)
}

pub fn strings(key: &str, list: &[String]) -> Vec<u8> {
    let bytes: Vec<u8> = list
        .iter()
        .flat_map(|s| string_bytes(s.as_bytes()))
        .collect();
    array(key, STRING, list.len() as u64, &bytes)
}

impl Raw {
    pub fn new(kvs: Vec<Vec<u8>>, tensors: Vec<RawTensor>) -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            n_kvs: None,
            n_tensors: None,
            kvs,
            tensors,
            alignment: 32,
            pad_end: true,
        }
    }

    /// The parts of a valid file. Padding and trailing bytes are forgotten.
    pub fn parse(file: &[u8]) -> Self {
        let gguf = Gguf::parse(file).expect("a valid file");
        let tensors = gguf.tensors().iter().map(|t| {
            let data = gguf.data_range(t);
            let data = file[data.start as usize..data.end as usize].to_vec();
            tensor(&t.name, t.ggml_type.id(), &t.dims, data)
        });
        Self {
            version: gguf.version(),
            alignment: gguf.alignment() as usize,
            pad_end: file.len().is_multiple_of(gguf.alignment() as usize),
            ..Self::new(
                gguf.kvs()
                    .iter()
                    .map(|kv| gguf.record(kv).to_vec())
                    .collect(),
                tensors.collect(),
            )
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(
            self.n_tensors
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        out.extend(self.n_kvs.unwrap_or(self.kvs.len() as u64).to_le_bytes());
        for kv in &self.kvs {
            out.extend(kv);
        }
        let mut offset = 0;
        for t in &self.tensors {
            out.extend(string_bytes(&t.name));
            out.extend(t.n_dims.unwrap_or(t.dims.len() as u32).to_le_bytes());
            for dim in &t.dims {
                out.extend(dim.to_le_bytes());
            }
            out.extend(t.ggml_type.to_le_bytes());
            out.extend(t.offset.unwrap_or(offset).to_le_bytes());
            offset = (offset + t.data.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for (i, t) in self.tensors.iter().enumerate() {
            if i == 0 || !t.data.is_empty() {
                out.resize(out.len().next_multiple_of(self.alignment), 0);
            }
            out.extend(&t.data);
        }
        if self.pad_end {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out
    }

    pub fn position(&self, key: &str) -> Option<usize> {
        let start = string_bytes(key.as_bytes());
        self.kvs.iter().position(|kv| kv.starts_with(&start))
    }

    /// The bytes of a key's value.
    pub fn value(&self, key: &str) -> &[u8] {
        let at = self.position(key).unwrap_or_else(|| panic!("no {key}"));
        &self.kvs[at][8 + key.len() + 4..]
    }

    /// Replaces the record of `key`.
    pub fn set(&mut self, key: &str, record: Vec<u8>) {
        let at = self.position(key).unwrap_or_else(|| panic!("no {key}"));
        self.kvs[at] = record;
    }

    pub fn remove(&mut self, key: &str) {
        let at = self.position(key).unwrap_or_else(|| panic!("no {key}"));
        self.kvs.remove(at);
    }

    pub fn edit_u32s(&mut self, key: &str, edit: impl FnOnce(&mut Vec<u32>)) {
        let bytes = &self.value(key)[12..];
        let mut list = bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        edit(&mut list);
        self.set(key, u32s(key, &list));
    }

    pub fn edit_u64s(&mut self, key: &str, edit: impl FnOnce(&mut Vec<u64>)) {
        let bytes = &self.value(key)[12..];
        let mut list = bytes
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        edit(&mut list);
        self.set(key, u64s(key, &list));
    }

    pub fn edit_strings(&mut self, key: &str, edit: impl FnOnce(&mut Vec<String>)) {
        let mut rest = &self.value(key)[12..];
        let mut list = Vec::new();
        while !rest.is_empty() {
            let (len, tail) = rest.split_at(8);
            let (text, tail) = tail.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
            list.push(String::from_utf8(text.to_vec()).unwrap());
            rest = tail;
        }
        edit(&mut list);
        self.set(key, strings(key, &list));
    }

    pub fn tensor(&mut self, name: &str) -> &mut RawTensor {
        self.tensors
            .iter_mut()
            .find(|t| t.name == name.as_bytes())
            .unwrap_or_else(|| panic!("no {name}"))
    }
}

/// The converted file with digests that fit its content: what someone writes
/// who changes a file on purpose.
pub fn sealed(mut raw: Raw) -> Vec<u8> {
    let digest = |bytes: &[u8]| format!("blake3:{}", blake3::hash(bytes).to_hex());
    let digests: Vec<String> = raw.tensors.iter().map(|t| digest(&t.data)).collect();
    raw.set(
        "headshare.digest.stored",
        strings("headshare.digest.stored", &digests),
    );
    const METADATA: &str = "headshare.digest.metadata";
    let zeros = format!("blake3:{}", "0".repeat(64));
    raw.set(METADATA, string(METADATA, &zeros));
    let mut file = raw.bytes();
    let gguf = Gguf::parse(&file).expect("a valid file");
    let digits = gguf.value_range(gguf.kv(METADATA).unwrap()).end - 64;
    let hash = blake3::hash(gguf.header_bytes()).to_hex();
    file[digits..digits + 64].copy_from_slice(hash.as_bytes());
    file
}
