//! Feed-forward layers that keep some of their channels: rows of `ffn_gate` and
//! `ffn_up`, columns of `ffn_down`.
//!
//! Where all layers keep equally many, the architecture stays; where they
//! differ, llama.cpp must have a number for each layer, as `deci` does.

use std::collections::BTreeMap;
use std::ops::Range;

use headshare_format::{Gguf, TensorInfo};

use super::deci::{self, DECI, LLAMA};
use super::shapes::Shapes;
use crate::plan::{Edit, Plan, PlanError};

/// The channels that stay, by layer.
#[derive(Debug, Default)]
pub(super) struct Channels {
    kept: BTreeMap<u32, Vec<Range<u64>>>,
}

/// The channels of all layers, where some go.
pub(super) enum Lengths {
    /// All layers have so many.
    Same(u32),
    /// A number for each layer.
    Each(Vec<u32>),
}

impl Channels {
    /// Those of `plan`, whose source is `gguf`; `stored` says which tensors get
    /// another type.
    ///
    /// # Errors
    /// When an edit names a layer or channels that are not there, or that
    /// cannot go.
    pub fn of(plan: &Plan, gguf: &Gguf, stored: &dyn Fn(&str) -> bool) -> Result<Self, PlanError> {
        let mut kept = BTreeMap::new();
        for (i, edit) in plan.edits.iter().enumerate() {
            let Edit::Narrow(narrow) = edit else {
                continue;
            };
            let field = |name: &str, problem: String| {
                Err(PlanError::field(plan.field_of(i, name), problem))
            };
            let layer = narrow.layer;
            let down = match feed_forward(gguf, layer) {
                Ok(down) => down,
                Err(why) => return field("layer", why),
            };
            let all = down.row_elems();
            let mut end = 0;
            for range in narrow.kept() {
                if range.start < end || range.end <= range.start {
                    return field(
                        "channels",
                        "must be ascending ranges, each not empty".into(),
                    );
                }
                end = range.end;
            }
            if end == 0 {
                return field(
                    "channels",
                    "must not be empty: llama.cpp leaves the whole layer out then, its attention, too"
                        .into(),
                );
            }
            if end > all {
                return field("channels", format!("{end} is beyond the layer's {all}"));
            }
            let block = down.ggml_type.block_elems();
            let cuts = narrow.channels.iter().flatten();
            if let Some(cut) = cuts.into_iter().find(|&&cut| cut % block != 0)
                && !stored(&down.name)
            {
                return field(
                    "channels",
                    format!(
                        "{cut} is within a block: rows of {} are blocks of {block}; a store of it says at which type they are made anew",
                        down.name
                    ),
                );
            }
            if kept.insert(layer, narrow.kept().collect()).is_some() {
                return field("layer", format!("layer {layer} is narrowed twice"));
            }
        }
        Ok(Self { kept })
    }

    /// How many channels each of the layers of `gguf` has, where some go.
    ///
    /// # Errors
    /// When llama.cpp cannot load such a model.
    pub fn lengths(&self, gguf: &Gguf, becomes_deci: bool) -> Result<Option<Lengths>, String> {
        if self.kept.is_empty() {
            return Ok(None);
        }
        let name = gguf.architecture().ok().flatten().unwrap_or("unknown");
        let blocks = gguf.u64_value(&format!("{name}.block_count"));
        let blocks = blocks.ok().flatten().unwrap_or(0) as usize;
        let mut lengths =
            deci::feed_forward_lengths(gguf, name, blocks).map_err(|e| e.to_string())?;
        for (&layer, kept) in &self.kept {
            let n = kept.iter().map(|r| r.end - r.start).sum::<u64>() as u32;
            let has = feed_forward(gguf, layer)?.row_elems();
            if let Some(length) = lengths.get_mut(layer as usize) {
                if u64::from(*length) != has {
                    return Err(format!(
                        "layer {layer} has {has} feed-forward channels, where the model says {length}"
                    ));
                }
                *length = n;
            }
        }
        let first = lengths.first().copied().unwrap_or(0);
        let same = lengths.iter().all(|&n| n == first);
        let by_layer = becomes_deci || name == DECI;
        if same && !by_layer {
            return Ok(Some(Lengths::Same(first)));
        }
        if !by_layer && name != LLAMA {
            return Err(format!(
                "llama.cpp takes one number of feed-forward channels for all layers of {name}: let each layer keep as many"
            ));
        }
        if !by_layer {
            deci::check(gguf, "layers can differ").map_err(|why| why.to_string())?;
        }
        Ok(Some(Lengths::Each(lengths)))
    }

    /// Adds what goes to `shapes`.
    pub fn shape(&self, shapes: &mut Shapes<'_>) {
        for (layer, kept) in &self.kept {
            let name = |stem: &str, kind: &str| format!("blk.{layer}.{stem}.{kind}");
            for stem in ["ffn_gate", "ffn_up"] {
                for kind in ["weight", "bias"] {
                    shapes.keep_rows(&name(stem, kind), kept.iter().cloned());
                }
            }
            shapes.keep_columns(&name("ffn_down", "weight"), kept.clone());
        }
    }
}

/// The `ffn_down` of a layer whose channels can go.
fn feed_forward(gguf: &Gguf, layer: u32) -> Result<&TensorInfo, String> {
    let tensor = |stem: &str| gguf.tensor(&format!("blk.{layer}.{stem}.weight"));
    let Some(down) = tensor("ffn_down").filter(|down| down.dims.len() == 2) else {
        return Err(format!(
            "layer {layer} has no plain ffn_down (there is no such layer, or it has experts)"
        ));
    };
    let Some(up) = tensor("ffn_up") else {
        return Err(format!("layer {layer} has no ffn_up"));
    };
    for rows in [Some(up), tensor("ffn_gate")].into_iter().flatten() {
        if rows.rows() != down.row_elems() {
            return Err(format!(
                "{} has {} rows for {} channels: gate and up in one tensor cannot be narrowed",
                rows.name,
                rows.rows(),
                down.row_elems()
            ));
        }
    }
    // Such as BitNet's norm in front of ffn_down, and the scales of MPT's activation.
    let prefix = format!("blk.{layer}.ffn_");
    let is_cut_or_norm = |rest: &str| {
        let stem = rest.split('.').next().unwrap_or(rest);
        ["gate", "up", "down", "norm"].contains(&stem)
    };
    let as_wide = gguf.tensors().iter().find(|info| {
        let rest = info.name.strip_prefix(&prefix);
        rest.is_some_and(|rest| !is_cut_or_norm(rest)) && info.dims.contains(&down.row_elems())
    });
    match as_wide {
        Some(other) => Err(format!(
            "{} has as many elements as there are channels: no rule says what goes of it",
            other.name
        )),
        None => Ok(down),
    }
}
