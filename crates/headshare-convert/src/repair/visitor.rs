//! Repair as a visitor of the engine: what goes into a refit, and what of it is
//! kept.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use faer::Par;
use headshare_runtime::quants;

use super::error::RepairError;
use super::record::{Repaired, TensorRecord};
use super::refit::{self, Problem, Refit};
use crate::convert::variant::{Heads, Variant, cut_columns, spread_columns};
use crate::engine::normal::silent_columns;
use crate::engine::{EngineError, Role, Seen, Site, Target, Visitor, Wants};
use crate::model::{AttentionMap, Part};
use crate::plan::Plan;

/// Refits the matrices that write to the residual stream.
pub(crate) struct Refitter<'a> {
    /// The changed model.
    pub variant: &'a Variant<'a>,
    /// Where its heads are.
    pub map: &'a AttentionMap,
    /// Which of its units use others'.
    pub plan: &'a Plan,
    /// The units that are dropped but still in the stream, with nothing behind them.
    pub heads: &'a Heads<'a>,
    /// The layers from the first change on.
    pub layers: Range<u32>,
    /// Those that have no heads left.
    pub empty: Vec<u32>,
    /// The matrices that stay as they are.
    pub stay: &'a BTreeSet<String>,
    pub par: Par,
    /// What came of it.
    pub repaired: Repaired,
}

impl Visitor<RepairError> for Refitter<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, RepairError> {
        let in_layers = |layer: u32| self.layers.contains(&layer);
        let Some(layer) = site.layer.filter(|&layer| in_layers(layer)) else {
            return Ok(Wants::Nothing);
        };
        if self.stay.contains(&site.name) {
            return Ok(Wants::Nothing);
        }
        match (site.role, &site.target) {
            (Role::AttentionOutput | Role::Down, Target::NoPlain { why, .. }) => {
                Err(RepairError::Unsupported {
                    architecture: self.map.architecture.name.to_owned(),
                    why: format!("{why}, which repair knows nothing about"),
                })
            }
            (Role::AttentionOutput, _) if self.empty.contains(&layer) => Ok(Wants::Nothing),
            (Role::AttentionOutput | Role::Down, _) => Ok(Wants::Fit),
            _ => Ok(Wants::Nothing),
        }
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, RepairError> {
        let fitted = self.refit(site, seen)?;
        let info = self.variant.gguf().tensor(&site.name);
        let bytes = match self.kept_columns(site).zip(info) {
            Some((kept, info)) => spread_columns(info, &fitted.bytes, &kept),
            None => fitted.bytes.clone(),
        };
        self.note(site, fitted);
        Ok(Some(bytes))
    }
}

impl Refitter<'_> {
    fn refit(&self, site: &Site, seen: &Seen<'_>) -> Result<Refit, RepairError> {
        let index = self.index(site)?;
        let info = &self.variant.gguf().tensors()[index];
        let p = site.columns;
        let cannot = |error| RepairError::cannot(site, error);
        // What the source has, and what is left of it.
        let made_of = self.variant.source_weights(index);
        let made_of = made_of.map_err(|e| cannot(e.into()))?;
        let stored = (self.variant.tensor_data(index))
            .map_err(|e| RepairError::Internal(format!("{}: {e}", site.name)))?;
        let mut weights = vec![0f32; made_of.len()];
        quants::dequantize_row(info.ggml_type.id(), &stored, &mut weights)
            .map_err(|e| cannot(e.into()))?;
        if !weights.iter().all(|v| v.is_finite()) {
            let name = site.name.clone();
            let what = "the weights of";
            return Err(EngineError::NotFinite { what, name }.into());
        }
        // A unit that does nothing is not to come back.
        let silent = silent_columns(&made_of, p);
        let mut prior = made_of;
        for columns in self.foreign_columns(site, p) {
            for row in prior.chunks_mut(p) {
                row[columns.clone()].fill(0.0);
            }
        }
        // The columns of units that are dropped are left out, of weights and inputs.
        let (sums, weights, prior, stored, p) = match &self.kept_columns(site) {
            Some(kept) => {
                let inputs = keep_columns(seen.inputs(), p, kept);
                let narrow = kept.iter().map(|c| (c.end - c.start) as usize).sum();
                (
                    seen.sums_of(&inputs, narrow),
                    keep_columns(&weights, p, kept),
                    keep_columns(&prior, p, kept),
                    Cow::Owned(cut_columns(info, &stored, kept).into_owned()),
                    narrow,
                )
            }
            None => (seen.sums().without(&silent), weights, prior, stored, p),
        };
        let problem = Problem {
            sums: &sums,
            weights: &weights,
            prior: &prior,
            stored: &stored,
            columns: p,
            ggml_type: info.ggml_type.id(),
        };
        refit::refit(&problem, self.par).map_err(cannot)
    }

    /// The columns of the matrix, `p` wide, whose inputs another unit's values
    /// make up now: what they were made for does not come any more.
    fn foreign_columns(&self, site: &Site, p: usize) -> Vec<Range<usize>> {
        let layer = site.layer.and_then(|layer| self.map.layer(layer));
        let Some(layer) = layer.filter(|_| site.role == Role::AttentionOutput) else {
            return Vec::new();
        };
        let width = p / layer.n_head_kv as usize;
        let of_layer = self.plan.shares().filter(|a| a.layer == layer.layer);
        of_layer
            .filter(|a| a.parts.contains(&Part::V))
            .map(|a| a.unit as usize * width..(a.unit as usize + 1) * width)
            .collect()
    }

    /// The columns of the matrix that stay, where some go.
    fn kept_columns(&self, site: &Site) -> Option<Vec<Range<u64>>> {
        match site.role {
            Role::AttentionOutput => self.heads.kept_columns(site.layer?),
            _ => None,
        }
    }

    fn index(&self, site: &Site) -> Result<usize, RepairError> {
        let index = self.variant.gguf().tensor_index(&site.name);
        index.ok_or_else(|| RepairError::Internal(format!("{} is not in the model", site.name)))
    }

    fn note(&mut self, site: &Site, fitted: Refit) {
        self.repaired.record.tensors.push(TensorRecord {
            name: site.name.clone(),
            lambda: fitted.lambda,
            before: fitted.before,
            after: fitted.after,
        });
        // What stayed is the source's still, unless columns of it go.
        if fitted.lambda.is_some() || self.kept_columns(site).is_some() {
            let tensors = &mut self.repaired.tensors;
            tensors.insert(site.name.clone(), fitted.bytes);
        }
    }
}

/// Some columns of `rows`, which are `width` wide.
fn keep_columns(rows: &[f32], width: usize, columns: &[Range<u64>]) -> Vec<f32> {
    rows.chunks(width)
        .flat_map(|row| {
            columns
                .iter()
                .flat_map(|c| &row[c.start as usize..c.end as usize])
        })
        .copied()
        .collect()
}
