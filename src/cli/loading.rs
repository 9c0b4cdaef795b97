//! Loads a model file, plain or converted, in the way that was asked for, and
//! tells what it takes of memory.

use std::path::Path;

use clap::ValueEnum;
use headshare_files::ScratchFile;
use headshare_runtime::memory::{self, WeightRegions};
use headshare_runtime::model::Progress;
use headshare_runtime::stitched::{self, Sharing, Source, StitchError};
use headshare_runtime::{Model, ModelError, ModelParams};
use serde::{Deserialize, Serialize};

use super::output::Output;
use crate::convert;
use crate::input::ModelFile;

/// How the shared blocks of a converted file are brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Resolve {
    /// The best way that this file and machine allow.
    Auto,
    /// Once, in llama.cpp's interleaved layouts.
    Fold,
    /// Once, as they lie in the file.
    Map,
    /// Through a full temporary copy; saves nothing.
    Expand,
}

/// Sizes in bytes. What the system does not tell is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) pss_bytes: Option<u64>,
    pub(super) weights_pss_bytes: Option<u64>,
    pub(super) logical_weight_bytes: u64,
    pub(super) unique_weight_bytes: u64,
    pub(super) shared_bytes: u64,
    pub(super) vmas: Option<u64>,
}

/// A loaded model and how its shared blocks were resolved.
pub(super) struct Loaded {
    pub(super) model: Model,
    /// "none" where nothing is shared.
    pub(super) resolve: &'static str,
    /// Bytes of weights that are in memory only once although used twice.
    pub(super) shared_bytes: u64,
    pub(super) weights: WeightRegions,
    /// Keeps the expanded copy alive.
    _scratch: Option<ScratchFile>,
}

impl Loaded {
    /// A model that llama.cpp loaded by itself.
    pub(super) fn stock(model: Model) -> Self {
        Self {
            weights: model.weight_regions(),
            model,
            resolve: "none",
            shared_bytes: 0,
            _scratch: None,
        }
    }
}

/// Loads `path` in the way that was asked for. The one place that knows about
/// converted files.
pub(super) fn load(
    path: &Path,
    how: Resolve,
    drop_pages: bool,
    progress: Progress<'_>,
    out: &Output,
) -> anyhow::Result<Loaded> {
    let file = ModelFile::open_model(path)?;
    let params = ModelParams::default();
    let sharing = match (&file.table, how) {
        (None, _) if !stitched::SUPPORTED => {
            return Model::load(path, &params, Some(progress))
                .map(Loaded::stock)
                .map_err(from_model);
        }
        (Some(_), Resolve::Fold | Resolve::Map) if !stitched::SUPPORTED => {
            return Err(headshare_jobs::Error::from(StitchError::Unsupported).into());
        }
        (Some(table), how) if how == Resolve::Expand || !stitched::SUPPORTED => {
            let scratch = convert::expand_to_scratch(&file, table)?;
            let params = ModelParams {
                called: Some(path.to_owned()),
                ..params
            };
            let model = Model::load(scratch.path(), &params, Some(progress)).map_err(from_model)?;
            return Ok(Loaded {
                weights: model.weight_regions(),
                model,
                resolve: "expand",
                shared_bytes: 0,
                _scratch: Some(scratch),
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
    let model = Model::load_stitched(&source, sharing, drop_pages, &params, Some(progress))
        .map_err(from_model)?;
    let weights = model.weight_regions();
    let shared = model.shared().cloned().unwrap_or_default();
    if shared.given_up_bytes > 0 {
        out.warning(&format!(
            "{} bytes of shared pages are copied: the process may not have more mappings \
             (vm.max_map_count)",
            shared.given_up_bytes
        ));
    }
    if how == Resolve::Fold && shared.folded_tensors == 0 && shared.mapped_tensors > 0 {
        out.remark("note: llama.cpp does not repack the shared weights, so they are mapped");
    }
    if let Some(trouble) = &shared.trouble {
        out.warning(&format!(
            "some shared blocks are in memory twice: {trouble}"
        ));
    }
    Ok(Loaded {
        model,
        resolve: match (&file.table, shared.folded_tensors, shared.mapped_tensors) {
            (None, ..) | (_, 0, 0) => "none",
            (_, _, 0) => "fold",
            (_, 0, _) => "map",
            _ => "fold+map",
        },
        shared_bytes: shared.shared_bytes,
        weights,
        _scratch: None,
    })
}

pub(super) fn measure(model: &Model, weights: &WeightRegions, shared_bytes: u64) -> Memory {
    let process = memory::process_memory();
    let logical = model.size_bytes();
    Memory {
        pss_bytes: process.map(|process| process.pss_bytes),
        weights_pss_bytes: weights.pss_bytes(),
        logical_weight_bytes: logical,
        unique_weight_bytes: logical.saturating_sub(shared_bytes),
        shared_bytes,
        vmas: process.map(|process| process.vmas),
    }
}

/// Whether a file that was given is to blame.
pub(super) fn is_bad_input(error: &ModelError) -> bool {
    matches!(
        error,
        ModelError::Open { .. }
            | ModelError::Load { .. }
            | ModelError::Metadata { .. }
            | ModelError::NotGenerative { .. }
    )
}

pub(super) fn from_model(error: ModelError) -> anyhow::Error {
    match error {
        ModelError::Stitch(StitchError::File(error)) => error.into(),
        error if is_bad_input(&error) => headshare_jobs::Error::bad_input(error).into(),
        other => other.into(),
    }
}
