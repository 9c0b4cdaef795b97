//! One site after the other: what goes into a refit, and where its result goes.

use std::borrow::Cow;
use std::ops::Range;

use faer::Par;
use headshare_runtime::calibrate::Pass;

use super::error::RepairError;
use super::record::{Repaired, TensorRecord};
use super::refit::{self, Problem, Refit};
use super::sites::{Role, Site, Target};
use super::weights::dequantized;
use crate::convert::variant::{Heads, cut_columns, spread_columns};
use crate::input::ModelFile;
use crate::model::{AttentionMap, Part};
use crate::plan::Plan;

/// What every refit of one run needs.
pub(super) struct Run<'a> {
    pub source: &'a ModelFile,
    pub map: &'a AttentionMap,
    pub plan: &'a Plan,
    pub heads: &'a Heads<'a>,
    /// The tokens that pass through the last layer's end.
    pub picked: &'a [usize],
    /// The first token that ridges are chosen on.
    pub held_from: usize,
    pub n_tokens: usize,
    pub par: Par,
}

impl Run<'_> {
    /// Refits the matrix of `site`, `original` being the node of the original
    /// stream that its target is made of.
    pub fn refit(
        &self,
        site: &Site,
        pass: &Pass<'_>,
        original: Vec<f32>,
    ) -> Result<Refit, RepairError> {
        let index =
            self.source.gguf.tensor_index(&site.name).ok_or_else(|| {
                RepairError::Internal(format!("{} is not in the file", site.name))
            })?;
        let info = &self.source.gguf.tensors()[index];
        let p = info.row_elems() as usize;
        let n = (info.byte_len() / info.row_bytes()) as usize;
        let weights = dequantized(self.source, index).map_err(|e| site.cannot(e.into()))?;

        let rows = original.len() / n;
        let row_weights = refit::row_weights(&original, n);
        let inputs = pass.f32s(site.input)?;
        let inputs = self.rows(&inputs, p, rows)?;
        let mut targets = original;
        if let Target::Sum {
            residual, scale, ..
        } = site.target
        {
            let residual = pass.f32s(residual)?;
            let residual = self.rows(&residual, n, rows)?;
            for (target, x) in targets.iter_mut().zip(residual.iter()) {
                *target = (*target - x) / scale;
            }
        }
        if site.bias.is_some() {
            let name = site.name.replace(".weight", ".bias");
            let bias = self
                .source
                .gguf
                .tensor_index(&name)
                .ok_or_else(|| RepairError::Internal(format!("{name} is not in the file")))?;
            let bias = dequantized(self.source, bias).map_err(|e| site.cannot(e.into()))?;
            for row in targets.chunks_mut(n) {
                row.iter_mut().zip(&bias).for_each(|(y, b)| *y -= b);
            }
        }
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        let broken = [
            (&weights[..], "the weights of"),
            (&inputs[..], "the activations that go into"),
            (&targets[..], "the activations that should come out of"),
            (
                &row_weights[..],
                "the sizes of activations that come out of",
            ),
        ];
        if let Some((_, what)) = broken.into_iter().find(|(values, _)| !finite(values)) {
            return Err(RepairError::NotFinite {
                layer: site.layer,
                what: format!("{what} {}", site.name),
            });
        }
        let held = if rows == self.n_tokens {
            self.held_from
        } else {
            self.picked.partition_point(|&i| i < self.held_from)
        };
        let mut prior = weights.clone();
        for columns in self.foreign_columns(site, p) {
            for row in prior.chunks_mut(p) {
                row[columns.clone()].fill(0.0);
            }
        }
        // The columns of units that go are left out, of weights and inputs.
        let stored = self.source.bytes(self.source.gguf.data_range(info));
        let kept = self.kept_columns(site);
        let (inputs, weights, prior, stored, p) = match &kept {
            Some(kept) => (
                keep_columns(&inputs, p, kept).into(),
                keep_columns(&weights, p, kept),
                keep_columns(&prior, p, kept),
                cut_columns(info, stored, kept),
                kept.iter().map(|c| (c.end - c.start) as usize).sum(),
            ),
            None => (inputs, weights, prior, Cow::Borrowed(stored), p),
        };
        let problem = Problem {
            inputs: &inputs,
            targets: &targets,
            row_weights: &row_weights,
            held_from: held,
            weights: &weights,
            prior: &prior,
            stored: &stored,
            columns: p,
            ggml_type: info.ggml_type.id(),
        };
        refit::refit(&problem, self.par).map_err(|e| site.cannot(e))
    }

    /// Writes a refitted matrix into the pass.
    pub fn put(&self, site: &Site, fitted: &Refit, pass: &mut Pass<'_>) -> Result<(), RepairError> {
        let info = self.source.gguf.tensor(&site.name);
        match self.kept_columns(site).zip(info) {
            Some((kept, info)) => {
                let whole = spread_columns(info, &fitted.bytes, &kept);
                pass.write_weight(site.weight, 0, &whole)?;
            }
            None => pass.write_weight(site.weight, 0, &fitted.bytes)?,
        }
        Ok(())
    }

    /// The columns of the matrix, `p` wide, whose inputs another unit's values
    /// make up now: what they were made for does not come any more.
    fn foreign_columns(&self, site: &Site, p: usize) -> Vec<Range<usize>> {
        let layer = self.map.layer(site.layer);
        let Some(layer) = layer.filter(|_| site.role == Role::AttentionOutput) else {
            return Vec::new();
        };
        let width = p / layer.n_head_kv as usize;
        let of_layer = self.plan.shares().filter(|a| a.layer == site.layer);
        of_layer
            .filter(|a| a.parts.contains(&Part::V))
            .map(|a| a.unit as usize * width..(a.unit as usize + 1) * width)
            .collect()
    }

    /// The columns of the matrix that stay, where some go.
    fn kept_columns(&self, site: &Site) -> Option<Vec<Range<u64>>> {
        match site.role {
            Role::AttentionOutput => self.heads.kept_columns(site.layer),
            Role::FeedForwardDown => None,
        }
    }

    /// `wanted` rows of `width` elements: all, or those of the picked tokens.
    fn rows<'a>(
        &self,
        values: &'a [f32],
        width: usize,
        wanted: usize,
    ) -> Result<Cow<'a, [f32]>, RepairError> {
        let have = values.len() / width;
        if have == wanted {
            return Ok(values.into());
        }
        if have == self.n_tokens && wanted == self.picked.len() {
            let picked = self.picked.iter();
            let rows = picked.flat_map(|&i| &values[i * width..(i + 1) * width]);
            return Ok(rows.copied().collect::<Vec<f32>>().into());
        }
        Err(RepairError::Internal(format!(
            "{have} rows where {wanted} were expected"
        )))
    }

    pub fn note(&self, repaired: &mut Repaired, site: &Site, fitted: Refit) {
        repaired.record.tensors.push(TensorRecord {
            name: site.name.clone(),
            lambda: fitted.lambda,
            before: fitted.before,
            after: fitted.after,
        });
        // What stayed is the source's still, unless columns of it go.
        if let Some(index) = self.source.gguf.tensor_index(&site.name)
            && (fitted.lambda.is_some() || self.kept_columns(site).is_some())
        {
            repaired.tensors.insert(index, fitted.bytes);
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
