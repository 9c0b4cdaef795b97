//! A model: forward, and backward a layer at a time.
//!
//! Only the layers' inputs are kept from the forward pass. In the backward pass a
//! layer is computed again with candle's autograd for that layer alone (gradient
//! checkpointing, Chen et al. 2016), so that the activations of one layer are there
//! at once; where memory allows, of some layers more ([`Model::keep_layers`]).

mod graph;
mod slots;

use candle_core::{Device, Tensor, Var};
use headshare_convert::convert::variant::Variant;
use headshare_convert::model::{RowsRange, architecture};

use crate::config::{Config, LayerConfig};
use crate::error::TrainError;
use crate::ops::{self, Activation, Kernels, Weight};
use crate::parameters::{Gradients, Parameters};
use crate::windows::Windows;
use graph::{Graph, Pass, Weights};
use slots::Slots;

/// A model that can be trained.
#[derive(Debug)]
pub struct Model {
    parameters: Parameters,
    graph: Graph,
    kept_layers: usize,
}

/// What is kept of a forward pass.
#[derive(Debug)]
pub struct Forward {
    /// What is left of each layer, and what comes out of the last one.
    kept: Vec<Kept>,
    /// The normalised output: tokens x width.
    pub hidden: Tensor,
    pass: Pass,
}

/// What is kept of a layer.
#[derive(Debug)]
enum Kept {
    /// Its input, tokens x width: it is computed again.
    Input(Tensor),
    /// All that autograd needs to go back through it.
    Whole {
        x: Var,
        y: Tensor,
        given: Vec<Weight>,
    },
}

impl Forward {
    /// The residual stream as it leaves each layer: tokens x width.
    pub(crate) fn streams(&self) -> impl Iterator<Item = &Tensor> {
        self.kept.iter().skip(1).map(|kept| match kept {
            Kept::Input(x) => x,
            Kept::Whole { x, .. } => x.as_tensor(),
        })
    }
}

impl Model {
    /// The model that `variant` is, in f32; `ties` (rows of its tensors: alias, donor)
    /// become one parameter each, see [`Parameters::read`]. [`Variant::unchanged`] is
    /// a file as it is.
    ///
    /// # Errors
    /// When its architecture, or something in it, is not built; names the key or
    /// the tensor.
    pub fn load(
        variant: &Variant<'_>,
        ties: &[(RowsRange, RowsRange)],
        device: &Device,
    ) -> Result<Self, TrainError> {
        let path = variant.source.path();
        let config = Config::of(variant.gguf(), path)?;
        let parameters = Parameters::read(variant, ties)?;
        let always_tied = architecture(config.kind.name).is_some_and(|of| of.always_tied);
        let slots = Slots::find(&config, &parameters, always_tied, path)?;
        let kernels = match device.is_cpu() {
            true => Kernels::Own,
            false => Kernels::Candle,
        };
        let graph = Graph {
            config,
            slots,
            device: device.clone(),
            kernels,
        };
        Ok(Self {
            parameters,
            graph,
            kept_layers: 0,
        })
    }

    /// With candle's own operations instead of ours, as on other devices: slower here,
    /// and to hold ours against.
    #[must_use]
    pub fn with_candle_operations(mut self) -> Self {
        self.graph.kernels = Kernels::Candle;
        self
    }

    /// With GELU as ggml's CPU backend looks it up, where the model has it: to hold
    /// logits against llama.cpp's.
    #[must_use]
    pub fn with_gelu_of_halves(mut self) -> Self {
        let activation = &mut self.graph.config.kind.activation;
        if *activation == Activation::Gelu {
            *activation = Activation::GeluOfHalves;
        }
        self
    }

    /// Its hyperparameters.
    pub fn config(&self) -> &Config {
        &self.graph.config
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its parameters, to change them.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Replaces the numbers of the parameter `name`.
    ///
    /// # Errors
    /// When there is none of that name, or it has not as many numbers.
    pub fn set(&mut self, name: &str, values: Vec<f32>) -> Result<(), TrainError> {
        let index = self.parameters.index(name);
        let index = index.ok_or_else(|| TrainError::Parameter {
            name: name.to_owned(),
            problem: "the model has none of that name".to_owned(),
        })?;
        self.parameters.set(index, values)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.graph.device
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.parameters.list()[self.graph.slots.head].rows
    }

    /// Whose operations it computes with.
    pub(crate) fn kernels(&self) -> Kernels {
        self.graph.kernels
    }

    /// The output head, vocabulary x width; which parameter it is tells
    /// [`Gradients`].
    pub(crate) fn head(&self) -> usize {
        self.graph.slots.head
    }

    /// Whether this is no parameter, but constants of the graph.
    pub fn is_constant(&self, parameter: usize) -> bool {
        self.graph.slots.factors == Some(parameter)
    }

    /// The embeddings of all tokens: tokens x width.
    ///
    /// # Errors
    /// When a token is not in the vocabulary or a window is too long.
    pub fn embed(&self, windows: &Windows) -> Result<Tensor, TrainError> {
        windows.check(self.vocabulary())?;
        let width = self.graph.config.width;
        let scale = self.graph.config.embedding_scale.unwrap_or(1.0);
        let rows = |index: usize| self.parameters.list()[index].values().chunks_exact(width);
        let table: Vec<&[f32]> = rows(self.graph.slots.embedding).collect();
        let positions: Option<Vec<&[f32]>> = self.graph.slots.positions.map(|i| rows(i).collect());
        let mut out = Vec::with_capacity(windows.tokens().len() * width);
        for (i, &token) in windows.tokens().iter().enumerate() {
            let start = out.len();
            out.extend(table[token as usize].iter().map(|v| v * scale));
            if let Some(positions) = &positions {
                ops::add(&mut out[start..], positions[i % windows.length()]);
            }
        }
        let shape = (windows.tokens().len(), width);
        Ok(Tensor::from_vec(out, shape, &self.graph.device)?)
    }

    /// How many layers, the last ones, keep all their activations instead of being
    /// computed again on the way back: a quarter of the work of each, for
    /// [`layer_bytes`](Self::layer_bytes). The gradients are the same to the bit. 0 at
    /// first.
    pub fn keep_layers(&mut self, count: usize) {
        self.kept_layers = count;
    }

    /// About the bytes that the activations of a layer take, the largest one's, with so
    /// many tokens.
    pub fn layer_bytes(&self, tokens: usize) -> usize {
        let width = self.graph.config.width;
        let kind = self.graph.config.kind;
        let of = |layer: &LayerConfig| {
            let heads = layer
                .heads
                .map_or(0, |h| (h.heads + 2 * h.kv_heads) * h.size);
            let output = layer.heads.map_or(0, |h| h.heads * h.size);
            // Before and after rotation, and before and after their norms.
            let copies = 1 + usize::from(kind.rope.is_some()) + usize::from(kind.qk_norms);
            let ffn = (2 + usize::from(kind.gated)) * layer.feed_forward;
            copies * heads + output + ffn + (8 + 2 * usize::from(kind.post_norms)) * width
        };
        let widest = self.graph.config.layers.iter().map(of).max();
        4 * tokens * widest.unwrap_or(0)
    }

    /// A forward pass that [`backward`](Self::backward) can go back from, with the same
    /// `sums`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn forward(&self, windows: &Windows, sums: &Gradients) -> Result<Forward, TrainError> {
        let layers = self.graph.config.layers.len();
        let mut kept = Vec::with_capacity(layers + 1);
        let first = layers.saturating_sub(self.kept_layers);
        let keep = |layer| (layer >= first).then_some(sums);
        let (hidden, pass) = self.run(windows, keep, |one| kept.push(one))?;
        Ok(Forward { kept, hidden, pass })
    }

    /// The normalised output of the last layer: tokens x width.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn hidden(&self, windows: &Windows) -> Result<Tensor, TrainError> {
        Ok(self.run(windows, |_| None, drop)?.0)
    }

    /// The same; each layer's residual stream, as it leaves the layer, goes to `stream`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub(crate) fn hidden_with(
        &self,
        windows: &Windows,
        mut stream: impl FnMut(Tensor),
    ) -> Result<Tensor, TrainError> {
        let mut inputs = 0;
        let kept = |kept| {
            // What goes into the first layer leaves none.
            if let (1.., Kept::Input(x)) = (inputs, kept) {
                stream(x);
            }
            inputs += 1;
        };
        Ok(self.run(windows, |_| None, kept)?.0)
    }

    /// Hands what is left of each layer to `kept`: all of it where `sums` gives those
    /// that its gradients go to.
    fn run<'a>(
        &'a self,
        windows: &Windows,
        sums: impl Fn(usize) -> Option<&'a Gradients>,
        mut kept: impl FnMut(Kept),
    ) -> Result<(Tensor, Pass), TrainError> {
        let pass = self.graph.pass(windows, &self.parameters)?;
        let mut x = self.embed(windows)?;
        for layer in 0..self.graph.config.layers.len() {
            let mut weights = self.weights(sums(layer));
            x = match weights.sums {
                Some(_) => {
                    let x = Var::from_tensor(&x)?;
                    let y = self.graph.layer(layer, &x, &pass, &mut weights)?;
                    let next = y.detach();
                    let given = weights.given;
                    kept(Kept::Whole { x, y, given });
                    next
                }
                None => {
                    let next = self.graph.layer(layer, &x, &pass, &mut weights)?;
                    kept(Kept::Input(x));
                    next
                }
            };
        }
        let mut weights = self.weights(None);
        let hidden = weights.norm(&x, &self.graph.slots.output_norm)?;
        kept(Kept::Input(x));
        Ok((hidden, pass))
    }

    fn weights<'a>(&'a self, sums: Option<&'a Gradients>) -> Weights<'a> {
        Weights {
            graph: &self.graph,
            parameters: &self.parameters,
            sums,
            given: Vec::new(),
        }
    }

    /// Logits of all tokens: tokens x vocabulary, row after row. For a look at few
    /// windows; training never has all of them at once.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn logits(&self, windows: &Windows) -> Result<Vec<f32>, TrainError> {
        let hidden = self.hidden(windows)?.to_device(&Device::Cpu)?;
        let (tokens, width) = (windows.tokens().len(), self.graph.config.width);
        let vocabulary = self.vocabulary();
        let mut logits = vec![0.0; tokens * vocabulary];
        let head = self.parameters.list()[self.graph.slots.head].values();
        ops::with(&hidden, |hidden| {
            let out = ops::matrix_mut(&mut logits, tokens, vocabulary);
            let hidden = ops::matrix(hidden, tokens, width);
            let head = ops::matrix(head, vocabulary, width);
            ops::product(out, false, hidden, head.transpose(), 1.0);
            Ok(())
        })?;
        if let Some(cap) = self.graph.config.final_softcap {
            for logit in &mut logits {
                *logit = cap * ops::tanh(*logit / cap);
            }
        }
        Ok(logits)
    }

    /// Goes back from `gradient`, the loss's with regard to [`Forward::hidden`], and
    /// adds the gradients of the parameters to `sums`. `more` gives the loss's gradient with
    /// regard to the residual stream that leaves a layer, where it has one.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn backward(
        &self,
        forward: Forward,
        gradient: &Tensor,
        sums: &Gradients,
        more: impl Fn(usize, &Tensor) -> Result<Option<Tensor>, TrainError>,
    ) -> Result<(), TrainError> {
        let Forward { mut kept, pass, .. } = forward;
        let mut gradient = gradient.clone();
        for at in (0..kept.len()).rev() {
            let (x, y, given) = match kept.pop() {
                None => break,
                Some(Kept::Whole { x, y, given }) => (x, y, given),
                Some(Kept::Input(input)) => {
                    let x = Var::from_tensor(&input)?;
                    drop(input);
                    let mut weights = self.weights(Some(sums));
                    let y = match at == self.graph.config.layers.len() {
                        true => weights.norm(&x, &self.graph.slots.output_norm)?,
                        false => self.graph.layer(at, &x, &pass, &mut weights)?,
                    };
                    (x, y, weights.given)
                }
            };
            let mut found = self.graph.kernels.start(&y, &gradient)?.backward()?;
            gradient = match found.remove(&x) {
                Some(gradient) => gradient,
                None => x.zeros_like()?,
            };
            if let Some(layer) = at.checked_sub(1)
                && let Some(more) = more(layer, &x)?
            {
                gradient = (gradient + more)?;
            }
            for weight in &given {
                let Some(tensor) = &weight.tensor else {
                    continue;
                };
                if let Some(found) = found.get(tensor) {
                    let found = found.to_device(&Device::Cpu)?;
                    ops::with(&found, |found| {
                        weight.add_gradient(|sum| ops::add(sum, found));
                        Ok(())
                    })?;
                }
            }
        }
        self.embedding_backward(&pass.windows, &gradient, sums)
    }

    fn embedding_backward(
        &self,
        windows: &Windows,
        gradient: &Tensor,
        sums: &Gradients,
    ) -> Result<(), TrainError> {
        let width = self.graph.config.width;
        let scale = self.graph.config.embedding_scale.unwrap_or(1.0);
        let gradient = gradient.to_device(&Device::Cpu)?;
        ops::with(&gradient, |gradient| {
            let rows = || windows.tokens().iter().zip(gradient.chunks_exact(width));
            sums.with(self.graph.slots.embedding, |sum| {
                for (&token, row) in rows() {
                    let at = token as usize * width;
                    for (sum, g) in sum[at..at + width].iter_mut().zip(row) {
                        *sum += g * scale;
                    }
                }
            });
            if let Some(positions) = self.graph.slots.positions {
                sums.with(positions, |sum| {
                    for (i, (_, row)) in rows().enumerate() {
                        let at = i % windows.length() * width;
                        ops::add(&mut sum[at..at + width], row);
                    }
                });
            }
            Ok(())
        })?;
        Ok(())
    }
}
