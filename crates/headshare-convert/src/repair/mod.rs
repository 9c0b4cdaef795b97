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
mod error;
mod lockstep;
pub mod normal;
mod options;
mod record;
pub mod refit;
mod run;
pub mod sites;
mod supported;
mod weights;
mod windows;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use faer::Par;
use headshare_runtime::calibrate::{Calibrator, CalibratorParams};

pub use error::RepairError;
pub use options::Options;
pub use record::{Record, Repaired, SurveyRecord, TensorRecord};
pub use refit::Refit;
pub use supported::check_supported;
pub use windows::Windows;

use crate::convert::variant::{Heads, spread_columns};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::plan::Plan;
use options::logits_bytes;
use run::Run;
use sites::{Role, Site, Target};

/// Tokens that pass through the last layer's feed-forward part, at most: memory
/// is set aside for their logits, no more than [`logits_bytes`].
const MAX_OUTPUTS: u64 = 8192;

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
    let shared = plan.shares().map(|share| share.layer);
    let first = shared.chain(plan.drops().map(|unit| unit.layer)).min();
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
    let heads = Heads::new(source, map, plan.dropped_units())
        .map_err(|e| RepairError::Internal(e.to_string()))?;
    let empty = empty_layers(&mut changed, source, map, &heads)?;
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
        heads: &heads,
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
        let name = &source.gguf.tensors()[alias.tensor].name;
        let weight = changed
            .graph()
            .weight(name)
            .ok_or_else(|| RepairError::Internal(format!("llama.cpp does not use {name}")))?;
        let data = source.gguf.data_range(&source.gguf.tensors()[donor.tensor]);
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
    heads: &Heads<'_>,
) -> Result<Vec<u32>, RepairError> {
    let mut layers = Vec::new();
    for layer in map.layers.iter().filter(|l| heads.kept(l).is_empty()) {
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
