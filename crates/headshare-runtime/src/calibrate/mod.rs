//! A model whose weights change while it runs: the engine under repair and
//! calibrated quantisation.
//!
//! llama.cpp computes a graph node by node, and each node reads its weight when
//! it runs. So a weight that is written between the node that computes its
//! input and the node that uses it is the weight the rest of the pass sees:
//! statistics of a layer's input and the new weight of that layer come out of
//! one pass. For that the weights must lie where they were read to, in the
//! file's own layout: no mapping, no repacked copies.
//!
//! The graph is built anew for each pass, so its nodes are known by name,
//! operation and how many of both came before; [`Calibrator::graph`] is the
//! graph of a first pass over one token, with what each node is computed from.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ggml_sys as sys;

use crate::batch::Batch;
use crate::callbacks::{Node, NodeError, Observer};
use crate::context::{Context, ContextError, ContextParams, FlashAttention};
use crate::model::{Model, ModelError, ModelParams};
use crate::vocab::{Token, Vocab};

/// Windows that a pass can have: llama.cpp's bound on sequences.
pub const MAX_WINDOWS: u32 = 256;

/// How large the passes will be.
#[derive(Clone, Debug)]
pub struct CalibratorParams {
    /// Windows of text side by side, at most [`MAX_WINDOWS`].
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Tokens that may be outputs, at least one a window.
    pub outputs: u32,
    /// Threads; `None` means one a physical core that this process may use.
    pub n_threads: Option<u32>,
    /// While true, evaluation stops as soon as it can.
    pub stop: Arc<AtomicBool>,
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The model cannot be loaded or does not generate.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It cannot be evaluated.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A node's data is not what was expected.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A weight cannot be written.
    #[error("weight {name}: {problem}")]
    Weight {
        /// Its name.
        name: String,
        /// Why not.
        problem: String,
    },
    /// The graph of a pass is not the graph of the first one.
    #[error("llama.cpp's graph changed: {0}")]
    Graph(String),
}

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
    raw: NonNull<sys::ggml_tensor>,
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

/// A model of its own, with weights that can be replaced.
pub struct Calibrator {
    context: Context,
    graph: Graph,
    windows: u32,
    window: u32,
}

// SAFETY: the pointers to weights belong to the model that the context holds,
// which no one else does: `load` makes it and never hands it out. They are
// followed by methods that borrow the calibrator, or by the pass it runs.
unsafe impl Send for Calibrator {}

impl Calibrator {
    /// Loads the plain GGUF file at `path`.
    ///
    /// # Errors
    /// When the model cannot be loaded, does not generate text, or does not fit
    /// into memory with these parameters.
    pub fn load(path: &Path, params: &CalibratorParams) -> Result<Self, CalibrateError> {
        let loaded = ModelParams {
            use_mmap: false,
            use_mlock: false,
            n_gpu_layers: 0,
            use_extra_bufts: false,
            check_tensors: false,
        };
        let model = Arc::new(Model::load(path, &loaded, None)?);
        model.check_generative()?;
        let tokens = params.windows.saturating_mul(params.window);
        let context = Context::new(
            &model,
            &ContextParams {
                n_ctx: Some(tokens),
                n_batch: tokens,
                n_ubatch: tokens,
                n_seq_max: params.windows,
                kv_unified: false,
                n_outputs_max: params.outputs.max(1),
                n_threads: params.n_threads,
                n_threads_batch: None,
                flash_attention: FlashAttention::On,
                observable: true,
                stop: Arc::clone(&params.stop),
            },
        )?;
        context.check_generative()?;
        let mut this = Self {
            context,
            graph: Graph::default(),
            windows: params.windows,
            window: params.window,
        };
        this.discover()?;
        Ok(this)
    }

    /// The model's vocabulary.
    pub fn vocab(&self) -> Vocab<'_> {
        self.context.model().vocab()
    }

    /// The graph of its passes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Threads that evaluate.
    pub fn n_threads(&self) -> u32 {
        self.context.n_threads()
    }

    /// The graph of a pass over one token.
    fn discover(&mut self) -> Result<(), CalibrateError> {
        let mut batch = Batch::new();
        batch.add(0, 0, &[0], true);
        let mut discovery = Discovery::default();
        self.context.decode_batch_observed(&batch, &mut discovery)?;
        self.context.clear();
        self.graph = discovery.graph;
        Ok(())
    }

    /// Replaces bytes of weight `weight`, from byte `offset` on.
    ///
    /// # Errors
    /// When they do not lie in it, or it does not lie in the CPU's memory.
    pub fn write_weight(
        &mut self,
        weight: usize,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), CalibrateError> {
        write(&self.graph.weights[weight], offset, bytes)
    }

    /// Evaluates `tokens`, the windows one after the other, with logits of those
    /// that `output` says (at least one). At each node of `stops`, once it is
    /// computed and before any other is that uses it, `at` is called; it can
    /// read that node and, of `keep`, what came before and is still in use.
    /// When it breaks, the pass ends.
    ///
    /// # Errors
    /// When llama.cpp fails, the graph is not the first one's, or `at` breaks
    /// with an error.
    pub fn run<E: From<CalibrateError>>(
        &mut self,
        tokens: &[Token],
        output: &dyn Fn(usize) -> bool,
        stops: &[usize],
        keep: &[usize],
        at: &mut AtStop<'_, E>,
    ) -> Result<(), E> {
        let window = self.window as usize;
        if tokens.len() != window * self.windows as usize {
            let message = format!("{} tokens are not {} windows", tokens.len(), self.windows);
            return Err(CalibrateError::Graph(message).into());
        }
        let mut batch = Batch::new();
        for (i, &token) in tokens.iter().enumerate() {
            let (sequence, position) = (i / window, i % window);
            batch.add(token, position as u32, &[sequence as u32], output(i));
        }
        self.context.clear();
        let mut kept: HashMap<(&str, &str, u32), usize> = HashMap::new();
        let mut is_stop = vec![false; self.graph.nodes.len()];
        stops.iter().for_each(|&i| is_stop[i] = true);
        for &i in stops.iter().chain(keep) {
            let node = &self.graph.nodes[i];
            kept.insert((&node.name, node.op, node.nth), i);
        }
        let mut watch = Watch {
            graph: &self.graph,
            kept,
            is_stop,
            seen: HashMap::new(),
            live: HashMap::new(),
            next: None,
            left: stops.len(),
            at,
            outcome: None,
        };
        let decoded = self.context.decode_batch_observed(&batch, &mut watch);
        let (left, outcome) = (watch.left, watch.outcome);
        self.context.clear();
        match outcome {
            Some(outcome) => outcome,
            None => {
                decoded.map_err(|e| E::from(e.into()))?;
                if left > 0 {
                    let message = format!("{left} nodes of the first pass did not come up again");
                    return Err(CalibrateError::Graph(message).into());
                }
                Ok(())
            }
        }
    }

    /// Logits of the `i`th output of the last pass, if it went through.
    pub fn logits_at(&self, i: usize) -> Option<&[f32]> {
        self.context.logits_at(i)
    }
}

/// What is called at the stops of a pass, with the node's index.
pub type AtStop<'a, E> = dyn FnMut(usize, &mut Pass<'_>) -> ControlFlow<Result<(), E>> + 'a;

/// What can be read and written at a stop of a pass.
pub struct Pass<'a> {
    graph: &'a Graph,
    live: &'a HashMap<usize, NonNull<sys::ggml_tensor>>,
}

impl Pass<'_> {
    /// The elements of node `index`, row after row: the node of this stop, or
    /// one of those kept.
    ///
    /// # Errors
    /// When it has not come up yet, or is not plain f32.
    pub fn f32s(&self, index: usize) -> Result<Cow<'_, [f32]>, CalibrateError> {
        let Some(&raw) = self.live.get(&index) else {
            let name = self.graph.nodes[index].name.clone();
            return Err(NodeError::NoData(name).into());
        };
        Ok(Node::computed(raw).f32s()?)
    }

    /// Replaces bytes of a weight, which the rest of the pass then uses.
    ///
    /// # Errors
    /// As [`Calibrator::write_weight`].
    pub fn write_weight(
        &mut self,
        weight: usize,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), CalibrateError> {
        write(&self.graph.weights[weight], offset, bytes)
    }
}

fn write(weight: &Weight, offset: usize, bytes: &[u8]) -> Result<(), CalibrateError> {
    let fail = |problem: String| {
        Err(CalibrateError::Weight {
            name: weight.name.clone(),
            problem,
        })
    };
    // SAFETY: the weight belongs to a living model.
    let (len, data, buffer) = unsafe {
        let tensor = weight.raw.as_ref();
        (
            sys::ggml_nbytes(weight.raw.as_ptr()),
            tensor.data,
            tensor.buffer,
        )
    };
    if offset.checked_add(bytes.len()).is_none_or(|end| end > len) {
        let problem = format!("{} bytes at {offset} of {len}", bytes.len());
        return fail(problem);
    }
    // SAFETY: the buffer of a living tensor, if it has one.
    let host = !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) };
    if !host || data.is_null() {
        return fail("it does not lie in the CPU's memory".into());
    }
    // SAFETY: the bytes lie within the tensor's, which are ours alone to write:
    // the model was read into memory of its own, no pass computes at this
    // moment, and no reference to a weight's bytes is ever handed out.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast::<u8>().add(offset), bytes.len());
    }
    Ok(())
}

/// Records the graph.
#[derive(Default)]
struct Discovery {
    graph: Graph,
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
        });
        false
    }

    fn observe(&mut self, _: &Node<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Finds the nodes of the first pass in a later one.
struct Watch<'a, E> {
    graph: &'a Graph,
    kept: HashMap<(&'a str, &'a str, u32), usize>,
    is_stop: Vec<bool>,
    seen: HashMap<(String, &'static str), u32>,
    live: HashMap<usize, NonNull<sys::ggml_tensor>>,
    /// The stop that is being computed.
    next: Option<usize>,
    left: usize,
    at: &'a mut AtStop<'a, E>,
    outcome: Option<Result<(), E>>,
}

impl<E> Observer for Watch<'_, E> {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let op = node.op().name();
        let count = self.seen.entry((node.name().to_owned(), op)).or_default();
        let nth = *count;
        *count += 1;
        let Some(&index) = self.kept.get(&(node.name(), op, nth)) else {
            return false;
        };
        self.live.insert(index, node.raw());
        self.next = self.is_stop[index].then_some(index);
        self.next.is_some()
    }

    fn observe(&mut self, _: &Node<'_>) -> ControlFlow<()> {
        let Some(index) = self.next.take() else {
            return ControlFlow::Continue(());
        };
        self.left -= 1;
        let mut pass = Pass {
            graph: self.graph,
            live: &self.live,
        };
        match (self.at)(index, &mut pass) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(outcome) => {
                self.outcome = Some(outcome);
                ControlFlow::Break(())
            }
        }
    }
}
