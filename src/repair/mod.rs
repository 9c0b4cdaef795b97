//! Repair: the layers after a change are refitted, in closed form, so that the
//! residual stream comes back to what it was.
//!
//! The original model and the changed one (its aliases in place) run over the
//! same text in lockstep. In each layer from the first alias on, `attn_output`
//! and then `ffn_down` are solved by ridge regression towards their original
//! weights, quantised to their stored type right away and written into the
//! changed model while it runs, so that every later layer is fitted on what the
//! file will really compute. `docs/METHOD.md` has the equations.

pub mod choose;
mod lockstep;
pub mod normal;
pub mod refit;
mod run;
pub mod sites;
mod windows;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use faer::Par;
use headshare_runtime::calibrate::{CalibrateError, Calibrator, CalibratorParams};
use headshare_runtime::quants::{self, QuantError};
use headshare_runtime::{ContextError, VocabError};
use serde::Serialize;

pub use refit::Refit;
pub use windows::Windows;

use crate::convert::cut::{Cut, spread_columns};
use crate::input::ModelFile;
use crate::model::{AttentionMap, Residual};
use crate::plan::Plan;
use crate::quantize::QuantizeError;
use run::Run;
use sites::{Role, Site, Target};

/// Tokens that pass through the last layer's feed-forward part, at most: memory
/// is set aside for their logits, no more than [`logits_bytes`].
const MAX_OUTPUTS: u64 = 8192;

/// Bytes of logits that may be set aside, where `memory` is there in all.
fn logits_bytes(memory: u64) -> u64 {
    (1 << 30).min(memory / 8)
}

/// How a repair is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The text to calibrate on.
    pub text: String,
    /// Windows of it, at most.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Bytes of memory to stay within.
    pub memory: u64,
    /// Threads; `None` means one a physical core that this process may use.
    pub n_threads: Option<u32>,
    /// While true, everything stops as soon as it can.
    pub stop: Arc<AtomicBool>,
}

/// A repaired model: what differs from the source.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// New data of whole tensors, by index in the source.
    pub tensors: BTreeMap<usize, Vec<u8>>,
    /// What was done, for the file and for people.
    pub record: Record,
}

/// How a repair came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Digest of the text.
    pub text: String,
    /// Windows it was cut into.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Windows, of these, that ridges were chosen on.
    pub held_out: u32,
    /// Tokens that the last layer was fitted on: as many as there was memory
    /// for.
    pub outputs: usize,
    /// Threads that it ran on: sums depend on them.
    pub threads: usize,
    /// What the units were chosen by; absent where nothing was measured for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<choose::SurveyRecord>,
    /// The refitted matrices, in the order in which they were refitted.
    pub tensors: Vec<TensorRecord>,
}

/// How one matrix was refitted; errors are relative to the target's size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// The ridge that was chosen; absent where the weights stayed as they were.
    pub lambda: Option<f64>,
    /// The error with the original weights.
    pub before: f64,
    /// The error with the refitted weights as they are stored.
    pub after: f64,
}

/// Why a model cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The architecture's layers do not add up one after the other.
    #[error("--repair: architecture {architecture}: {why}")]
    Unsupported {
        /// Its name.
        architecture: String,
        /// Why not.
        why: String,
    },
    /// Too little text.
    #[error("--repair: the text has {found} tokens; it needs at least {needed}")]
    TextTooShort {
        /// What it has.
        found: usize,
        /// What it needs.
        needed: usize,
    },
    /// The bound on memory is too small.
    #[error("--memory: {bound} bytes are too few; repairing this model needs at least {needed}")]
    Memory {
        /// The bound.
        bound: u64,
        /// What it takes.
        needed: u64,
    },
    /// The model computes no numbers.
    #[error("layer {layer}: {what} are not finite")]
    NotFinite {
        /// The layer.
        layer: u32,
        /// Which numbers.
        what: String,
    },
    /// A matrix cannot be quantised.
    #[error("{name}: {error}")]
    Quantize {
        /// Its name.
        name: String,
        /// Why not.
        error: QuantizeError,
    },
    /// The run was interrupted or llama.cpp failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The system starts no thread for the second stream.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Something that cannot be.
    #[error("repair: {0}")]
    Internal(String),
}

impl RepairError {
    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TextTooShort { .. } => {
                Some("some hundred kilobytes of the text that the model will be used on do best")
            }
            Self::NotFinite { .. } => Some("headshare-gguf run shows whether the model works"),
            _ => None,
        }
    }
}

impl From<ContextError> for RepairError {
    fn from(error: ContextError) -> Self {
        CalibrateError::from(error).into()
    }
}

/// Refuses models that repair has no derivation for.
///
/// # Errors
/// [`RepairError::Unsupported`].
pub fn check_supported(map: &AttentionMap) -> Result<(), RepairError> {
    let architecture = map.architecture;
    let why = if architecture.encoder_only {
        "it is an encoder, without the logits that repair is about"
    } else {
        match architecture.residual {
            Residual::Sequential => return Ok(()),
            Residual::Parallel => {
                "attention and feed-forward read the same input, which repair has no derivation for"
            }
            Residual::Varies => {
                "its layers are not all attention first, feed-forward second, as repair needs"
            }
        }
    };
    Err(RepairError::Unsupported {
        architecture: architecture.name.to_owned(),
        why: why.to_owned(),
    })
}

/// Checks that the text is long enough, and that there is memory for what
/// repair keeps of it.
///
/// # Errors
/// [`RepairError`], as [`repair()`].
pub fn check_text(
    source: &ModelFile,
    map: &AttentionMap,
    options: &Options,
    remark: &dyn Fn(&str),
) -> Result<(), RepairError> {
    Windows::of(source, map, options, remark).map(drop)
}

/// The tensors of `source` that repairing `plan` may replace: `attn_output` and
/// `ffn_down` of every layer from the first change on.
pub fn tensors_to_repair(source: &ModelFile, map: &AttentionMap, plan: &Plan) -> Vec<usize> {
    layers_to_repair(map, plan)
        .flat_map(|layer| Role::ALL.map(|role| role.tensor_name(layer)))
        .filter_map(|name| source.gguf.tensor_index(&name))
        .collect()
}

/// All layers from the first change on, those without heads among them.
fn layers_to_repair(map: &AttentionMap, plan: &Plan) -> std::ops::Range<u32> {
    let aliases = plan.aliases.iter().map(|a| a.layer);
    let first = aliases.chain(plan.dropped.iter().map(|d| d.layer)).min();
    let end = map.layers.len() as u32 + map.headless_layers;
    first.unwrap_or(end)..end
}

/// Repairs `source` after `plan`, which was checked against `map`.
///
/// `progress` is told the part that is done, `remark` what a user may want to
/// know.
///
/// # Errors
/// [`RepairError`]; nothing was written then.
pub fn repair(
    source: &ModelFile,
    map: &AttentionMap,
    plan: &Plan,
    windows: &Windows,
    options: &Options,
    progress: &dyn Fn(f64),
    remark: &dyn Fn(&str),
) -> Result<Repaired, RepairError> {
    check_supported(map)?;
    let vocabulary = u64::from(windows.vocabulary).max(1);
    let n_tokens = windows.tokens.len();
    let outputs = MAX_OUTPUTS
        .min(logits_bytes(options.memory) / (4 * vocabulary))
        .clamp(windows.count.into(), n_tokens as u64) as usize;
    let is_output = move |i: usize| {
        // Spread evenly, and the last token of the text among them.
        (i + 1) * outputs / n_tokens != i * outputs / n_tokens
    };
    let params = CalibratorParams {
        windows: windows.count,
        window: windows.window,
        outputs: outputs as u32,
        n_threads: options.n_threads,
        stop: Arc::clone(&options.stop),
    };
    let mut original = Calibrator::load(source.path(), &params)?;
    let mut changed = Calibrator::load(source.path(), &params)?;
    put_aliases(&mut changed, source, map, plan)?;
    let cut = Cut::new(source, map, plan.dropped_units())
        .map_err(|e| RepairError::Internal(e.to_string()))?;
    let empty = empty_layers(&mut changed, source, map, &cut)?;
    let mut sites = find_sites(&changed, map, plan, remark)?;
    sites.retain(|s| s.role != Role::AttentionOutput || !empty.contains(&s.layer));

    let stops: Vec<usize> = sites.iter().map(|s| s.input).collect();
    let original_stops: Vec<usize> = sites.iter().map(Site::original).collect();
    let keep: Vec<usize> = sites
        .iter()
        .filter_map(|s| match s.target {
            Target::Sum { residual, .. } => Some(residual),
            Target::Output(_) => None,
        })
        .collect();
    let mut repaired = Repaired {
        tensors: BTreeMap::new(),
        record: Record {
            text: windows.digest.clone(),
            windows: windows.count,
            window: windows.window,
            held_out: windows.held_out(),
            outputs,
            threads: rayon::current_num_threads(),
            choice: None,
            tensors: Vec::new(),
        },
    };
    if sites.is_empty() {
        return Ok(repaired);
    }
    let picked: Vec<usize> = (0..n_tokens).filter(|&i| is_output(i)).collect();
    let held_from = (windows.count - windows.held_out()) as usize * windows.window as usize;
    let run = Run {
        source,
        map,
        plan,
        cut: &cut,
        picked: &picked,
        held_from,
        n_tokens,
        par: Par::rayon(rayon::current_num_threads()),
    };
    lockstep::beside(
        &mut original,
        &windows.tokens,
        &is_output,
        &original_stops,
        |lane| {
            let mut done = 0;
            changed.run(
                &windows.tokens,
                &is_output,
                &stops,
                &keep,
                &mut |_, pass| {
                    let site = &sites[done];
                    let fitted = match lane.next() {
                        Some((_, values)) => run.refit(site, pass, values),
                        None => Err(RepairError::Internal("the original stream ended".into())),
                    };
                    let result = fitted.and_then(|fitted| {
                        run.put(site, &fitted, pass)?;
                        Ok(fitted)
                    });
                    match result {
                        Ok(fitted) => run.note(&mut repaired, site, fitted),
                        Err(error) => return ControlFlow::Break(Err(error)),
                    }
                    done += 1;
                    progress(done as f64 / sites.len() as f64);
                    if done == sites.len() {
                        return ControlFlow::Break(Ok(()));
                    }
                    ControlFlow::Continue(())
                },
            )
        },
    )?;
    Ok(repaired)
}

/// Writes the donors' rows over the aliases'.
fn put_aliases(
    changed: &mut Calibrator,
    source: &ModelFile,
    map: &AttentionMap,
    plan: &Plan,
) -> Result<(), RepairError> {
    for (alias, donor) in plan.shared_rows(map) {
        let name = &source.gguf.tensors[alias.tensor].name;
        let weight = changed
            .graph()
            .weight(name)
            .ok_or_else(|| RepairError::Internal(format!("llama.cpp does not use {name}")))?;
        let data = source.gguf.data_range(&source.gguf.tensors[donor.tensor]);
        let from = data.start + donor.offset;
        changed.write_weight(
            weight,
            alias.offset as usize,
            source.bytes(from..from + donor.len),
        )?;
    }
    Ok(())
}

/// The layers of which all units go: nothing is added where they were.
fn empty_layers(
    changed: &mut Calibrator,
    source: &ModelFile,
    map: &AttentionMap,
    cut: &Cut<'_>,
) -> Result<Vec<u32>, RepairError> {
    let mut layers = Vec::new();
    for layer in map.layers.iter().filter(|l| cut.kept(l).is_empty()) {
        let name = Role::AttentionOutput.tensor_name(layer.layer);
        let found = changed.graph().weight(&name).zip(source.gguf.tensor(&name));
        let (weight, info) =
            found.ok_or_else(|| RepairError::Internal(format!("there is no {name}")))?;
        changed.write_weight(weight, 0, &spread_columns(info, &[], &[]))?;
        layers.push(layer.layer);
    }
    Ok(layers)
}

/// The matrices to refit, in the order in which they are computed.
fn find_sites(
    changed: &Calibrator,
    map: &AttentionMap,
    plan: &Plan,
    remark: &dyn Fn(&str),
) -> Result<Vec<Site>, RepairError> {
    let unsupported = |why| RepairError::Unsupported {
        architecture: map.architecture.name.to_owned(),
        why,
    };
    let mut sites = Vec::new();
    let mut without = 0;
    for layer in layers_to_repair(map, plan) {
        for role in Role::ALL {
            match sites::find(changed.graph(), layer, role).map_err(unsupported)? {
                Some(site) => sites.push(site),
                None => without += u32::from(role == Role::FeedForwardDown),
            }
        }
    }
    if without > 0 {
        remark(&format!(
            "note: {without} layers have no single ffn_down (experts): only their attn_output is refitted"
        ));
    }
    sites.sort_by_key(|s| s.input);
    Ok(sites)
}

impl Site {
    pub(crate) fn cannot(&self, error: QuantizeError) -> RepairError {
        RepairError::Quantize {
            name: self.name.clone(),
            error,
        }
    }
}

/// The weights of tensor `index`, row after row.
pub(crate) fn dequantised(source: &ModelFile, index: usize) -> Result<Vec<f32>, QuantError> {
    let info = &source.gguf.tensors[index];
    let bytes = source.bytes(source.gguf.data_range(info));
    let rows = info.byte_len() / info.row_bytes();
    let mut values = vec![0f32; (rows * info.row_elems()) as usize];
    quants::dequantize_row(info.ggml_type.id(), bytes, &mut values)?;
    Ok(values)
}
