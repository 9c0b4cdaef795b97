//! Where a layer's attention begins and ends in llama.cpp's graph.

use std::ops::RangeInclusive;

use headshare_runtime::calibrate::{Calibrator, Graph, Source, Weight};

use crate::engine::{Role, Site, Target, sites};
use crate::model::{AttentionLayer, AttentionMap};
use crate::repair::error::RepairError;

/// The attention of a layer.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    pub layer: &'a AttentionLayer,
    /// The node that goes into q, k and v.
    pub input: usize,
    /// Whether a head's features depend on its place among the heads, not on
    /// its weights alone.
    pub by_place: bool,
    /// `attn_output`, whose input are the features.
    pub output: Site,
}

impl Attention<'_> {
    /// The node that holds the features.
    pub fn features(&self) -> usize {
        self.output.input
    }

    /// The residual stream that the layer's output is added to, as far as it
    /// can be read when the features are there.
    pub fn residual(&self) -> Option<usize> {
        match self.output.target {
            Target::Sum { residual, .. } => Some(residual),
            Target::Output(_) | Target::NoPlain { .. } => None,
        }
    }

    /// What the output is multiplied by before it is added.
    pub fn scale(&self) -> f32 {
        match self.output.target {
            Target::Sum { scale, .. } => scale,
            Target::Output(_) | Target::NoPlain { .. } => 1.0,
        }
    }
}

/// The attention of every layer that has one.
pub(super) fn find<'a>(
    calibrator: &Calibrator,
    map: &'a AttentionMap,
) -> Result<Vec<Attention<'a>>, RepairError> {
    let unsupported = |why: String| RepairError::Unsupported {
        architecture: map.architecture.name.to_owned(),
        why: format!("{why} (--choose match does not need it)"),
    };
    let graph = calibrator.graph();
    let all = sites::find(graph, Some(map.architecture.residual));
    map.layers
        .iter()
        .map(|layer| {
            let is_output =
                |s: &&Site| s.layer == Some(layer.layer) && s.role == Role::AttentionOutput;
            let output = all.iter().find(is_output).ok_or_else(|| {
                unsupported(format!("layer {} has no plain attn_output", layer.layer))
            })?;
            if let Target::NoPlain { why, .. } = &output.target {
                return Err(unsupported(format!(
                    "{why}, which repair knows nothing about"
                )));
            }
            let input = input(graph, layer.layer, output.input).map_err(unsupported)?;
            Ok(Attention {
                layer,
                input,
                by_place: depends_on_place(graph, layer, input + 1..=output.input),
                output: output.clone(),
            })
        })
        .collect()
}

/// The one node that q, k and v of `layer` are computed from.
fn input(graph: &Graph, layer: u32, features: usize) -> Result<usize, String> {
    let mut input = None;
    for stem in ["attn_q", "attn_k", "attn_v", "attn_qkv"] {
        let Some(weight) = graph.weight(&format!("blk.{layer}.{stem}.weight")) else {
            continue;
        };
        for node in &graph.nodes {
            if node.sources.first() != Some(&Source::Weight(weight)) {
                continue;
            }
            match node.sources.get(1) {
                Some(&Source::Node(at)) if input.is_none_or(|input| input == at) => {
                    input = Some(at);
                }
                _ => return Err(format!("q, k and v of layer {layer} have no common input")),
            }
        }
    }
    input
        .filter(|&input| input < features)
        .ok_or_else(|| format!("layer {layer} has no attention that could be computed again"))
}

/// Whether what the heads of `layer` compute in `stretch` differs by more than
/// their q, k and v: by ALiBi's slopes, or by another weight (bias, sink, gate)
/// that has parts for single heads.
fn depends_on_place(graph: &Graph, layer: &AttentionLayer, stretch: RangeInclusive<usize>) -> bool {
    let of_all_heads = |weight: &Weight| {
        let name = &weight.name;
        let matrices = ["attn_q", "attn_k", "attn_v", "attn_qkv"];
        let is_matrix = |stem: &&str| *name == format!("blk.{}.{stem}.weight", layer.layer);
        let elements: u64 = weight.dims.iter().product();
        let one_head = [layer.key_length, layer.value_length].contains(&elements);
        matrices.iter().any(is_matrix)
            || name.contains("rope")
            || (name.ends_with("_norm.weight") && one_head)
    };
    graph.nodes[stretch].iter().any(|node| {
        let mut sources = node.sources.iter();
        node.alibi
            || sources.any(|source| match *source {
                Source::Weight(at) => !of_all_heads(&graph.weights[at]),
                Source::Node(_) | Source::Input => false,
            })
    })
}

/// The nodes up to `last` that nodes after it are computed from.
pub(super) fn crossing(graph: &Graph, last: usize) -> Vec<usize> {
    let mut found: Vec<usize> = graph.nodes[last + 1..]
        .iter()
        .flat_map(|node| &node.sources)
        .filter_map(|source| match *source {
            Source::Node(at) if at <= last => Some(at),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use headshare_runtime::calibrate::CalibratorParams;
    use headshare_testmodels::ModelSpec;

    use super::*;
    use crate::convert::attention_map;
    use crate::input::ModelFile;

    #[test]
    fn biases_and_alibi_tie_features_to_a_place() {
        let folder = tempfile::tempdir().unwrap();
        for (preset, expected) in [
            ("tiny-llama", false),
            ("tiny-gqa", false),
            ("tiny-moe", false),
            // Norms that all heads have in common.
            ("tiny-qwen3", false),
            ("tiny-gemma3", false),
            ("tiny-phi3", false),
            ("tiny-qwen2", true),
            ("tiny-gpt2", true),
            ("tiny-refact", true),
        ] {
            let path = folder.path().join(preset);
            ModelSpec::preset(preset).unwrap().write(&path).unwrap();
            let source = ModelFile::open_plain(&path).unwrap();
            let map = attention_map(&source).unwrap();
            let params = CalibratorParams {
                windows: 1,
                window: 8,
                outputs: 8,
                n_threads: Some(1),
                stop: Arc::default(),
            };
            let calibrator = Calibrator::load(&path, &params).unwrap();
            for attention in find(&calibrator, &map).unwrap() {
                let layer = attention.layer.layer;
                assert_eq!(attention.by_place, expected, "{preset}, layer {layer}");
            }
        }
    }
}
