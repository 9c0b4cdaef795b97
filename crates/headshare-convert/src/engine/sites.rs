//! The matrices that llama.cpp multiplies by, in the order in which it does:
//! what goes into each, and what its output is held against.
//!
//! Found in llama.cpp's graph by what is computed from what, so that one
//! search serves every architecture. The *role* of a matrix, which its name
//! tells, decides its target: one that writes to the residual stream is
//! followed from the product on, through biases and scalings, to the sum with
//! the stream, or to a norm in between; any other aims at what it gave.

use headshare_runtime::calibrate::{Graph, Source};

use super::role::Role;
use crate::model::Residual;

/// What the output of a matrix is held against.
#[derive(Debug, Clone, PartialEq)]
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
    /// The original's own output with its bias, this node: a norm follows, or
    /// the matrix does not write to the residual stream.
    Output(usize),
    /// It writes to the residual stream in a way that nothing is derived for,
    /// which the words say. What it gave on the original's inputs, this node,
    /// stands in.
    NoPlain {
        /// Why.
        why: String,
        /// The product.
        output: usize,
    },
}

impl Target {
    /// The node of the original stream that it is made of.
    pub fn node(&self) -> usize {
        match *self {
            Self::Sum { sum, .. } => sum,
            Self::Output(node) | Self::NoPlain { output: node, .. } => node,
        }
    }
}

/// A matrix that is multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The layer, if it belongs to one.
    pub layer: Option<u32>,
    /// What it is for.
    pub role: Role,
    /// The name of the matrix.
    pub name: String,
    /// It among the graph's weights.
    pub weight: usize,
    /// Its inputs.
    pub columns: usize,
    /// Its outputs.
    pub rows: usize,
    /// The node that is its input.
    pub input: usize,
    /// The node that is the product.
    pub product: usize,
    /// Where each token goes to some of several matrices.
    pub experts: Option<Experts>,
    /// What is added to its output before the target, among the graph's weights.
    pub bias: Option<usize>,
    /// What it is held against.
    pub target: Target,
}

/// Several matrices in one tensor, of which each token passes through some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many they are.
    pub count: usize,
    /// The node that holds which of them each token goes to.
    pub chosen: usize,
}

/// A table of rows that are looked up by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// It among the graph's weights.
    pub weight: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Its rows: tokens of the vocabulary.
    pub rows: usize,
    /// Whether it is the output head, too: then it is visited once more as such,
    /// when the pass has used it as a table already.
    pub tied: bool,
}

/// The tables of `graph`, whose sites are `sites`.
pub fn tables(graph: &Graph, sites: &[Site]) -> Vec<Table> {
    let looked_up = graph.nodes.iter().filter_map(|node| {
        let (&Source::Weight(weight), Source::Input) =
            (node.sources.first()?, node.sources.get(1)?)
        else {
            return None;
        };
        (node.op == "GET_ROWS").then_some(weight)
    });
    let mut tables: Vec<Table> = looked_up
        .map(|weight| (weight, &graph.weights[weight]))
        // Others are looked up by position or by kind.
        .filter(|(_, table)| table.name.contains("token_embd."))
        .map(|(weight, table)| Table {
            name: table.name.clone(),
            weight,
            columns: table.dims[0] as usize,
            rows: table.dims[1] as usize,
            tied: sites.iter().any(|site| site.name == table.name),
        })
        .collect();
    tables.dedup_by_key(|table| table.weight);
    tables
}

/// All sites of `graph`, in the order in which their products are computed;
/// `residual` is how the architecture adds up its branches, where that is known.
pub fn find(graph: &Graph, residual: Option<Residual>) -> Vec<Site> {
    let mut sites: Vec<Site> = (0..graph.nodes.len())
        .filter_map(|product| site(graph, product, residual))
        .collect();
    let of_weight = |weight| {
        let uses = |source: Option<&Source>| source == Some(&Source::Weight(weight));
        let products = graph.nodes.iter().filter(|n| n.op.starts_with("MUL_MAT"));
        products.filter(|n| uses(n.sources.first())).count()
    };
    let down: Vec<(Option<u32>, usize)> = (sites.iter())
        .filter(|site| site.role == Role::Down)
        .map(|site| (site.layer, site.columns))
        .collect();
    for site in &mut sites {
        if site.role == Role::Up && down.contains(&(site.layer, site.rows / 2)) {
            site.role = Role::GateUp;
        }
        let uses = of_weight(site.weight);
        if uses > 1 {
            site.bias = None;
            site.target = Target::NoPlain {
                why: format!("{} is used {uses} times", site.name),
                output: site.product,
            };
        }
    }
    sites
}

/// The site whose product is node `product`, if it is one.
fn site(graph: &Graph, product: usize, residual: Option<Residual>) -> Option<Site> {
    let node = &graph.nodes[product];
    let (&Source::Weight(weight), &Source::Node(input)) =
        (node.sources.first()?, node.sources.get(1)?)
    else {
        return None;
    };
    let matrix = &graph.weights[weight];
    let experts = match (node.op, node.sources.get(2)) {
        // One for each head, as of multi-head latent attention: not rows by one matrix.
        ("MUL_MAT", _) if matrix.dims[2] > 1 => return None,
        ("MUL_MAT", _) => None,
        ("MUL_MAT_ID", Some(&Source::Node(chosen))) => Some(Experts {
            count: matrix.dims[2] as usize,
            chosen,
        }),
        _ => return None,
    };
    let (layer, role) = Role::of(&matrix.name);
    let followed = match residual {
        _ if !role.writes_to_stream() => Ok((None, Target::Output(product))),
        _ if experts.is_some() => Err(format!("a sum over experts follows {}", matrix.name)),
        None | Some(Residual::Sequential) => follow(graph, product, input),
        Some(Residual::Parallel) => Err(format!(
            "a sum with the other branch of the layer follows {}",
            matrix.name
        )),
        Some(Residual::Varies) => Err(format!(
            "a sum that is another from layer to layer follows {}",
            matrix.name
        )),
    };
    let (bias, target) = followed.unwrap_or_else(|why| {
        let output = product;
        (None, Target::NoPlain { why, output })
    });
    Some(Site {
        layer,
        role,
        name: matrix.name.clone(),
        weight,
        columns: matrix.dims[0] as usize,
        rows: matrix.dims[1] as usize,
        input,
        product,
        experts,
        bias,
        target,
    })
}

/// What becomes of the product: its bias and target.
fn follow(graph: &Graph, product: usize, input: usize) -> Result<(Option<usize>, Target), String> {
    let name = |node: usize| match graph.nodes[node].sources.first() {
        Some(&Source::Weight(weight)) => graph.weights[weight].name.clone(),
        _ => graph.nodes[node].name.clone(),
    };
    let mut bias = None;
    let mut scale = 1.0;
    let mut at = product;
    let mut whole = product;
    loop {
        let users: Vec<usize> = graph.users(at).collect();
        let [next] = users[..] else {
            let n = users.len();
            return Err(format!("a branch into {n} follows {}", name(product)));
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
                if residual >= product {
                    return Err(format!(
                        "a sum with what comes later follows {}",
                        name(product)
                    ));
                }
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
            (op, _) => {
                return Err(format!("{op} ({}) follows {}", node.name, name(product)));
            }
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
