//! Converting in the plainest way, and bending what comes out.

use std::ops::Range;

use headshare_format::alias::keys::DIGEST_METADATA;
use headshare_format::alias::{AliasTable, Digests, Provenance, format_digest};
use headshare_format::gguf::{HeaderBuilder, Value, ValueType};
use headshare_format::layout::{self, PhysicalLayout, SharedRows};
use headshare_format::{FormatError, Gguf, PageSize, TensorInfo};

use super::{kv_array, string};

/// The physical file of `source` in which `shared` is stored once.
pub fn convert(
    source: &[u8],
    shared: &[SharedRows],
    page: PageSize,
) -> Result<Vec<u8>, FormatError> {
    let gguf = Gguf::parse(source)?;
    let provenance = Provenance::lossless("test 0", format_digest(&blake3::hash(source)));
    let layout = planned(&gguf, source, shared, page, provenance)?;
    Ok(write(&gguf, source, &layout))
}

/// The layout of `source`, whose header is `gguf`.
pub fn planned(
    gguf: &Gguf,
    source: &[u8],
    shared: &[SharedRows],
    page: PageSize,
    provenance: Provenance,
) -> Result<PhysicalLayout, FormatError> {
    let bytes = |r: Range<u64>| &source[r.start as usize..r.end as usize];
    let is_zero = |r: Range<u64>| bytes(r).iter().all(|&b| b == 0);
    layout::plan(gguf, &is_zero, shared, page, provenance)
}

fn write(gguf: &Gguf, source: &[u8], layout: &PhysicalLayout) -> Vec<u8> {
    let mut data = vec![0; layout.data_len() as usize];
    let mut digests = Vec::new();
    for stored in &layout.stored {
        let start = stored.info.offset as usize;
        for piece in &stored.pieces {
            let bytes = &source[piece.source.start as usize..piece.source.end as usize];
            let at = start + piece.offset as usize;
            data[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let end = start + stored.info.byte_len() as usize;
        digests.push(blake3::hash(&data[start..end]));
    }
    let infos = layout.infos();
    let known = Digests::Known(&digests);
    let mut out = layout.table.encode(gguf, &infos, layout.page, known);
    let sized = layout
        .table
        .encode(gguf, &infos, layout.page, Digests::Unknown);
    assert_eq!(
        out.len(),
        sized.len(),
        "the size does not depend on digests"
    );
    if !layout.stored.is_empty() {
        out.resize(out.len().next_multiple_of(layout.page.to_usize()), 0);
    }
    out.extend(data);
    out
}

/// A physical file taken apart, so that single parts can be changed.
pub struct Converted {
    pub version: u32,
    pub records: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<(TensorInfo, Vec<u8>)>,
    pub page: usize,
}

impl Converted {
    pub fn of(file: &[u8]) -> Self {
        let gguf = Gguf::parse(file).unwrap();
        Self {
            version: gguf.version(),
            records: gguf
                .kvs()
                .iter()
                .map(|kv| (kv.key.clone(), gguf.record(kv).to_vec()))
                .collect(),
            tensors: gguf
                .tensors()
                .iter()
                .map(|t| {
                    let range = gguf.data_range(t);
                    let data = &file[range.start as usize..range.end as usize];
                    (t.clone(), data.to_vec())
                })
                .collect(),
            page: gguf.alignment() as usize,
        }
    }

    /// The file again, with offsets as GGUF wants them.
    pub fn bytes(&self) -> Vec<u8> {
        let mut header = HeaderBuilder::new(self.version);
        for (_, record) in &self.records {
            header.record(record);
        }
        let mut data = Vec::new();
        for (info, bytes) in &self.tensors {
            data.resize(data.len().next_multiple_of(self.page), 0);
            header.tensor(&TensorInfo {
                offset: data.len() as u64,
                ..info.clone()
            });
            data.extend(bytes);
        }
        let mut out = header.finish();
        out.resize(out.len().next_multiple_of(self.page), 0);
        out.extend(data);
        out
    }

    /// The file again, with the digest of its header as it is now: what a writer
    /// gives that breaks a rule. Where the digest itself is broken, it stays so.
    pub fn sealed(&self) -> Vec<u8> {
        let mut out = self.bytes();
        let Ok(gguf) = Gguf::parse(&out) else {
            return out;
        };
        let stated = match gguf.value(DIGEST_METADATA) {
            Some(Value::String(stated)) => stated,
            _ => return out,
        };
        let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        match stated.strip_prefix(b"blake3:") {
            Some(digits) if digits.len() == 64 && digits.iter().all(hex) => {}
            _ => return out,
        }
        let kv = gguf.kv(DIGEST_METADATA).unwrap();
        let end = gguf.value_range(kv).end;
        let mut header = gguf.header_bytes().to_vec();
        header[end - 64..end].fill(b'0');
        let hash = blake3::hash(&header).to_hex();
        out[end - 64..end].copy_from_slice(hash.as_bytes());
        out
    }

    /// Replaces the record of `key`, or adds it at the end.
    pub fn set(&mut self, key: &str, record: Vec<u8>) {
        match self.records.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = record,
            None => self.records.push((key.to_owned(), record)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        let before = self.records.len();
        self.records.retain(|(k, _)| k != key);
        assert_eq!(self.records.len() + 1, before, "{key} was there");
    }

    pub fn edit_u32s(&mut self, key: &str, edit: impl FnOnce(&mut Vec<u32>)) {
        let mut values = self.read(key, |v| match v {
            Value::Array(a) => a.u32s().unwrap(),
            _ => panic!("{key}"),
        });
        edit(&mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let record = kv_array(key, ValueType::U32 as u32, values.len() as u64, &bytes);
        self.set(key, record);
    }

    pub fn edit_u64s(&mut self, key: &str, edit: impl FnOnce(&mut Vec<u64>)) {
        let mut values = self.read(key, |v| match v {
            Value::Array(a) => a.u64s().unwrap(),
            _ => panic!("{key}"),
        });
        edit(&mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let record = kv_array(key, ValueType::U64 as u32, values.len() as u64, &bytes);
        self.set(key, record);
    }

    pub fn edit_strs(&mut self, key: &str, edit: impl FnOnce(&mut Vec<Vec<u8>>)) {
        let mut values: Vec<Vec<u8>> = self.read(key, |v| match v {
            Value::Array(a) => a
                .strs()
                .unwrap()
                .into_iter()
                .map(|s| s.as_bytes().to_vec())
                .collect(),
            _ => panic!("{key}"),
        });
        edit(&mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| string(v)).collect();
        let record = kv_array(key, ValueType::String as u32, values.len() as u64, &bytes);
        self.set(key, record);
    }

    fn read<T>(&self, key: &str, take: impl FnOnce(Value<'_>) -> T) -> T {
        let gguf = Gguf::parse(&self.bytes()).unwrap();
        take(gguf.value(key).unwrap_or_else(|| panic!("no {key}")))
    }

    /// The stored tensor `name`, to be changed.
    pub fn tensor(&mut self, name: &str) -> &mut (TensorInfo, Vec<u8>) {
        self.tensors
            .iter_mut()
            .find(|(t, _)| t.name == name)
            .unwrap_or_else(|| panic!("no stored {name}"))
    }

    pub fn stored_index(&self, name: &str) -> u32 {
        self.tensors
            .iter()
            .position(|(t, _)| t.name == name)
            .unwrap() as u32
    }

    /// What reading the alias table gives; the header itself must be valid.
    pub fn read_table(&self) -> Result<Option<AliasTable>, FormatError> {
        let gguf = Gguf::parse(&self.sealed()).expect("a valid GGUF");
        AliasTable::read(&gguf)
    }
}
