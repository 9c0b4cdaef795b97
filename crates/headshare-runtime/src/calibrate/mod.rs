//! A model whose weights change while it runs: the engine under repair and
//! calibrated quantization.
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

mod error;
mod graph;
mod pass;
mod replay;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use headshare_format::Gguf;

use crate::batch::Batch;
use crate::context::{CacheType, Context, ContextParams, FlashAttention};
use crate::model::{Model, ModelParams};
use crate::stitched::VirtualFile;
use crate::vocab::{Token, Vocab};

pub use error::CalibrateError;
pub use graph::{Graph, GraphNode, Source, Weight};
pub use pass::{AtStop, Pass};

use graph::Discovery;
use pass::{PassObserver, read, write};

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

/// Weights in memory of their own, in the file's layout.
fn model_params() -> ModelParams {
    ModelParams {
        use_mmap: false,
        use_mlock: false,
        n_gpu_layers: 0,
        use_extra_bufts: false,
        check_tensors: false,
        ..ModelParams::default()
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
        Self::of(Model::load(path, &model_params(), None)?, params)
    }

    /// Loads `file`, a plain GGUF with the header `gguf` that need not exist;
    /// `name` is for messages.
    ///
    /// # Errors
    /// As [`load`](Self::load), and those of the file.
    pub fn load_virtual(
        file: &dyn VirtualFile,
        gguf: &Gguf,
        name: &Path,
        params: &CalibratorParams,
    ) -> Result<Self, CalibrateError> {
        let model = Model::load_virtual(file, gguf, name, &model_params())?;
        Self::of(model, params)
    }

    fn of(model: Model, params: &CalibratorParams) -> Result<Self, CalibrateError> {
        let model = Arc::new(model);
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
                reproducible: true,
                flash_attention: FlashAttention::On,
                cache_type: CacheType::F16,
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

    /// The bytes of weight `weight` as they are now.
    ///
    /// # Errors
    /// When it does not lie in the CPU's memory.
    pub fn weight(&self, weight: usize) -> Result<&[u8], CalibrateError> {
        // SAFETY: the weight is of the model that the context holds; what writes
        // to weights borrows `self` for itself.
        unsafe { read(&self.graph.weights[weight]) }
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
        // SAFETY: the weight is of the model that the context holds; a pass, and
        // with it references to weights' bytes, would have borrowed `self`.
        unsafe { write(&self.graph.weights[weight], offset, bytes) }
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
        let n_threads = self.context.n_threads();
        let mut watch = PassObserver::new(&self.graph, stops, keep, n_threads, at);
        let decoded = self.context.decode_batch_observed(&batch, &mut watch);
        let (left, outcome) = watch.finish();
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
