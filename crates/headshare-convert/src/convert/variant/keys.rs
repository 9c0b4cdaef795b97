//! The key-values of a variant: the source's, but for those that its shapes
//! and types change.

use std::collections::BTreeMap;

use headshare_format::Gguf;
use headshare_format::gguf::{HeaderBuilder, KEY_ARCHITECTURE, Kv};

/// The key under which a variant says how it was made, as JSON.
pub const MADE_BY: &str = "headshare_gguf.made_by";

/// States which mixture of types a file is, as llama.cpp numbers them.
pub(super) const FILE_TYPE: &str = "general.file_type";
/// The version of ggml's quantized types.
pub(super) const QUANTIZATION_VERSION: &str = "general.quantization_version";
/// It, today.
const CURRENT_QUANTIZATION: u32 = 2;

/// What changes.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The architecture's name, and the new one.
    pub renamed: Option<(&'static str, &'static str)>,
    /// Of the architecture: what gets a number for each layer.
    pub arrays: BTreeMap<&'static str, Vec<u32>>,
    /// Of the architecture: what gets another number.
    pub numbers: BTreeMap<String, u32>,
    /// Of the architecture: numbers that must be there.
    pub if_absent: BTreeMap<&'static str, u32>,
    /// llama.cpp's number of the mixture of types, where it is another.
    pub file_type: Option<u32>,
    /// The same, where it is known: it is stated in any case.
    pub mixture: Option<u32>,
    /// Whether some tensors are quantized now.
    pub quantized: bool,
    /// How the variant was made, where it says so.
    pub made_by: Option<String>,
}

impl Keys {
    pub fn renamed(from: &'static str, to: &'static str) -> Self {
        Self {
            renamed: Some((from, to)),
            ..Self::default()
        }
    }

    /// A header with the key-values of `gguf`, these changed.
    pub fn apply(&self, gguf: &Gguf) -> HeaderBuilder {
        let stated = gguf.architecture().ok().flatten().unwrap_or_default();
        let (from, to) = self.renamed.unwrap_or(("", ""));
        let architecture = if to.is_empty() { stated } else { to };
        let prefix = format!("{stated}.");
        let mut builder = HeaderBuilder::new(gguf.version());
        let mut arrays = self.arrays.clone();
        let mut if_absent = self.if_absent.clone();
        for kv in gguf.kvs() {
            let suffix = kv.key.strip_prefix(&prefix);
            if let Some(suffix) = suffix {
                // What the file states is right.
                if_absent.remove(suffix);
                let key = format!("{architecture}.{suffix}");
                if let Some(list) = arrays.remove(suffix) {
                    builder.u32s(&key, list.into_iter());
                } else if let Some(number) = self.numbers.get(suffix) {
                    builder.u32(&key, *number);
                } else if from.is_empty() {
                    builder.record(gguf.record(kv));
                } else {
                    builder.record(&under(gguf, kv, &key));
                }
                continue;
            }
            match (kv.key.as_str(), self.mixture.or(self.file_type)) {
                (KEY_ARCHITECTURE, _) if !to.is_empty() => builder.str(KEY_ARCHITECTURE, to),
                (MADE_BY, _) if self.made_by.is_some() => {}
                (FILE_TYPE, Some(number)) => builder.u32(FILE_TYPE, number),
                _ => builder.record(gguf.record(kv)),
            }
        }
        for (suffix, list) in arrays {
            builder.u32s(&format!("{architecture}.{suffix}"), list.into_iter());
        }
        for (suffix, number) in if_absent {
            builder.u32(&format!("{architecture}.{suffix}"), number);
        }
        if let Some(number) = self.mixture.filter(|_| gguf.kv(FILE_TYPE).is_none()) {
            builder.u32(FILE_TYPE, number);
        }
        if self.quantized && gguf.kv(QUANTIZATION_VERSION).is_none() {
            builder.u32(QUANTIZATION_VERSION, CURRENT_QUANTIZATION);
        }
        if let Some(made_by) = &self.made_by {
            builder.str(MADE_BY, made_by);
        }
        builder
    }
}

/// A record under another key.
fn under(gguf: &Gguf, kv: &Kv, key: &str) -> Vec<u8> {
    let record = gguf.record(kv);
    let mut out = (key.len() as u64).to_le_bytes().to_vec();
    out.extend(key.as_bytes());
    out.extend(&record[size_of::<u64>() + kv.key.len()..]);
    out
}
