//! What a conversion tells of itself.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_convert::convert::Prepared;
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Plan, Saved, Store};
use headshare_convert::repair::Record;
use serde::{Deserialize, Serialize};

use super::fit::MadeToFit;
use super::quantize::Quantized;
use crate::plan::{DuplicateCount, Sizes};

/// What was made of a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Converted {
    /// The source.
    pub source: FileSize,
    /// What was written, or would be.
    pub output: FileSize,
    /// Page size that the file is laid out for.
    pub page_size: u64,
    /// Nothing was written.
    pub dry_run: bool,
    /// Whether a dry run could not see the very sizes, which depend on what a repair
    /// leaves as it is: the output then has at most these bytes, and at least this
    /// is saved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// What changed; null where nothing did.
    pub plan: Option<Plan>,
    /// How layers were refitted, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Record>,
    /// How it was quantized, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
    /// How it was made to fit, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<MadeToFit>,
    /// What is byte-equal and stored once.
    pub duplicates: DuplicateCount,
    /// What is saved.
    pub saved: Saved,
    /// The tensors of the model that is made, by their types.
    #[serde(default)]
    pub types: BTreeMap<String, OfType>,
    /// Tensors that have another type than in the source, or are not there.
    #[serde(default)]
    pub retyped: usize,
    /// The architecture of the output where that is certainly a plain GGUF, which
    /// llama.cpp runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<String>,
}

/// The tensors of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfType {
    /// How many.
    pub tensors: usize,
    /// Their weights.
    pub weights: u64,
    /// Bytes of them, each as often as it is used.
    pub bytes: u64,
}

/// A file and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// Its path; absent where a dry run names no output.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Bytes.
    pub bytes: u64,
}

impl Converted {
    /// What there is to say of `prepared`, which is made of `source`; `output` is the file that it
    /// is written to, in pages of so many bytes, if it is.
    pub(super) fn of(
        source: &ModelFile,
        prepared: &Prepared<'_>,
        output: Option<&Path>,
        (page_size, dry_run): (u64, bool),
    ) -> Self {
        let architecture = || prepared.variant.gguf().architecture().ok().flatten();
        let plain = prepared.headshare.is_none().then(architecture);
        let mut types: BTreeMap<String, OfType> = BTreeMap::new();
        for info in prepared.variant.gguf().tensors() {
            let of = types.entry(info.ggml_type.name().to_owned()).or_default();
            of.tensors += 1;
            of.weights += info.row_elems() * info.rows();
            of.bytes += info.byte_len();
        }
        let stores = prepared.plan.iter().flat_map(|plan| plan.stores());
        let is_other = |store: &&Store| {
            let had = source.gguf.tensor(&store.tensor);
            had.is_none_or(|had| had.ggml_type != store.ggml_type)
        };
        let retyped = stores.filter(is_other).count();
        Self {
            source: FileSize {
                path: source.path().display().to_string(),
                bytes: source.len(),
            },
            output: FileSize {
                path: output.map_or_else(String::new, |path| path.display().to_string()),
                bytes: prepared.output_bytes,
            },
            page_size,
            dry_run,
            at_most: false,
            plan: prepared.plan.clone(),
            repair: None,
            quantized: None,
            fit: None,
            retyped,
            duplicates: (&prepared.duplicates).into(),
            saved: prepared.saved,
            types,
            plain: plain.map(|name| name.unwrap_or_default().to_owned()),
        }
    }

    /// What the conversion makes of its source.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            source: self.source.path.clone(),
            source_bytes: self.source.bytes,
            output_bytes: self.output.bytes,
            at_most: self.at_most,
            saved: self.saved,
            duplicates: self.duplicates,
        }
    }
}
