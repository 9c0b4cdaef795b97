//! Where a layer is repaired: the two matrices that write to the residual
//! stream, what goes into them, and what their output should add up to.
//!
//! Found in llama.cpp's graph by what is computed from what, so that one
//! search serves every architecture: from the product with `attn_output` (or
//! `ffn_down`) on, through biases and scalings, to the sum with the residual
//! stream, or to a norm in between.

use headshare_runtime::calibrate::{Graph, Source};

use super::error::RepairError;
use crate::quantize::QuantizeError;

/// One of the two matrices of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `attn_output`.
    AttentionOutput,
    /// `ffn_down`.
    FeedForwardDown,
}

impl Role {
    /// Both, in the order in which a layer computes them.
    pub const ALL: [Self; 2] = [Self::AttentionOutput, Self::FeedForwardDown];

    /// The name of the matrix in `layer`.
    pub fn tensor_name(self, layer: u32) -> String {
        let stem = match self {
            Self::AttentionOutput => "attn_output",
            Self::FeedForwardDown => "ffn_down",
        };
        format!("blk.{layer}.{stem}.weight")
    }
}

/// What the output of the matrix is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The residual stream after the sum: node `sum` of the original, less node
    /// `residual` of the changed stream, divided by `scale`.
    Sum {
        /// The sum.
        sum: usize,
        /// What the output is added to.
        residual: usize,
        /// What the output is multiplied by before.
        scale: f32,
    },
    /// The original's own output, this node: a norm follows.
    Output(usize),
}

/// A matrix to repair.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The layer.
    pub layer: u32,
    /// Which of the two.
    pub role: Role,
    /// The name of the matrix.
    pub name: String,
    /// It among the graph's weights.
    pub weight: usize,
    /// The node that is its input.
    pub input: usize,
    /// What is added to its output, among the graph's weights.
    pub bias: Option<usize>,
    /// What it is held against.
    pub target: Target,
}

impl Site {
    pub(crate) fn cannot(&self, error: QuantizeError) -> RepairError {
        RepairError::Quantize {
            name: self.name.clone(),
            error,
        }
    }

    /// The node of the original stream that the target is made of.
    pub fn original(&self) -> usize {
        match self.target {
            Target::Sum { sum, .. } => sum,
            Target::Output(node) => node,
        }
    }
}

/// Finds the site of `role` in `layer`; `None` when the graph has no such
/// matrix (or uses it in products of experts).
///
/// # Errors
/// When what follows the product is not what a sequential layer does.
pub fn find(graph: &Graph, layer: u32, role: Role) -> Result<Option<Site>, String> {
    let name = role.tensor_name(layer);
    let Some(weight) = graph.weight(&name) else {
        return Ok(None);
    };
    let products: Vec<usize> = graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.sources.first() == Some(&Source::Weight(weight)))
        .map(|(at, _)| at)
        .collect();
    let [product] = products[..] else {
        return Err(format!("{name} is used {} times", products.len()));
    };
    let (Some(&Source::Node(input)), "MUL_MAT") =
        (graph.nodes[product].sources.get(1), graph.nodes[product].op)
    else {
        return Ok(None);
    };
    let (bias, target) = follow(graph, product, input)
        .map_err(|what| format!("{what} follows {name}, which repair knows nothing about"))?;
    Ok(Some(Site {
        layer,
        role,
        name,
        weight,
        input,
        bias,
        target,
    }))
}

/// What becomes of the product: its bias and target.
fn follow(graph: &Graph, product: usize, input: usize) -> Result<(Option<usize>, Target), String> {
    let mut bias = None;
    let mut scale = 1.0;
    let mut at = product;
    let mut whole = product;
    loop {
        let users: Vec<usize> = graph.users(at).collect();
        let [next] = users[..] else {
            return Err(format!("a branch into {}", users.len()));
        };
        let node = &graph.nodes[next];
        let other = node
            .sources
            .iter()
            .find(|&&source| source != Source::Node(at));
        match (node.op, other) {
            ("ADD", Some(&Source::Weight(weight))) if bias.is_none() && scale == 1.0 => {
                bias = Some(weight);
                whole = next;
            }
            ("ADD", Some(&Source::Node(residual))) => {
                let residual = before(graph, residual, input);
                return Ok((
                    bias,
                    Target::Sum {
                        sum: next,
                        residual,
                        scale,
                    },
                ));
            }
            ("SCALE", _) if let Some(factor) = node.scale.filter(|f| *f != 0.0) => {
                scale *= factor;
            }
            ("RMS_NORM" | "NORM", _) if scale == 1.0 => {
                return Ok((bias, Target::Output(whole)));
            }
            ("GET_ROWS" | "RESHAPE" | "VIEW" | "CONT", _) => {}
            (op, _) => return Err(format!("{op} ({})", node.name)),
        }
        at = next;
    }
}

/// The node to read `residual` from when `input` is computed: in the last
/// layer rows are picked from it, and that may come later.
fn before(graph: &Graph, residual: usize, input: usize) -> usize {
    match (
        graph.nodes[residual].op,
        graph.nodes[residual].sources.first(),
    ) {
        ("GET_ROWS", Some(&Source::Node(all))) if residual > input => all,
        _ => residual,
    }
}
