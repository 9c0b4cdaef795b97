//! What each unit's features lose when another unit's weights compute them.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use faer::{Mat, Par};
use headshare_runtime::calibrate::{Calibrator, CalibratorParams, Pass};
use rayon::prelude::*;

use super::pairs::{Fit, Layer};
use super::sites::{self, Attention};
use super::survey::{Donor, Effect, Unit};
use crate::engine::EngineError;
use crate::engine::Options;
use crate::engine::Windows;
use crate::engine::inverse_squares;
use crate::engine::normal::{GramSum, ProductSum, weighted};
use crate::engine::weights::dequantized;
use crate::input::ModelFile;
use crate::model::{AttentionLayer, AttentionMap};
use crate::model::{Part, UnitId};
use crate::repair::error::RepairError;

/// Where a head's features depend on whose place it takes (biases, ALiBi), a
/// donor is tried in its units' own places: so many donors of a layer.
const PLACES: usize = 8;

/// What [`compare`] found.
pub(super) struct Compared {
    /// Every unit with its donors; divergences are not known yet.
    pub units: Vec<Unit>,
    /// How each unit's features follow from its best donor's.
    pub fits: BTreeMap<UnitId, Fits>,
    /// What was left out.
    pub screened: Option<String>,
}

/// How a unit's features follow from others.
pub(super) struct Fits {
    /// From the best donor's, too.
    pub shared: Option<(UnitId, Fit)>,
    /// From the layer's other units alone.
    pub dropped: Option<Fit>,
}

/// Compares all units of `map` on `windows`.
pub(super) fn compare(
    source: &ModelFile,
    map: &AttentionMap,
    windows: &Windows,
    options: &Options,
    dropping: bool,
    progress: &dyn Fn(f64),
) -> Result<Compared, RepairError> {
    let params = CalibratorParams {
        windows: windows.count,
        window: windows.window,
        outputs: windows.count,
        n_threads: options.n_threads,
        stop: options.stop.clone(),
    };
    let mut calibrator = Calibrator::load(source.path(), &params)?;
    source.require_numbers().map_err(EngineError::from)?;
    let attentions = sites::find(&calibrator, map)?;
    let weights = Weights::of(source, map, &calibrator)?;
    let mut compared = Compared {
        units: Vec::new(),
        fits: BTreeMap::new(),
        screened: None,
    };
    let by_place = |a: &Attention<'_>| a.by_place && a.layer.n_head_kv as usize > PLACES;
    if attentions.iter().any(by_place) {
        compared.screened = Some(format!(
            "note: what heads compute depends on their place (biases, ALiBi, gates), so each unit is compared with {PLACES} units of each earlier layer"
        ));
    }
    let stops: Vec<usize> = attentions
        .iter()
        .flat_map(|a| [a.input, a.features()])
        .collect();
    let keep: Vec<usize> = attentions.iter().filter_map(Attention::residual).collect();
    let work: f64 = (0..attentions.len()).map(|i| i as f64 + 1.0).sum();
    let done = std::cell::Cell::new(0.0);
    let mut input = Vec::new();
    let window = windows.window as usize;
    let n_tokens = windows.tokens.len();
    let is_output = move |i: usize| i % window == window - 1;
    let mut at = 0;
    calibrator.run(
        &windows.tokens,
        &is_output,
        &stops,
        &keep,
        &mut |stop, pass| {
            if stop == attentions[at].input {
                return match pass.f32s(stop) {
                    Ok(values) => {
                        input = values.into_owned();
                        ControlFlow::Continue(())
                    }
                    Err(error) => ControlFlow::Break(Err(error.into())),
                };
            }
            let comparison = Comparison {
                source,
                map,
                weights: &weights,
                attention: &attentions[at],
                n_tokens,
                dropping,
                par: Par::rayon(rayon::current_num_threads()),
            };
            let step = || {
                done.set(done.get() + 1.0);
                progress(done.get() / work);
            };
            if let Err(error) = comparison.run(pass, &input, &mut compared, &step) {
                return ControlFlow::Break(Err(error));
            }
            at += 1;
            if at == attentions.len() {
                return ControlFlow::Break(Ok(()));
            }
            ControlFlow::Continue(())
        },
    )?;
    Ok(compared)
}

/// The tensors of q, k and v among the weights of the graph.
pub(super) struct Weights<'a> {
    source: &'a ModelFile,
    map: &'a AttentionMap,
    /// By index in the file.
    indices: BTreeMap<usize, usize>,
}

impl<'a> Weights<'a> {
    pub fn of(
        source: &'a ModelFile,
        map: &'a AttentionMap,
        calibrator: &Calibrator,
    ) -> Result<Self, RepairError> {
        let mut indices = BTreeMap::new();
        for layer in &map.layers {
            for part in Part::ALL {
                let tensor = layer.tensor(part).tensor;
                let name = &source.gguf.tensors()[tensor].name;
                let index = calibrator.graph().weight(name).ok_or_else(|| {
                    RepairError::Internal(format!("llama.cpp does not use {name}"))
                })?;
                indices.insert(tensor, index);
            }
        }
        Ok(Self {
            source,
            map,
            indices,
        })
    }

    /// Puts the weights of unit `from` into the place of unit `to`.
    pub fn put(&self, pass: &mut Pass<'_>, to: UnitId, from: UnitId) -> Result<(), RepairError> {
        for part in Part::ALL {
            let rows = |unit| {
                self.map
                    .block(unit, part)
                    .ok_or_else(|| RepairError::Internal(format!("no {part} of {unit}")))
            };
            let (to, from) = (rows(to)?, rows(from)?);
            let data = self
                .source
                .gguf
                .data_range(&self.source.gguf.tensors()[from.tensor]);
            let start = data.start + from.offset;
            pass.write_weight(
                self.indices[&to.tensor],
                to.offset as usize,
                self.source.bytes(start..start + from.len),
            )?;
        }
        Ok(())
    }
}

/// The features of each unit of a layer: columns of the input of `attn_output`.
pub(super) fn columns(layer: &AttentionLayer, features: usize, unit: u32) -> Range<usize> {
    let width = features / layer.n_head_kv as usize;
    let unit = unit as usize;
    unit * width..(unit + 1) * width
}

/// Columns `range` of `rows`, which are `width` wide.
pub(super) fn cut(rows: &[f32], width: usize, range: &Range<usize>) -> Vec<f32> {
    rows.par_chunks(width)
        .flat_map_iter(|row| row[range.clone()].iter().copied())
        .collect()
}

/// One layer against all earlier ones.
struct Comparison<'a> {
    source: &'a ModelFile,
    map: &'a AttentionMap,
    weights: &'a Weights<'a>,
    attention: &'a Attention<'a>,
    n_tokens: usize,
    dropping: bool,
    par: Par,
}

/// Units of an earlier layer in places of this one.
type Places = Vec<(u32, u32)>;

impl Comparison<'_> {
    fn run(
        &self,
        pass: &mut Pass<'_>,
        input: &[f32],
        compared: &mut Compared,
        step: &dyn Fn(),
    ) -> Result<(), RepairError> {
        let layer = self.attention.layer;
        let features = pass.f32s(self.attention.features())?.into_owned();
        let width = features.len() / self.n_tokens;
        let output = self.output_matrix()?;
        let outputs = output.len() / width;
        let row_weights = match self.attention.residual() {
            Some(residual) => {
                let residual = pass.f32s(residual)?;
                inverse_squares(&residual, residual.len() / self.n_tokens)
            }
            None => inverse_squares(&product(&features, &output, width), outputs),
        };
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if !finite(&features) || !finite(&row_weights) {
            return Err(self.not_finite("the activations that go into"));
        }
        if !finite(&output) {
            return Err(self.not_finite("the weights of"));
        }
        let z = weighted(&features, &row_weights);
        let mut gram = GramSum::new(width);
        gram.add(&z, self.par);
        let of_units = (0..layer.n_head_kv)
            .map(|unit| {
                let columns = columns(layer, width, unit);
                let own = Mat::from_fn(outputs, columns.len(), |i, j| {
                    f64::from(output[i * width + columns.start + j])
                });
                (columns, own)
            })
            .collect();
        let stats = Layer::new(&gram.finish(), of_units)
            .ok_or_else(|| self.not_finite("the activations that go into"))?;
        // Rows are weighted so that each token's stream counts as much as its
        // elements are many.
        let scale = f64::from(self.attention.scale()).powi(2);
        let size = (self.n_tokens * outputs) as f64;
        let loss = |cost: f64| cost * scale / size;

        let mut found: Vec<Vec<Donor>> = vec![Vec::new(); layer.n_head_kv as usize];
        let mut best: Vec<Option<(f64, UnitId, Fit)>> = vec![None; layer.n_head_kv as usize];
        for other in self.map.layers.iter().filter(|l| l.layer < layer.layer) {
            step();
            for places in self.places(other) {
                for &(to, from) in &places {
                    self.weights.put(pass, id(layer, to), id(other, from))?;
                }
                pass.replay(
                    self.attention.input,
                    self.attention.features(),
                    &[(self.attention.input, input)],
                )?;
                let theirs = pass.f32s(self.attention.features())?;
                if !finite(&theirs) {
                    continue;
                }
                let theirs = weighted(&theirs, &row_weights);
                let mut cross = ProductSum::new(width, width);
                cross.add(&z, &theirs, self.par);
                let cross = cross.finish();
                for &(to, from) in &places {
                    let range = columns(layer, width, to);
                    let mut own = GramSum::new(range.len());
                    own.add(&cut(&theirs, width, &range), self.par);
                    let donor = stats.donor(cross.subcols(range.start, range.len()), &own.finish());
                    let units = if self.attention.by_place {
                        to..to + 1
                    } else {
                        0..layer.n_head_kv
                    };
                    let costs: Vec<(u32, Option<f64>)> = units
                        .into_par_iter()
                        .map(|a| (a, stats.cost_of_sharing(a as usize, &donor)))
                        .collect();
                    for (a, cost) in costs {
                        let Some(cost) = cost.map(loss).filter(|c| c.is_finite()) else {
                            continue;
                        };
                        let unit = id(other, from);
                        found[a as usize].push(Donor {
                            layer: unit.layer,
                            unit: unit.unit,
                            loss: cost,
                        });
                        let best = &mut best[a as usize];
                        if best.as_ref().is_none_or(|(least, ..)| cost < *least)
                            && let Some(fit) = stats.fit_shared(a as usize, &donor)
                        {
                            *best = Some((cost, unit, fit));
                        }
                    }
                }
            }
        }
        step();
        for unit in 0..layer.n_head_kv {
            self.weights.put(pass, id(layer, unit), id(layer, unit))?;
        }
        pass.write_f32s(self.attention.features(), &features)?;

        for (a, (mut donors, best)) in found.into_iter().zip(best).enumerate() {
            donors.sort_by(|x, y| x.loss.total_cmp(&y.loss).then(x.id().cmp(&y.id())));
            let effect = |loss| Effect {
                loss,
                divergence: 0.0,
                measured: false,
            };
            let unit = id(layer, a as u32);
            compared.units.push(Unit {
                layer: unit.layer,
                unit: unit.unit,
                shared: donors.first().map(|d| effect(d.loss)),
                donors,
                dropped: self
                    .dropping
                    .then(|| loss(stats.cost_of_dropping(a)))
                    .filter(|loss| loss.is_finite())
                    .map(effect),
            });
            compared.fits.insert(
                unit,
                Fits {
                    shared: best.map(|(_, donor, fit)| (donor, fit)),
                    dropped: self.dropping.then(|| stats.fit_dropped(a)),
                },
            );
        }
        Ok(())
    }

    /// Which units of `other` to put where; nothing when their blocks do not
    /// fit.
    fn places(&self, other: &AttentionLayer) -> Vec<Places> {
        let layer = self.attention.layer;
        let fits = Part::ALL.iter().all(|&part| {
            self.map.block_kind(id(layer, 0), part) == self.map.block_kind(id(other, 0), part)
        });
        let (here, there) = (layer.n_head_kv, other.n_head_kv);
        if !fits || here == 0 || there == 0 {
            return Vec::new();
        }
        if self.attention.by_place {
            let shifts = there.min(PLACES as u32);
            return (0..shifts)
                .map(|shift| (0..here).map(|a| (a, (a + shift) % there)).collect())
                .collect();
        }
        (0..there)
            .step_by(here as usize)
            .map(|first| {
                (first..there.min(first + here))
                    .map(|u| (u - first, u))
                    .collect()
            })
            .collect()
    }

    fn output_matrix(&self) -> Result<Vec<f32>, RepairError> {
        let name = &self.attention.output.name;
        let index = self
            .source
            .gguf
            .tensor_index(name)
            .ok_or_else(|| RepairError::Internal(format!("{name} is not in the file")))?;
        dequantized(self.source, index)
            .map_err(|e| RepairError::cannot(&self.attention.output, e.into()))
    }

    fn not_finite(&self, what: &'static str) -> RepairError {
        let name = self.attention.output.name.clone();
        EngineError::NotFinite { what, name }.into()
    }
}

pub(super) fn id(layer: &AttentionLayer, unit: u32) -> UnitId {
    UnitId {
        layer: layer.layer,
        unit,
    }
}

/// Rows of `inputs` times the matrix whose rows are `weights`.
pub(super) fn product(inputs: &[f32], weights: &[f32], width: usize) -> Vec<f32> {
    let (rows, outputs) = (inputs.len() / width, weights.len() / width);
    let z = faer::MatRef::from_row_major_slice(inputs, rows, width);
    let o = faer::MatRef::from_row_major_slice(weights, outputs, width);
    let mut result = vec![0f32; rows * outputs];
    faer::linalg::matmul::matmul(
        faer::MatMut::from_row_major_slice_mut(&mut result, rows, outputs),
        faer::Accum::Replace,
        z,
        o.transpose(),
        1f32,
        Par::rayon(rayon::current_num_threads()),
    );
    result
}
