//! Loads a model file, plain or converted, in the way that was asked for, and tells
//! what it takes of memory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use headshare_convert::convert;
use headshare_convert::convert::variant::{Types, Variant};
use headshare_convert::input::{InputError, ModelFile};
use headshare_files::ScratchFile;
use headshare_runtime::memory::{self, WeightRegions};
use headshare_runtime::model::Progress;
use headshare_runtime::stitched::{self, Shared, Sharing, Source, StitchError};
use headshare_runtime::{Model, ModelError, ModelParams};
use serde::{Deserialize, Serialize};

use crate::{Error, Ui, Unit};

/// How the shared blocks of a converted file are brought into memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolve {
    /// The best way that this file and machine allow.
    #[default]
    Auto,
    /// Once, in llama.cpp's interleaved layouts.
    Fold,
    /// Once, as they lie in the file.
    Map,
    /// Through a full temporary copy; saves nothing.
    Expand,
}

impl Resolve {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Fold, Self::Map, Self::Expand];

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fold => "fold",
            Self::Map => "map",
            Self::Expand => "expand",
        }
    }
}

/// How they were brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolved {
    /// Nothing is shared.
    None,
    /// All folded.
    Fold,
    /// All mapped.
    Map,
    /// Some folded, some mapped.
    #[serde(rename = "fold+map")]
    FoldMap,
    /// Through a temporary copy.
    Expand,
}

impl Resolved {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fold => "fold",
            Self::Map => "map",
            Self::FoldMap => "fold+map",
            Self::Expand => "expand",
        }
    }
}

/// Sizes in bytes. What the system does not tell is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Proportional set size of the process.
    pub pss_bytes: Option<u64>,
    /// Of it, weights.
    pub weights_pss_bytes: Option<u64>,
    /// The weights' size, blocks that are shared counted as often as they are used.
    pub logical_weight_bytes: u64,
    /// The same, each block counted once.
    pub unique_weight_bytes: u64,
    /// Bytes that are in memory once although they are used twice or more.
    pub shared_bytes: u64,
    /// Mappings of the process.
    pub vmas: Option<u64>,
}

/// A loaded model, and how its shared blocks were brought into memory.
pub(crate) struct Loaded {
    pub model: Model,
    pub resolved: Resolved,
    /// What became of the shared weights.
    pub shared: Shared,
    pub weights: WeightRegions,
    /// Keeps the expanded copy alive.
    pub scratch: Option<ScratchFile>,
}

impl Loaded {
    /// A model that llama.cpp loaded by itself.
    pub fn stock(model: Model) -> Self {
        Self {
            weights: model.weight_regions(),
            model,
            resolved: Resolved::None,
            shared: Shared::default(),
            scratch: None,
        }
    }
}

/// Loads `path` in the way that was asked for. The one place that knows about
/// converted files.
pub(crate) fn load(
    path: &Path,
    how: Resolve,
    drop_pages: bool,
    progress: Progress<'_>,
    ui: &dyn Ui,
) -> Result<Loaded, Error> {
    let file = ModelFile::open_model(path)?;
    let params = ModelParams::default();
    let sharing = match (&file.table, how) {
        (None, _) if !stitched::SUPPORTED => {
            return Ok(Loaded::stock(Model::load(path, &params, Some(progress))?));
        }
        (Some(_), Resolve::Fold | Resolve::Map) if !stitched::SUPPORTED => {
            return Err(StitchError::Unsupported.into());
        }
        (Some(table), how) if how == Resolve::Expand || !stitched::SUPPORTED => {
            let scratch = convert::expand_to_scratch(&file, table)?;
            let params = ModelParams {
                called: Some(path.to_owned()),
                ..params
            };
            let model = Model::load(scratch.path(), &params, Some(progress))?;
            return Ok(Loaded {
                resolved: Resolved::Expand,
                scratch: Some(scratch),
                ..Loaded::stock(model)
            });
        }
        (_, Resolve::Fold) => Sharing::Fold,
        (_, Resolve::Map) => Sharing::Map,
        (_, Resolve::Auto | Resolve::Expand) => Sharing::Auto,
    };
    let source = Source {
        file: &file.file,
        gguf: &file.gguf,
        table: file.table.as_ref(),
    };
    let model = Model::load_stitched(&source, sharing, drop_pages, &params, Some(progress));
    let model = model.map_err(|error| match error {
        // What the file's alias table says.
        ModelError::Stitch(StitchError::Format(error)) => InputError::content(path)(error).into(),
        error => Error::from(error),
    })?;
    let shared = model.shared().cloned().unwrap_or_default();
    if shared.given_up_bytes > 0 {
        ui.warning(&format!(
            "{} bytes of shared pages are copied: the process may not have more mappings \
             (vm.max_map_count)",
            shared.given_up_bytes
        ));
    }
    if how == Resolve::Fold && shared.folded_tensors == 0 && shared.mapped_tensors > 0 {
        ui.remark("note: llama.cpp does not repack the shared weights, so they are mapped");
    }
    if let Some(trouble) = &shared.trouble {
        ui.warning(&format!(
            "some shared blocks are in memory twice: {trouble}"
        ));
    }
    Ok(Loaded {
        weights: model.weight_regions(),
        model,
        resolved: match (&file.table, shared.folded_tensors, shared.mapped_tensors) {
            (None, ..) | (_, 0, 0) => Resolved::None,
            (_, _, 0) => Resolved::Fold,
            (_, 0, _) => Resolved::Map,
            _ => Resolved::FoldMap,
        },
        shared,
        scratch: None,
    })
}

/// Loads `path`, with a bar, unless `stop` is set meanwhile.
///
/// # Errors
/// As of [`load`], and when the model does not predict text.
pub(crate) fn load_generative(
    path: &Path,
    how: Resolve,
    drop_pages: bool,
    stop: &AtomicBool,
    ui: &dyn Ui,
) -> Result<Loaded, Error> {
    let bar = ui.bar("load", 1000, Unit::Parts);
    let mut progress = |part| {
        bar.part(f64::from(part));
        !stop.load(Ordering::Relaxed)
    };
    let loaded = load(path, how, drop_pages, &mut progress, ui)?;
    loaded.model.check_generative()?;
    Ok(loaded)
}

/// Loads `path` with weights as F16 that ggml multiplies slowly as they are; and says
/// how many tensors these are.
///
/// # Errors
/// As of [`load_generative`].
pub(crate) fn load_fast(path: &Path) -> Result<(Loaded, usize), Error> {
    let file = ModelFile::open_model(path)?;
    let expanded = match &file.table {
        Some(table) => Some(convert::expand_to_scratch(&file, table)?),
        None => None,
    };
    let plain = match &expanded {
        Some(scratch) => &ModelFile::open_plain(scratch.path())?,
        None => &file,
    };
    let types = Types::fast(&plain.gguf);
    let variant = Variant::with_types(plain, &types).map_err(InputError::content(path))?;
    let params = ModelParams::default();
    let model = Model::load_virtual(&variant, variant.gguf(), path, &params)?;
    model.check_generative()?;
    let resolved = match &expanded {
        Some(_) => Resolved::Expand,
        None => Resolved::None,
    };
    let loaded = Loaded {
        resolved,
        ..Loaded::stock(model)
    };
    Ok((loaded, types.tensors.len()))
}

/// What a model takes of memory now.
pub(crate) fn measure(model: &Model, weights: &WeightRegions, shared: &Shared) -> Memory {
    let process = memory::process_memory();
    let logical = model.size_bytes();
    Memory {
        pss_bytes: process.map(|process| process.pss_bytes),
        weights_pss_bytes: weights.pss_bytes(),
        logical_weight_bytes: logical,
        unique_weight_bytes: logical.saturating_sub(shared.shared_bytes),
        shared_bytes: shared.shared_bytes,
        vmas: process.map(|process| process.vmas),
    }
}
