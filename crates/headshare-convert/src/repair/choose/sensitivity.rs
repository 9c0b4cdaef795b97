//! What the loss of one unit does to the logits.
//!
//! One pass over the original model gives each layer's features; what is
//! missing of a unit's, after the refit, is taken from the residual stream, and
//! the rest of the pass is computed again from there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

use headshare_runtime::calibrate::{Calibrator, CalibratorParams, Pass};
use rayon::prelude::*;

use super::features::{Compared, Fits, Weights, columns, cut, id, product};
use super::sites::{self, Attention, crossing};
use super::survey::Unit;
use crate::engine::Options;
use crate::engine::Windows;
use crate::engine::weights::dequantized;
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::model::UnitId;
use crate::repair::error::RepairError;
use crate::stats::Reference;

/// Units whose effect on logits is measured; that of others is estimated.
const MEASURED_UNITS: usize = 256;
/// Tokens whose logits are compared, and their bytes, at most.
const MAX_OUTPUTS: u64 = 2048;
const MAX_LOGITS_BYTES: u64 = 512 << 20;

/// A change of one unit whose effect is measured.
struct Change {
    unit: UnitId,
    dropped: bool,
    /// What is missing of its features, a row for each token.
    missing: Vec<f32>,
}

/// Where a layer's attention joins the residual stream.
struct Junction {
    /// The node, in rows of all tokens or of the outputs alone.
    node: usize,
    /// It and all else that the rest of the pass is computed from.
    values: Vec<(usize, Vec<f32>)>,
}

/// Fills in the divergences of the units that were compared.
pub(super) fn measure(
    source: &ModelFile,
    map: &AttentionMap,
    windows: &Windows,
    options: &Options,
    compared: &mut Compared,
    progress: &dyn Fn(f64),
    remark: &dyn Fn(&str),
) -> Result<(), RepairError> {
    let Compared { units, fits, .. } = compared;
    let fits = &*fits;
    let measured = screen(units);
    let wanted = units
        .iter()
        .filter(|u| u.shared.is_some() || u.dropped.is_some());
    let all = wanted.count();
    if measured.len() < all {
        remark(&format!(
            "note: the effect on the logits is measured for {} of {all} units, those that lose least, and estimated from that for the others",
            measured.len()
        ));
    }
    let n_tokens = windows.tokens.len();
    let outputs = outputs(windows);
    let is_output = |i: usize| outputs.binary_search(&i).is_ok();
    let params = CalibratorParams {
        windows: windows.count,
        window: windows.window,
        outputs: outputs.len() as u32,
        n_threads: options.n_threads,
        stop: options.stop.clone(),
    };
    let mut calibrator = Calibrator::load(source.path(), &params)?;
    let attentions = sites::find(&calibrator, map)?;
    let weights = Weights::of(source, map, &calibrator)?;
    let graph = calibrator.graph();
    let end = graph.nodes.len() - 1;
    let crossings: Vec<Vec<usize>> = attentions
        .iter()
        .map(|a| crossing(graph, a.output.target.node()))
        .collect();
    let mut stops = vec![end];
    for attention in &attentions {
        stops.extend([
            attention.input,
            attention.features(),
            attention.output.target.node(),
        ]);
    }
    let keep: Vec<usize> = crossings.iter().flatten().copied().collect();
    let mut changes: Vec<Change> = Vec::new();
    let mut junctions: BTreeMap<u32, Junction> = BTreeMap::new();
    let mut input = Vec::new();
    let mut results: Vec<f64> = Vec::new();
    let by_stop = |stop| {
        attentions
            .iter()
            .zip(&crossings)
            .find(|(a, _)| [a.input, a.features(), a.output.target.node()].contains(&stop))
    };
    calibrator.run(
        &windows.tokens,
        &is_output,
        &stops,
        &keep,
        &mut |stop, pass| {
            let mut at = || -> Result<bool, RepairError> {
                if stop == end {
                    results = effects(
                        &Replays {
                            source,
                            attentions: &attentions,
                            junctions: &junctions,
                            outputs: &outputs,
                            n_tokens,
                            end,
                        },
                        pass,
                        &changes,
                        progress,
                    )?;
                    return Ok(true);
                }
                let Some((attention, crossing)) = by_stop(stop) else {
                    return Err(RepairError::Internal("an unknown stop".into()));
                };
                if stop == attention.input {
                    input = pass.f32s(stop)?.into_owned();
                } else if stop == attention.features() {
                    let missing =
                        missing(attention, pass, &input, n_tokens, fits, &measured, &weights)?;
                    changes.extend(missing);
                } else {
                    let values = crossing
                        .iter()
                        .map(|&node| Ok((node, pass.f32s(node)?.into_owned())))
                        .collect::<Result<_, RepairError>>()?;
                    let junction = Junction { node: stop, values };
                    junctions.insert(attention.layer.layer, junction);
                }
                Ok(false)
            };
            match at() {
                Ok(false) => ControlFlow::Continue(()),
                Ok(true) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        },
    )?;
    for (change, divergence) in changes.iter().zip(results) {
        let Some(unit) = units.iter_mut().find(|u| u.id() == change.unit) else {
            continue;
        };
        let effect = if change.dropped {
            unit.dropped.as_mut()
        } else {
            unit.shared.as_mut()
        };
        if let Some(effect) = effect {
            effect.divergence = divergence;
            effect.measured = true;
        }
    }
    estimate(units);
    Ok(())
}

/// The units whose effect is measured: of each layer the one that loses least,
/// then whichever lose least.
fn screen(units: &[Unit]) -> BTreeSet<UnitId> {
    let loss = |unit: &Unit| {
        let effects = [unit.shared, unit.dropped];
        let losses = effects.iter().flatten().map(|e| e.loss);
        losses.fold(f64::INFINITY, f64::min)
    };
    let mut order: Vec<(f64, UnitId)> = units
        .iter()
        .filter(|u| u.shared.is_some() || u.dropped.is_some())
        .map(|u| (loss(u), u.id()))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut layers = BTreeSet::new();
    let (first, rest): (Vec<_>, Vec<_>) = order
        .into_iter()
        .partition(|(_, unit)| layers.insert(unit.layer));
    let room = MEASURED_UNITS.max(first.len());
    first
        .into_iter()
        .chain(rest)
        .map(|(_, unit)| unit)
        .take(room)
        .collect()
}

/// Divergences that were not measured, from those of the layer: as much for
/// each part lost.
fn estimate(units: &mut [Unit]) {
    let mut rates: BTreeMap<u32, (f64, u32)> = BTreeMap::new();
    for unit in &*units {
        for effect in [unit.shared, unit.dropped].into_iter().flatten() {
            if effect.measured && effect.loss > 0.0 && effect.divergence > 0.0 {
                let rate = rates.entry(unit.layer).or_default();
                rate.0 += (effect.divergence / effect.loss).ln();
                rate.1 += 1;
            }
        }
    }
    for unit in units {
        let rate = rates
            .get(&unit.layer)
            .map_or(1.0, |(sum, n)| (sum / f64::from(*n)).exp());
        for effect in [&mut unit.shared, &mut unit.dropped].into_iter().flatten() {
            if !effect.measured {
                effect.divergence = effect.loss * rate;
            }
        }
    }
}

/// The tokens whose logits are compared: of the second half of each window, as
/// in perplexity, as many as memory is set aside for.
fn outputs(windows: &Windows) -> Vec<usize> {
    let window = windows.window as usize;
    let late: Vec<usize> = (0..windows.tokens.len())
        .filter(|i| i % window >= window / 2)
        .collect();
    let vocabulary = u64::from(windows.vocabulary).max(1);
    let most = MAX_OUTPUTS.min(MAX_LOGITS_BYTES / (4 * vocabulary)) as usize;
    let n = late.len().min(most.max(windows.count as usize));
    (0..n).map(|i| late[(i + 1) * late.len() / n - 1]).collect()
}

/// What is missing of the features of each unit of a layer that is measured.
fn missing(
    attention: &Attention<'_>,
    pass: &mut Pass<'_>,
    input: &[f32],
    n_tokens: usize,
    fits: &BTreeMap<UnitId, Fits>,
    measured: &BTreeSet<UnitId>,
    weights: &Weights<'_>,
) -> Result<Vec<Change>, RepairError> {
    let layer = attention.layer;
    let features = pass.f32s(attention.features())?.into_owned();
    let width = features.len() / n_tokens;
    let mut changes = Vec::new();
    // By the layer of the donor: one replay serves all of them.
    let mut shared: BTreeMap<u32, Vec<(u32, UnitId)>> = BTreeMap::new();
    for unit in (0..layer.n_head_kv).filter(|&u| measured.contains(&id(layer, u))) {
        let Some(fits) = fits.get(&id(layer, unit)) else {
            continue;
        };
        if let Some((donor, _)) = &fits.shared {
            shared.entry(donor.layer).or_default().push((unit, *donor));
        }
        if let Some(fit) = &fits.dropped {
            let own = columns(layer, width, unit);
            changes.push(Change {
                unit: id(layer, unit),
                dropped: true,
                missing: less(fit_rows(&features, &fit.own, width), &features, width, &own),
            });
        }
    }
    for group in shared.values() {
        for &(unit, donor) in group {
            weights.put(pass, id(layer, unit), donor)?;
        }
        pass.replay(
            attention.input,
            attention.features(),
            &[(attention.input, input)],
        )?;
        let theirs = pass.f32s(attention.features())?.into_owned();
        for &(unit, _) in group {
            weights.put(pass, id(layer, unit), id(layer, unit))?;
            let Some((_, fit)) = fits.get(&id(layer, unit)).and_then(|f| f.shared.as_ref()) else {
                continue;
            };
            let own = columns(layer, width, unit);
            let mut rows = fit_rows(&features, &fit.own, width);
            let donated = cut(&theirs, width, &own);
            let more = fit_rows(&donated, &fit.donor, own.len());
            rows.iter_mut().zip(&more).for_each(|(to, v)| *to += v);
            changes.push(Change {
                unit: id(layer, unit),
                dropped: false,
                missing: less(rows, &features, width, &own),
            });
        }
    }
    pass.write_f32s(attention.features(), &features)?;
    Ok(changes)
}

/// Rows times the coefficients of a fit.
fn fit_rows(rows: &[f32], coefficients: &faer::Mat<f32>, width: usize) -> Vec<f32> {
    let (n, m) = (coefficients.nrows(), coefficients.ncols());
    let flat: Vec<f32> = (0..n)
        .flat_map(|i| (0..m).map(move |j| coefficients[(i, j)]))
        .collect();
    product(rows, &flat, width)
}

/// `rows` less the columns `own` of the features.
fn less(mut rows: Vec<f32>, features: &[f32], width: usize, own: &Range<usize>) -> Vec<f32> {
    rows.par_chunks_mut(own.len())
        .zip(features.par_chunks(width))
        .for_each(|(row, all)| {
            row.iter_mut()
                .zip(&all[own.clone()])
                .for_each(|(to, v)| *to -= v);
        });
    rows
}

/// What the rest of a pass needs to be computed again.
struct Replays<'a> {
    source: &'a ModelFile,
    attentions: &'a [Attention<'a>],
    junctions: &'a BTreeMap<u32, Junction>,
    outputs: &'a [usize],
    n_tokens: usize,
    end: usize,
}

/// What a change costs, in nats, that leaves no finite logits: it is taken last.
const WORST: f64 = 1e6;

/// How much smaller a change is made to tell its effect from that of rounding.
const FRACTION: f32 = 0.25;

/// The divergence that each change causes.
///
/// ggml rounds activations to 8 bits before it multiplies them with quantized
/// weights, so the smallest change makes all later layers round differently,
/// which alone diverges. A change's own divergence grows with its square, that
/// of the rounding does not grow: a smaller change tells how much that is, once
/// for each layer.
fn effects(
    replays: &Replays<'_>,
    pass: &mut Pass<'_>,
    changes: &[Change],
    progress: &dyn Fn(f64),
) -> Result<Vec<f64>, RepairError> {
    let reference = Reference::new(pass.f32s(replays.end)?.into_owned(), replays.outputs.len());
    let n_layers = replays.attentions.len() as f64;
    let cost = |change: &Change| {
        let later = |a: &&Attention<'_>| a.layer.layer >= change.unit.layer;
        1.0 + replays.attentions.iter().filter(later).count() as f64 / n_layers
    };
    let layers: BTreeSet<u32> = changes.iter().map(|c| c.unit.layer).collect();
    let all =
        changes.iter().map(cost).sum::<f64>() * (1.0 + layers.len() as f64 / changes.len() as f64);
    let mut done = 0.0;
    let mut rounding: BTreeMap<u32, f64> = BTreeMap::new();
    let mut matrix: Option<Matrix> = None;
    let mut result = Vec::with_capacity(changes.len());
    for change in changes {
        let layer = change.unit.layer;
        if matrix.as_ref().is_none_or(|m| m.layer != layer) {
            matrix = Some(replays.matrix(layer)?);
        }
        let matrix = matrix
            .as_ref()
            .ok_or_else(|| replays.missing(change.unit))?;
        let mut divergence = |fraction: f32| {
            replays.replay(pass, change, matrix, fraction)?;
            done += cost(change);
            progress((done / all).min(1.0));
            Ok::<_, RepairError>(reference.divergence(&pass.f32s(replays.end)?))
        };
        let whole = divergence(1.0)?;
        if !whole.is_finite() {
            result.push(WORST);
            continue;
        }
        let rounding = match rounding.get(&layer) {
            Some(&known) => known,
            None => {
                let found = constant_part(whole, divergence(FRACTION)?);
                *rounding.entry(layer).or_insert(found)
            }
        };
        result.push((whole - rounding).max(0.0));
    }
    Ok(result)
}

/// What is the same in a change's divergence and in that of the same change
/// made smaller by [`FRACTION`].
fn constant_part(whole: f64, small: f64) -> f64 {
    let square = f64::from(FRACTION).powi(2);
    let part = (small - square * whole) / (1.0 - square);
    // Without finite logits of the smaller one, nothing is known of it.
    if part.is_finite() { part.max(0.0) } else { 0.0 }
}

/// `attn_output` of a layer.
struct Matrix {
    layer: u32,
    width: usize,
    rows: Vec<f32>,
}

impl Replays<'_> {
    fn missing(&self, unit: UnitId) -> RepairError {
        RepairError::Internal(format!("{unit} is not there"))
    }

    fn attention(&self, layer: u32) -> Result<&Attention<'_>, RepairError> {
        let missing = || RepairError::Internal(format!("layer {layer} is not there"));
        let mut all = self.attentions.iter();
        all.find(|a| a.layer.layer == layer).ok_or_else(missing)
    }

    fn matrix(&self, layer: u32) -> Result<Matrix, RepairError> {
        let site = &self.attention(layer)?.output;
        let index = self.source.gguf.tensor_index(&site.name);
        let index =
            index.ok_or_else(|| RepairError::Internal(format!("{} is not there", site.name)))?;
        Ok(Matrix {
            layer,
            width: self.source.gguf.tensors()[index].row_elems() as usize,
            rows: dequantized(self.source, index)
                .map_err(|e| RepairError::cannot(site, e.into()))?,
        })
    }

    /// Computes the rest of the pass with `fraction` of what `change` takes away.
    fn replay(
        &self,
        pass: &mut Pass<'_>,
        change: &Change,
        matrix: &Matrix,
        fraction: f32,
    ) -> Result<(), RepairError> {
        let attention = self.attention(change.unit.layer)?;
        let junction = self.junctions.get(&change.unit.layer);
        let junction = junction.ok_or_else(|| self.missing(change.unit))?;
        let own = columns(attention.layer, matrix.width, change.unit.unit);
        let part = cut(&matrix.rows, matrix.width, &own);
        let mut lost = product(&change.missing, &part, own.len());
        let outputs = matrix.rows.len() / matrix.width;
        let scale = attention.scale() * fraction;
        lost.iter_mut().for_each(|v| *v *= scale);
        let values: Vec<(usize, Vec<f32>)> = junction
            .values
            .iter()
            .map(|(node, values)| {
                let mut values = values.clone();
                if *node == junction.node {
                    let rows = values.len() / outputs;
                    for (at, row) in values.chunks_mut(outputs).enumerate() {
                        let token = if rows == self.n_tokens {
                            at
                        } else {
                            self.outputs[at]
                        };
                        row.iter_mut()
                            .zip(&lost[token * outputs..(token + 1) * outputs])
                            .for_each(|(to, v)| *to += v);
                    }
                }
                (*node, values)
            })
            .collect();
        let values: Vec<(usize, &[f32])> = values
            .iter()
            .map(|(node, v)| (*node, v.as_slice()))
            .collect();
        pass.replay(junction.node, self.end, &values)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::choose::survey::Effect;

    #[test]
    fn what_does_not_grow_with_a_change_is_told_apart() {
        let (rounding, own) = (0.0025, 0.004);
        let of = |part: f64| rounding + own * part * part;
        let found = constant_part(of(1.0), of(f64::from(FRACTION)));
        assert!((found - rounding).abs() < 1e-12);
        assert_eq!(constant_part(0.004, 0.0001), 0.0);
    }

    #[test]
    fn what_is_not_measured_is_estimated_from_its_layer() {
        let effect = |loss, divergence, measured| {
            Some(Effect {
                loss,
                divergence,
                measured,
            })
        };
        let unit = |layer, unit, shared| Unit {
            layer,
            unit,
            donors: Vec::new(),
            shared,
            dropped: None,
        };
        let mut units = [
            unit(1, 0, effect(0.1, 0.3, true)),
            unit(1, 1, effect(0.2, 0.0, false)),
            unit(2, 0, effect(0.5, 0.0, false)),
        ];
        estimate(&mut units);
        let divergence = |i: usize| units[i].shared.unwrap().divergence;
        assert_eq!(divergence(0), 0.3);
        assert!((divergence(1) - 0.6).abs() < 1e-12);
        assert_eq!(divergence(2), 0.5);
    }

    #[test]
    fn every_layer_has_a_unit_that_is_measured() {
        let effect = |loss| {
            Some(Effect {
                loss,
                divergence: 0.0,
                measured: false,
            })
        };
        let units: Vec<Unit> = (0..600)
            .map(|i| Unit {
                layer: i / 2,
                unit: i % 2,
                donors: Vec::new(),
                shared: effect(f64::from(i)),
                dropped: None,
            })
            .collect();
        let measured = screen(&units);
        assert_eq!(measured.len(), 300);
        assert!((0..300).all(|layer| measured.contains(&UnitId { layer, unit: 0 })));
    }
}
