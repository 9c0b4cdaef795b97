//! Repair: the layers after a change are refitted, in closed form, so that the
//! residual stream comes back to what it was.
//!
//! The original model and the changed one (its aliases in place) run over the
//! same text in lockstep. In each layer from the first alias on, `attn_output`
//! and then `ffn_down` are solved by ridge regression towards their original
//! weights, quantized to their stored type right away and written into the
//! changed model while it runs, so that every later layer is fitted on what the
//! file will really compute. `docs/METHOD.md` has the equations.

pub mod choose;
mod error;
mod record;
pub mod refit;
mod supported;
mod visitor;

use std::collections::{BTreeMap, BTreeSet};

use faer::Par;
use headshare_format::TensorInfo;
use headshare_runtime::calibrate::Calibrator;

pub use crate::engine::{Options, Windows};
pub use error::RepairError;
pub use record::{Record, Repaired, SurveyRecord, TensorRecord};
pub use refit::Refit;
pub use supported::check_supported;

use crate::convert::variant::{Heads, Types, Variant, spread_columns};
use crate::convert::{ConvertError, Fitted};
use crate::engine::{self, Engine, Role, Takes, shared_by};
use crate::input::ModelFile;
use crate::model::{AttentionMap, UnitId};
use crate::plan::{Edit, Plan};
pub(crate) use visitor::Refitter;

/// Where no matrix has to stay.
static NOTHING: BTreeSet<String> = BTreeSet::new();

/// What a pass takes for a repair of `source`.
pub fn takes(source: &ModelFile) -> Takes<'static> {
    // The original stream may hold more bits than the source.
    let fast = Types::fast(&source.gguf).tensors.into_iter();
    let more = fast.map(|(tensor, to)| {
        let info = &source.gguf.tensors()[tensor];
        let row = to.row_bytes(info.row_elems()).unwrap_or(0);
        (info.rows()).saturating_mul(row.saturating_sub(info.row_bytes()))
    });
    Takes {
        at: &bytes_at,
        kept: more.fold(0, u64::saturating_add),
    }
}

/// For a matrix of p inputs and n outputs: while solutions for several ridges are compared, 40 p²
/// and 115 p n bytes; while the chosen one is encoded, 64 p² and 85 p n. So no more than the larger
/// of each.
pub(crate) fn bytes_at(info: &TensorInfo) -> u64 {
    let refitted = ["ffn_down.weight", "attn_output.weight"];
    if !refitted.iter().any(|suffix| info.name.ends_with(suffix)) {
        return 0;
    }
    let (inputs, outputs) = (info.row_elems(), info.rows());
    let (p, n) = (inputs.max(outputs), outputs);
    p.saturating_add(n.saturating_mul(2))
        .saturating_mul(p)
        .saturating_mul(64)
}

/// Checks that the text is long enough, and that there is memory for what
/// repair keeps of it.
///
/// # Errors
/// [`RepairError`], as [`repair()`].
pub fn check_text(
    source: &ModelFile,
    options: &Options,
    remark: &dyn Fn(&str),
) -> Result<(), RepairError> {
    Windows::of(source, options, takes(source), &|_| (), remark)?;
    Ok(())
}

/// What is known of a repair of `source` after `plan` before it has run: no data,
/// the room that they may take, and a record that is no shorter.
///
/// # Errors
/// When the plan cannot be carried out.
pub fn foresee(
    source: &ModelFile,
    map: &AttentionMap,
    plan: &Plan,
    windows: &Windows,
    options: &Options,
    choice: Option<SurveyRecord>,
) -> Result<Fitted, ConvertError> {
    let variant = Variant::new(source, plan, None)?;
    let could_be = could_be(&variant, map, plan);
    let heads =
        Heads::new(source, map, left_without_effect(plan)).map_err(|e| ConvertError::Shape {
            path: source.path().to_owned(),
            error: e,
        })?;
    // A matrix that loses columns of dropped units is new data in any case.
    let certain = (map.layers.iter())
        .filter(|layer| heads.kept_columns(layer.layer).is_some())
        .map(|layer| output_name(layer.layer))
        .filter(|name| could_be.contains(name))
        .collect();
    let record = record(windows, engine::outputs(windows, options));
    let repaired = Repaired {
        record: record.longest(&could_be),
        tensors: BTreeMap::new(),
        could_be,
    };
    let mut fitted = repaired.into_fitted(choice).0;
    fitted.room.certain = certain;
    Ok(fitted)
}

/// Whether `plan` gives the stream other shapes, types or zeros: then the changed
/// stream is the model that it makes.
fn is_of_other_shapes(plan: &Plan) -> bool {
    let own = |edit: &Edit| !matches!(edit, Edit::Share(_) | Edit::Drop(_));
    plan.edits.iter().any(own)
}

/// The units that are dropped but still in the changed stream, without effect.
fn left_without_effect(plan: &Plan) -> BTreeSet<UnitId> {
    match is_of_other_shapes(plan) {
        true => BTreeSet::new(),
        false => plan.dropped_units(),
    }
}

/// The tensors that repairing `plan`, which makes `variant`, may replace:
/// `attn_output` and `ffn_down` of every layer from the first change on.
pub(crate) fn could_be(variant: &Variant<'_>, map: &AttentionMap, plan: &Plan) -> BTreeSet<String> {
    layers_to_repair(map, plan)
        .flat_map(|layer| [output_name(layer), down_name(layer)])
        .filter(|name| variant.gguf().tensor(name).is_some())
        .collect()
}

/// The record of a repair that has not begun.
pub(crate) fn record(windows: &Windows, outputs: usize) -> Record {
    Record {
        text: windows.digest.clone(),
        windows: windows.count,
        window: windows.window,
        held_out: windows.held_out(),
        outputs,
        threads: rayon::current_num_threads(),
        choice: None,
        tensors: Vec::new(),
    }
}

fn output_name(layer: u32) -> String {
    format!("blk.{layer}.attn_output.weight")
}

fn down_name(layer: u32) -> String {
    format!("blk.{layer}.ffn_down.weight")
}

/// All layers from the first change on, those without heads among them.
pub(crate) fn layers_to_repair(map: &AttentionMap, plan: &Plan) -> std::ops::Range<u32> {
    let end = map.layers.len() as u32 + map.headless_layers;
    let types = plan.stores().map(|store| match Role::of(&store.tensor) {
        (Some(layer), _) => layer,
        // A head of its own comes after all layers.
        (None, _) if store.tensor == "output.weight" => end,
        (None, _) => 0,
    });
    let first = types.chain(plan.first_layer()).min();
    first.unwrap_or(end).min(end)..end
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
    let no_heads = |error| ConvertError::model(source, error);
    let layers = layers_to_repair(map, plan);
    let reshaped = is_of_other_shapes(plan);
    let variant = match reshaped {
        true => Variant::new(source, plan, None)?,
        false => Variant::unchanged(source),
    };
    let of_variant =
        reshaped.then(|| AttentionMap::of(variant.gguf()).map(|m| (m, plan.renumbered())));
    let of_variant = of_variant.transpose().map_err(no_heads)?;
    let (changed_map, changed_plan) = match &of_variant {
        Some((map, plan)) => (map, plan),
        None => (map, plan),
    };
    // Of the original only statistics are wanted.
    let original = Variant::fast(source).map_err(ConvertError::from)?;
    let mut engine = Engine::load(
        source,
        Some(&original),
        reshaped.then_some(&variant),
        windows,
        options,
    )?;
    engine.share(&shared_by(changed_plan, changed_map, variant.gguf()))?;
    let heads = Heads::new(source, map, left_without_effect(plan)).map_err(|error| {
        let path = source.path().to_owned();
        ConvertError::Shape { path, error }
    })?;
    let empty = empty_layers(engine.changed(), source, map, &heads)?;
    // Whatever the plan makes of them.
    let has_down = |layer: &u32| source.gguf.tensor(&down_name(*layer)).is_some();
    let without = layers.clone().filter(|layer| !has_down(layer)).count();
    if without > 0 {
        remark(&format!(
            "note: {without} layers have no single ffn_down (experts): only their attn_output is refitted"
        ));
    }
    let output = Variant::new(source, plan, None)?;
    let mut refitter = Refitter {
        variant: &variant,
        map: changed_map,
        plan: changed_plan,
        heads: &heads,
        layers,
        empty,
        stay: &NOTHING,
        par: Par::rayon(rayon::current_num_threads()),
        repaired: Repaired {
            tensors: BTreeMap::new(),
            could_be: could_be(&output, map, plan),
            record: record(windows, engine.outputs()),
        },
    };
    engine.run(&mut [&mut refitter], progress)?;
    Ok(refitter.repaired)
}

/// A visitor that refits what is left of `source` after `plan`, in the changed
/// stream `stream` with other types, whose heads `map` knows; `renumbered` is the plan
/// there.
pub(crate) fn beside<'a>(
    stream: &'a Variant<'a>,
    map: &'a AttentionMap,
    renumbered: &'a Plan,
    heads: &'a Heads<'a>,
    layers: std::ops::Range<u32>,
    record: Record,
) -> Refitter<'a> {
    Refitter {
        variant: stream,
        map,
        plan: renumbered,
        heads,
        layers,
        empty: Vec::new(),
        stay: &NOTHING,
        par: Par::rayon(rayon::current_num_threads()),
        repaired: Repaired {
            tensors: BTreeMap::new(),
            could_be: BTreeSet::new(),
            record,
        },
    }
}

/// The layers of which all units are dropped: nothing is added where they were.
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
