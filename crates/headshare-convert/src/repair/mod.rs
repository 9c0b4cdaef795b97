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
mod record;
pub mod refit;
mod supported;
mod visitor;

use std::collections::BTreeMap;

use faer::Par;
use headshare_runtime::calibrate::Calibrator;

pub use crate::engine::{Options, Windows};
pub use error::RepairError;
pub use record::{Record, Repaired, SurveyRecord, TensorRecord};
pub use refit::Refit;
pub use supported::check_supported;

use crate::convert::variant::{Heads, spread_columns};
use crate::engine::{Engine, Role};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::plan::Plan;
use visitor::Refitter;

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
    Windows::of(source, map, options, remark)?;
    Ok(())
}

/// The tensors of `source` that repairing `plan` may replace: `attn_output` and
/// `ffn_down` of every layer from the first change on.
pub fn tensors_to_repair(source: &ModelFile, map: &AttentionMap, plan: &Plan) -> Vec<usize> {
    layers_to_repair(map, plan)
        .flat_map(|layer| [output_name(layer), down_name(layer)])
        .filter_map(|name| source.gguf.tensor_index(&name))
        .collect()
}

fn output_name(layer: u32) -> String {
    format!("blk.{layer}.attn_output.weight")
}

fn down_name(layer: u32) -> String {
    format!("blk.{layer}.ffn_down.weight")
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
    let mut engine = Engine::load(source, windows, options)?;
    put_aliases(engine.changed(), source, map, plan)?;
    let heads = Heads::new(source, map, plan.dropped_units())
        .map_err(|e| RepairError::Internal(e.to_string()))?;
    let empty = empty_layers(engine.changed(), source, map, &heads)?;
    let layers = layers_to_repair(map, plan);
    let has_down = |layer: u32| {
        let is_down = |role| role == Role::Down;
        (engine.sites().iter()).any(|s| s.layer == Some(layer) && is_down(s.role))
    };
    let without = layers.clone().filter(|&layer| !has_down(layer)).count();
    if without > 0 {
        remark(&format!(
            "note: {without} layers have no single ffn_down (experts): only their attn_output is refitted"
        ));
    }
    let record = Record {
        text: windows.digest.clone(),
        windows: windows.count,
        window: windows.window,
        held_out: windows.held_out(),
        outputs: engine.outputs(),
        threads: rayon::current_num_threads(),
        choice: None,
        tensors: Vec::new(),
    };
    let mut refitter = Refitter {
        source,
        map,
        plan,
        heads: &heads,
        layers,
        empty,
        par: Par::rayon(rayon::current_num_threads()),
        repaired: Repaired {
            tensors: BTreeMap::new(),
            record,
        },
    };
    engine.run(&mut [&mut refitter], progress)?;
    Ok(refitter.repaired)
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
    heads: &Heads<'_>,
) -> Result<Vec<u32>, RepairError> {
    let mut layers = Vec::new();
    for layer in map.layers.iter().filter(|l| heads.kept(l).is_empty()) {
        let name = output_name(layer.layer);
        let found = changed.graph().weight(&name).zip(source.gguf.tensor(&name));
        let (weight, info) =
            found.ok_or_else(|| RepairError::Internal(format!("there is no {name}")))?;
        changed.write_weight(weight, 0, &spread_columns(info, &[], &[]))?;
        layers.push(layer.layer);
    }
    Ok(layers)
}
