//! The graph of a pass, as a first pass over one token shows it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::ptr::NonNull;

use ggml_sys as sys;

use crate::callbacks::{Node, Observer};

/// What a node is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Another node, by its index in [`Graph::nodes`].
    Node(usize),
    /// A weight, by its index in [`Graph::weights`].
    Weight(usize),
    /// Something that llama.cpp sets for each pass: positions, masks, caches.
    Input,
}

/// A node of the graph.
#[derive(Clone, Debug)]
pub struct GraphNode {
    /// llama.cpp's label, such as `ffn_inp-3`.
    pub name: String,
    /// ggml's name of the operation, such as `MUL_MAT`.
    pub op: &'static str,
    /// Nodes of the same name and operation before it.
    pub nth: u32,
    /// What it is computed from.
    pub sources: Vec<Source>,
    /// The factor of a `SCALE` that adds nothing.
    pub scale: Option<f32>,
    /// Whether it is an attention with ALiBi's slopes, one for each head.
    pub alibi: bool,
}

/// A weight of the model that the graph uses.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its name in the file.
    pub name: String,
    /// Its ggml type's number.
    pub ggml_type: u32,
    /// Its shape, ggml's `ne`.
    pub dims: [u64; 4],
    pub(super) raw: NonNull<sys::ggml_tensor>,
}

/// The graph of a pass, in the order in which it is computed.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The nodes.
    pub nodes: Vec<GraphNode>,
    /// The weights that they use.
    pub weights: Vec<Weight>,
}

impl Graph {
    /// The index of the weight called `name`, if the graph uses it.
    pub fn weight(&self, name: &str) -> Option<usize> {
        self.weights.iter().position(|w| w.name == name)
    }

    /// The nodes that use node `index`, ascending.
    pub fn users(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        self.nodes[index..]
            .iter()
            .zip(index..)
            .filter(move |(node, _)| node.sources.contains(&Source::Node(index)))
            .map(|(_, at)| at)
    }
}

/// Records the graph.
#[derive(Default)]
pub(super) struct Discovery {
    pub graph: Graph,
    nodes: HashMap<NonNull<sys::ggml_tensor>, usize>,
    weights: HashMap<NonNull<sys::ggml_tensor>, usize>,
    seen: HashMap<(String, &'static str), u32>,
}

impl Discovery {
    fn source(&mut self, node: Node<'_>) -> Source {
        let raw = node.raw();
        if let Some(&index) = self.nodes.get(&raw) {
            return Source::Node(index);
        }
        if let Some(&index) = self.weights.get(&raw) {
            return Source::Weight(index);
        }
        // SAFETY: a tensor of the graph that is asked about.
        let buffer = unsafe { raw.as_ref() }.buffer;
        // SAFETY: a living tensor's buffer.
        let is_weight = !buffer.is_null()
            && unsafe { sys::ggml_backend_buffer_get_usage(buffer) }
                == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        if !is_weight {
            return Source::Input;
        }
        let index = self.graph.weights.len();
        self.graph.weights.push(Weight {
            name: node.name().to_owned(),
            ggml_type: node.ggml_type(),
            dims: node.dims(),
            raw,
        });
        self.weights.insert(raw, index);
        Source::Weight(index)
    }
}

impl Observer for Discovery {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let op = node.op().name();
        let sources = (0..sys::GGML_MAX_SRC as usize)
            .map_while(|i| node.src(i))
            .map(|src| self.source(src))
            .collect();
        let count = self.seen.entry((node.name().to_owned(), op)).or_default();
        let nth = *count;
        *count += 1;
        self.nodes.insert(node.raw(), self.graph.nodes.len());
        self.graph.nodes.push(GraphNode {
            name: node.name().to_owned(),
            op,
            nth,
            sources,
            scale: node.scale(),
            alibi: node.alibi(),
        });
        false
    }

    fn observe(&mut self, _: &Node<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
