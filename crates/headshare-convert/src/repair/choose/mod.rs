//! Calibrated choice: which units share (or go) is measured, not read off the
//! weights.
//!
//! 1. [`features`]: for each unit and each unit of an earlier layer, how much of
//!    what the layer adds to the residual stream is lost when the donor's
//!    weights take the unit's place and `attn_output` is refitted. The features
//!    are llama.cpp's own: the attention of each layer is computed once more
//!    for each earlier layer, with that layer's weights.
//! 2. [`sensitivity`]: what the loss of one unit does to the logits, on other
//!    windows.
//! 3. [`select`]: units are taken one after the other, cheapest first.
//!
//! `docs/METHOD.md` has the equations.

mod features;
mod pairs;
mod select;
mod sensitivity;
mod sites;
mod survey;

pub use select::{Chosen, Constraints, Goal, Units};
pub use survey::{Donor, Effect, Subject, Survey, SurveyError, Unit};

use headshare_files::ScratchFile;

use super::error::RepairError;
use super::supported::check_supported;
use crate::convert::variant::{Types, Variant};
use crate::convert::{ConvertError, attention_map, write_plain_to_scratch};
use crate::engine::{Options, Windows};
use crate::input::ModelFile;

/// Windows that features are compared on, at most.
const FEATURE_WINDOWS: usize = 16;
/// Windows that the effect on logits is measured on, at most.
const LOGIT_WINDOWS: usize = 4;

/// Measures a model.
///
/// `dropping` says whether dropping units is measured, too. `progress` is told
/// the part that is done.
///
/// # Errors
/// [`RepairError`].
pub fn survey(
    subject: Subject<'_>,
    windows: &Windows,
    options: &Options,
    dropping: bool,
    progress: &dyn Fn(f64),
    remark: &dyn Fn(&str),
) -> Result<Survey, RepairError> {
    let Subject {
        source,
        digest,
        map,
    } = subject;
    check_supported(map)?;
    let fast = fast(source)?;
    let source = fast.as_ref().map_or(source, |(file, _)| file);
    // Blocks of another type have other bytes.
    let map = &attention_map(source)?;
    let held_out = windows.held_out() as usize;
    let fitted = windows.count as usize - held_out;
    let fit = windows.pick(0..fitted, FEATURE_WINDOWS);
    let held = windows.pick(fitted..windows.count as usize, LOGIT_WINDOWS);
    let mut compared = features::compare(source, map, &fit, options, dropping, &|done| {
        progress(done * 0.5);
    })?;
    if let Some(note) = &compared.screened {
        remark(note);
    }
    sensitivity::measure(
        source,
        map,
        &held,
        options,
        &mut compared,
        &|done| progress(0.5 + done * 0.5),
        remark,
    )?;
    Ok(Survey {
        version: survey::VERSION,
        tool: crate::TOOL.to_owned(),
        source: digest.to_owned(),
        text: windows.digest.clone(),
        windows: windows.count,
        window: windows.window,
        units: compared.units,
    })
}

/// `source` with weights that multiply fast, where some do not: in a file of its own, for
/// as long as that is kept.
fn fast(source: &ModelFile) -> Result<Option<(ModelFile, ScratchFile)>, RepairError> {
    if Types::fast(&source.gguf).tensors.is_empty() {
        return Ok(None);
    }
    let fast = Variant::fast(source).map_err(ConvertError::from)?;
    let scratch = write_plain_to_scratch(&fast)?;
    let file = ModelFile::open_plain(scratch.path()).map_err(ConvertError::from)?;
    Ok(Some((file, scratch)))
}
