//! Writing GGUF headers.

use byteorder::{LittleEndian, WriteBytesExt};

use super::{TensorInfo, ValueType};

/// Builds the bytes of a header: magic, version, counts, records, infos.
///
/// The two unusual habits it allows are the ones this project needs: raw
/// records are copied as they are, and tensor offsets are the caller's.
#[derive(Debug, Clone)]
pub struct HeaderBuilder {
    version: u32,
    n_kvs: u64,
    kvs: Vec<u8>,
    n_tensors: u64,
    tensors: Vec<u8>,
}

/// Magic, version and the two counts.
const FIXED_BYTES: usize = 4 + 4 + 8 + 8;
// Writing to a Vec cannot fail.
const VEC: &str = "a Vec takes every write";

impl HeaderBuilder {
    /// A header of GGUF `version` (2 and 3 have the same layout).
    pub fn new(version: u32) -> Self {
        Self {
            version,
            n_kvs: 0,
            kvs: Vec::new(),
            n_tensors: 0,
            tensors: Vec::new(),
        }
    }

    /// Adds a whole record, as [`Gguf::record`](super::Gguf::record) gives it.
    pub fn record(&mut self, record: &[u8]) {
        self.n_kvs += 1;
        self.kvs.extend_from_slice(record);
    }

    /// Adds a string.
    pub fn str(&mut self, key: &str, value: &str) {
        self.key(key, ValueType::String);
        string(&mut self.kvs, value.as_bytes());
    }

    /// Adds a `u32`.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, ValueType::U32);
        self.kvs.write_u32::<LittleEndian>(value).expect(VEC);
    }

    /// Adds a `u64`.
    pub fn u64(&mut self, key: &str, value: u64) {
        self.key(key, ValueType::U64);
        self.kvs.write_u64::<LittleEndian>(value).expect(VEC);
    }

    /// Adds an `f32`.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, ValueType::F32);
        self.kvs.write_f32::<LittleEndian>(value).expect(VEC);
    }

    /// Adds an `f64`.
    pub fn f64(&mut self, key: &str, value: f64) {
        self.key(key, ValueType::F64);
        self.kvs.write_f64::<LittleEndian>(value).expect(VEC);
    }

    /// Adds a `bool`.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, ValueType::Bool);
        self.kvs.push(value.into());
    }

    /// Adds an array of `u32`.
    pub fn u32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = u32>) {
        self.array(key, ValueType::U32, values.len());
        for value in values {
            self.kvs.write_u32::<LittleEndian>(value).expect(VEC);
        }
    }

    /// Adds an array of `i32`.
    pub fn i32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        self.array(key, ValueType::I32, values.len());
        for value in values {
            self.kvs.write_i32::<LittleEndian>(value).expect(VEC);
        }
    }

    /// Adds an array of `f32`.
    pub fn f32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = f32>) {
        self.array(key, ValueType::F32, values.len());
        for value in values {
            self.kvs.write_f32::<LittleEndian>(value).expect(VEC);
        }
    }

    /// Adds an array of `u64`.
    pub fn u64s(&mut self, key: &str, values: impl ExactSizeIterator<Item = u64>) {
        self.array(key, ValueType::U64, values.len());
        for value in values {
            self.kvs.write_u64::<LittleEndian>(value).expect(VEC);
        }
    }

    /// Adds an array of strings.
    pub fn strs<'s>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'s str>) {
        self.array(key, ValueType::String, values.len());
        for value in values {
            string(&mut self.kvs, value.as_bytes());
        }
    }

    /// Adds a tensor info, its offset included.
    pub fn tensor(&mut self, info: &TensorInfo) {
        self.n_tensors += 1;
        let out = &mut self.tensors;
        string(out, info.name.as_bytes());
        out.write_u32::<LittleEndian>(info.dims.len() as u32)
            .expect(VEC);
        for &dim in &info.dims {
            out.write_u64::<LittleEndian>(dim).expect(VEC);
        }
        out.write_u32::<LittleEndian>(info.ggml_type.id())
            .expect(VEC);
        out.write_u64::<LittleEndian>(info.offset).expect(VEC);
    }

    /// Where the records added so far end, in bytes from the start of the
    /// header.
    pub fn kvs_end(&self) -> usize {
        FIXED_BYTES + self.kvs.len()
    }

    /// The header's bytes, without padding after them.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + self.kvs.len() + self.tensors.len());
        out.extend_from_slice(b"GGUF");
        out.write_u32::<LittleEndian>(self.version).expect(VEC);
        out.write_u64::<LittleEndian>(self.n_tensors).expect(VEC);
        out.write_u64::<LittleEndian>(self.n_kvs).expect(VEC);
        out.extend_from_slice(&self.kvs);
        out.extend_from_slice(&self.tensors);
        out
    }

    fn key(&mut self, key: &str, value_type: ValueType) {
        self.n_kvs += 1;
        string(&mut self.kvs, key.as_bytes());
        self.kvs
            .write_u32::<LittleEndian>(value_type as u32)
            .expect(VEC);
    }

    fn array(&mut self, key: &str, elem: ValueType, len: usize) {
        self.key(key, ValueType::Array);
        self.kvs.write_u32::<LittleEndian>(elem as u32).expect(VEC);
        self.kvs.write_u64::<LittleEndian>(len as u64).expect(VEC);
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.write_u64::<LittleEndian>(bytes.len() as u64)
        .expect(VEC);
    out.extend_from_slice(bytes);
}
