//! What a GGUF file holds, and what a converted one shares and saves.

pub mod second_reader;

use std::collections::BTreeMap;

use headshare_format::alias::{AliasTable, metadata_is_intact};
use headshare_format::{LogicalLayout, PageSize, TensorInfo, VirtualGguf};
use serde::Serialize;

use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::model::layer_of;
use headshare_convert::plan::{Plan, Saved};

/// A file in numbers. Sizes are in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The file's path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// GGUF version.
    pub gguf_version: u32,
    /// The model's architecture (the true one, in a converted file).
    pub architecture: Option<String>,
    /// Alignment of the tensor data.
    pub alignment: u64,
    /// Number of keys.
    pub keys: usize,
    /// Number of tensors: stored ones, in a converted file.
    pub tensors: usize,
    /// Bytes of their data.
    pub tensor_bytes: u64,
    /// The (logical) tensors by type.
    pub types: BTreeMap<&'static str, TypeCount>,
    /// What a converted file shares; `null` for a plain one.
    pub sharing: Option<SharingInspection>,
}

/// The tensors of one type.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct TypeCount {
    /// How many.
    pub tensors: usize,
    /// Bytes of their data.
    pub bytes: u64,
}

/// What a converted file shares.
#[derive(Debug, Clone, Serialize)]
pub struct SharingInspection {
    /// Version of the file format.
    pub format_version: u32,
    /// The program that wrote the file.
    pub tool: String,
    /// Whether `expand` gives the source back byte for byte, as the file states.
    pub lossless: bool,
    /// Whether the header is what its digest says; tensor data is not looked at.
    pub header_intact: bool,
    /// Page size the file is laid out for.
    pub page_size: u64,
    /// Size of the source.
    pub source_bytes: u64,
    /// Digest of the source.
    pub source_digest: String,
    /// Number of logical tensors.
    pub logical_tensors: usize,
    /// Bytes of the logical tensors.
    pub logical_bytes: u64,
    /// Bytes of logical tensors that are stored at an earlier place.
    pub shared_bytes: u64,
    /// What the file saves.
    pub saved: Saved,
    /// The plan; `null` for lossless files.
    pub plan: Option<Plan>,
    /// The layers that share something.
    pub layers: Vec<LayerSharing>,
}

/// What one layer shares.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSharing {
    /// The layer; `null` for tensors outside the layers.
    pub layer: Option<u32>,
    /// Bytes of its logical tensors.
    pub bytes: u64,
    /// Those stored at an earlier place.
    pub shared_bytes: u64,
    /// Its units that use another unit's weights, by the plan.
    pub aliases: usize,
}

/// Inspects `file`.
///
/// # Errors
/// When the plan in a converted file cannot be read, or its sizes overflow.
pub fn inspect(file: &ModelFile) -> Result<Inspection, InputError> {
    let content = || InputError::content(file.path());
    let (architecture, logical) = match &file.table {
        Some(table) => (table.source.architecture.clone(), table.tensors.as_slice()),
        None => (
            file.gguf
                .architecture()
                .map_err(content())?
                .map(str::to_owned),
            file.gguf.tensors(),
        ),
    };
    Ok(Inspection {
        path: file.path().display().to_string(),
        bytes: file.len(),
        gguf_version: file.gguf.version(),
        architecture,
        alignment: file.gguf.alignment(),
        keys: file.gguf.kvs().len(),
        tensors: file.gguf.tensors().len(),
        tensor_bytes: total(file.gguf.tensors()),
        types: count_types(logical),
        sharing: file
            .table
            .as_ref()
            .map(|table| inspect_sharing(file, table))
            .transpose()?,
    })
}

fn inspect_sharing(file: &ModelFile, table: &AliasTable) -> Result<SharingInspection, InputError> {
    let content = || InputError::content(file.path());
    let page_size =
        PageSize::new(file.gguf.alignment()).expect("a table is read only with a page size");
    let view =
        VirtualGguf::new(&file.gguf, table, LogicalLayout::Pages(page_size)).map_err(content())?;
    let plan = headshare_convert::convert::plan_of(file, table)?;
    let layers = layers_of(table, plan.as_ref());
    Ok(SharingInspection {
        format_version: headshare_format::alias::VERSION,
        tool: table.provenance.tool.clone(),
        lossless: table.provenance.lossless,
        header_intact: metadata_is_intact(&file.gguf).map_err(content())?,
        page_size: page_size.bytes(),
        source_bytes: table.source.size,
        source_digest: table.provenance.source_digest.clone(),
        logical_tensors: table.tensors.len(),
        logical_bytes: total(&table.tensors),
        shared_bytes: layers.iter().map(|l| l.shared_bytes).sum(),
        saved: Saved {
            file_bytes: table.source.size as i64 - file.len() as i64,
            resident_bytes: view.resident_saving(page_size),
        },
        plan,
        layers: layers.into_iter().filter(|l| l.shared_bytes > 0).collect(),
    })
}

/// What each layer shares, those that share nothing too; first what is outside
/// the layers.
pub fn layers_of(table: &AliasTable, plan: Option<&Plan>) -> Vec<LayerSharing> {
    // Donors are in lower layers than their aliases; files often have another order.
    let mut order: Vec<u32> = (0..table.tensors.len() as u32).collect();
    order.sort_by_key(|&t| (layer_of(&table.tensors[t as usize].name), t));
    let shared = table.shared_bytes(order);
    let mut layers: BTreeMap<Option<u32>, LayerSharing> = BTreeMap::new();
    for (tensor, shared) in table.tensors.iter().zip(&shared) {
        let layer = layer_of(&tensor.name);
        let entry = layers.entry(layer).or_insert_with(|| LayerSharing {
            layer,
            bytes: 0,
            shared_bytes: 0,
            aliases: 0,
        });
        entry.bytes += tensor.byte_len();
        entry.shared_bytes += shared;
    }
    for alias in plan.into_iter().flat_map(Plan::shares) {
        if let Some(entry) = layers.get_mut(&Some(alias.layer)) {
            entry.aliases += 1;
        }
    }
    layers.into_values().collect()
}

fn total(tensors: &[TensorInfo]) -> u64 {
    tensors.iter().map(TensorInfo::byte_len).sum()
}

fn count_types(tensors: &[TensorInfo]) -> BTreeMap<&'static str, TypeCount> {
    let mut types: BTreeMap<&'static str, TypeCount> = BTreeMap::new();
    for tensor in tensors {
        let count = types.entry(tensor.ggml_type.name()).or_default();
        count.tensors += 1;
        count.bytes += tensor.byte_len();
    }
    types
}
