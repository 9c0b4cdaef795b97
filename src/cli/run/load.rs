//! Loading the model, in the way that was asked for.

use std::path::Path;

use headshare_runtime::memory::{self, WeightRegions};
use headshare_runtime::model::Progress;
use headshare_runtime::stitched::{Sharing, Source};
use headshare_runtime::{Model, ModelParams};
use headshare_stitch::ScratchFile;

use super::super::output::Output;
use super::args::Resolve;
use super::error::from_model;
use crate::convert;
use crate::input::ModelFile;

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

/// Loads `path` in the way that was asked for. The one place that knows about
/// converted files.
pub(super) fn load(
    path: &Path,
    how: Resolve,
    drop_pages: bool,
    progress: Progress<'_>,
    out: &Output,
) -> anyhow::Result<Loaded> {
    let file = ModelFile::open(path)?;
    let params = ModelParams::default();
    let before = memory::Before::now();
    let sharing = match (&file.table, how) {
        (Some(table), Resolve::Expand) => {
            let scratch = convert::expand_to_scratch(&file, table)?;
            let model = Model::load(scratch.path(), &params, Some(progress)).map_err(from_model)?;
            return Ok(Loaded {
                model,
                resolve: "expand",
                shared_bytes: 0,
                weights: before.additions(),
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
    let mut weights = before.additions();
    model.add_weight_regions(&mut weights);
    let shared = model.shared().cloned().unwrap_or_default();
    if shared.given_up_bytes > 0 {
        out.warning(&format!(
            "{} bytes of shared pages are copied: the process may not have more mappings \
             (vm.max_map_count)",
            shared.given_up_bytes
        ));
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
