//! Units that stay where they are and add nothing: zeros in the place of their columns of
//! `attn_output`.
//!
//! llama.cpp runs that in any architecture, where only some can do without the units.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use headshare_format::Gguf;

use super::shapes::Shapes;
use crate::model::AttentionMap;
use crate::plan::{Edit, Plan, PlanError};

/// The columns that are silenced, by `attn_output`.
#[derive(Debug, Default)]
pub(super) struct Silent {
    columns: BTreeMap<String, Vec<Range<u64>>>,
}

impl Silent {
    /// Those of `plan`, whose source is `gguf` with heads where `map` says.
    ///
    /// # Errors
    /// When there is no such unit, or its columns cannot be told; names the edit.
    pub fn of(plan: &Plan, gguf: &Gguf, map: &AttentionMap) -> Result<Self, PlanError> {
        let mut units: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (i, edit) in plan.edits.iter().enumerate() {
            let Edit::Silence(unit) = edit else { continue };
            let layer = map.layer(unit.layer);
            let fits = |name: &str| {
                let layer = layer.filter(|layer| unit.unit < layer.n_head_kv);
                let layer = layer.ok_or_else(|| format!("the model has no {}", unit.id()))?;
                let info = gguf.tensor(name);
                let info = info.ok_or_else(|| format!("the model has no {name}"))?;
                (layer.check_output(info)).map_err(|problem| format!("{name} {problem}"))
            };
            fits(&output_name(unit.layer))
                .map_err(|problem| PlanError::field(plan.field_of(i, "unit"), problem))?;
            units.entry(unit.layer).or_default().insert(unit.unit);
        }
        let columns = units.into_iter().map(|(layer, units)| {
            let of = map.layer(layer);
            let ranges = (units.into_iter()).filter_map(|unit| Some(of?.output_columns(unit)));
            (output_name(layer), merged(ranges))
        });
        Ok(Self {
            columns: columns.collect(),
        })
    }

    /// Adds them to `shapes`.
    pub fn shape(self, shapes: &mut Shapes<'_>) {
        for (name, columns) in self.columns {
            shapes.zero_columns(&name, columns);
        }
    }
}

fn output_name(layer: u32) -> String {
    format!("blk.{layer}.attn_output.weight")
}

/// Ascending ranges, each neighbour joined.
fn merged(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}
