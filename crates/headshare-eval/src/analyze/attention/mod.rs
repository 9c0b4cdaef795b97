//! How alike heads attend, and whether heads with like weights do: the paper's
//! Figure 1 on the model at hand.
//!
//! The **attention map** of a head is the causal matrix of its softmax: row t
//! says how much token t takes from each token up to itself. The **similarity**
//! of two maps is the cosine of the flattened matrices (the paper's Eq. 1),
//! taken for each window of the text and averaged over the windows.
//!
//! - Heads: of their maps.
//! - Layers: of the mean of their heads' maps.
//! - Units (KV groups, with grouped-query attention): of their query heads'
//!   maps, concatenated in order. When a unit uses another's weights, its first
//!   query head becomes the other's first, and so on, and the match functions
//!   concatenate weights in the same order. With one query head a unit this is
//!   the heads' similarity.
//!
//! Many heads put most of their attention on the first token, whatever the
//! text, which makes any two of them alike. So the comparison with the weights
//! is also made without the first column of the maps.

mod compare;
mod maps;
mod picture;

use std::sync::Arc;

use headshare_runtime::{
    Context, ContextError, ContextParams, FlashAttention, Model, ModelParams, Token,
};
use serde::Serialize;

use self::compare::compare;
pub use self::compare::{Comparison, Matched};
use self::maps::MapSums;
use super::weights::Weights;
use super::{AnalyzeError, PlainModel, Summary, SymmetricMatrix};
use headshare_convert::matching::{self};
use headshare_convert::model::AttentionMap;
use headshare_convert::model::Part;

/// What is run on what.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows, at most.
    pub windows: usize,
    /// Tokens to evaluate at once; `None` means as many as keep the collected
    /// maps within 256 MiB. Changes nothing but rounding.
    pub chunk: Option<u32>,
    /// Threads; `None` means one a physical core.
    pub threads: Option<u32>,
}

/// How alike the heads of a model attend.
#[derive(Debug, Clone, Serialize)]
pub struct Attention {
    /// The file's path.
    pub path: String,
    /// The model in a few words.
    pub model: String,
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows that the similarities are averaged over.
    pub windows: usize,
    /// Attention that the first token of a window gets, of all.
    pub first_token_share: f64,
    /// The layers: rows and columns of `layer_similarity`.
    pub layers: Vec<u32>,
    /// Layer and query head: rows and columns of `head_similarity`.
    pub heads: Vec<(u32, u32)>,
    /// Pairs of layers.
    pub layer_pairs: Option<Summary>,
    /// Pairs of neighbouring layers.
    pub neighbour_layers: Option<Summary>,
    /// Pairs of heads.
    pub head_pairs: Option<Summary>,
    /// Pairs of heads in one layer.
    pub heads_within_layers: Option<Summary>,
    /// Pairs of units in different layers.
    pub unit_pairs_across_layers: Option<Summary>,
    /// How this goes together with the weights: one for each match function,
    /// for `separate` one for each part.
    pub comparisons: Vec<Comparison>,
    /// Cosines of the layers' maps.
    pub layer_similarity: SymmetricMatrix,
    /// Cosines of the heads' maps.
    pub head_similarity: SymmetricMatrix,
    /// Cosines of the units' maps; `null` for units of different numbers of
    /// heads.
    pub unit_similarity: SymmetricMatrix,
    /// The same without the maps' first column.
    pub unit_similarity_without_first_token: SymmetricMatrix,
    #[serde(skip)]
    name: String,
}

/// The windows of a text.
struct Text {
    windows: Vec<Vec<Token>>,
}

/// A model that is ready to read a text.
pub struct Reader<'m> {
    model: &'m PlainModel,
    settings: &'m Settings,
    context: Context,
    text: Text,
    chunk: u32,
}

/// Runs `model` on a text, and compares the attention maps with each other and
/// with all of `weights`, which are of the same model. `progress` is told the share of
/// the run that is done.
///
/// # Errors
/// As [`Reader::new`] and [`Reader::read`].
pub fn attention(
    model: &PlainModel,
    text: (&std::path::Path, &str),
    settings: &Settings,
    weights: &[Weights],
    progress: &dyn Fn(f64),
) -> Result<Attention, AnalyzeError> {
    Reader::new(model, text, settings)?.read(weights, progress)
}

impl<'m> Reader<'m> {
    /// Loads `model`, and cuts the text into windows: whatever can be wrong
    /// with either is found out here.
    ///
    /// # Errors
    /// When llama.cpp does not load the model, it does not generate, or the text
    /// is shorter than a window.
    pub fn new(
        model: &'m PlainModel,
        text: (&std::path::Path, &str),
        settings: &'m Settings,
    ) -> Result<Self, AnalyzeError> {
        let params = ModelParams::default();
        let runtime = Model::load(model.file.path(), &params, None);
        let runtime = runtime.map_err(|error| model.load_error(error))?;
        let runtime = Arc::new(runtime);
        let not_generative = |problem: String| AnalyzeError::NotGenerative {
            path: model.path.clone(),
            problem,
        };
        let generative = runtime.check_generative();
        generative.map_err(|error| not_generative(error.to_string()))?;
        let trained = runtime.n_ctx_train();
        if trained > 0 && settings.ctx > trained {
            return Err(AnalyzeError::CtxTooLarge {
                path: model.path.clone(),
                ctx: settings.ctx,
                trained,
            });
        }
        let text = Text::new(&runtime, text, settings)?;
        let heads: u64 = model.map.layers.iter().map(|l| u64::from(l.n_head)).sum();
        let fitting = || maps::chunk_tokens(heads, settings.ctx);
        let chunk = settings.chunk.unwrap_or_else(fitting);
        let params = ContextParams {
            n_ctx: Some(settings.ctx),
            n_batch: chunk,
            n_ubatch: chunk,
            n_threads: settings.threads,
            flash_attention: FlashAttention::Off,
            observable: true,
            ..ContextParams::default()
        };
        let context = Context::new(&runtime, &params)?;
        let generative = context.check_generative();
        generative.map_err(|error| not_generative(error.to_string()))?;
        Ok(Self {
            model,
            settings,
            context,
            text,
            chunk,
        })
    }

    /// Reads the text.
    ///
    /// # Errors
    /// When llama.cpp does not run the model, or it has no attention maps.
    pub fn read(
        self,
        weights: &[Weights],
        progress: &dyn Fn(f64),
    ) -> Result<Attention, AnalyzeError> {
        let Self {
            model,
            settings,
            mut context,
            text,
            chunk,
        } = self;
        let mut sums = MapSums::new(&model.map);
        let mut means = Means::new(&model.map);
        let tokens = text.windows.len() * settings.ctx as usize;
        let mut done = 0;
        for window in &text.windows {
            context.clear();
            sums.clear();
            let mut past = 0;
            for tokens_now in window.chunks(chunk as usize) {
                sums.begin(past, tokens_now.len());
                let decoded = context.decode_observed(tokens_now, &mut sums);
                let taken = match decoded {
                    Ok(()) | Err(ContextError::Halted) => sums.finish(),
                    Err(error) => return Err(error.into()),
                };
                taken.map_err(|(layer, problem)| AnalyzeError::NoMap {
                    path: model.path.clone(),
                    layer,
                    problem,
                })?;
                past += tokens_now.len();
                done += tokens_now.len();
                progress(done as f64 / tokens as f64);
            }
            means.add(&sums);
        }
        Ok(means.finish(model, settings, text.windows.len(), weights))
    }
}

impl Attention {
    /// `8 windows of 512 tokens`.
    pub fn windows_text(&self) -> String {
        let s = if self.windows == 1 { "" } else { "s" };
        format!("{} window{s} of {} tokens", self.windows, self.ctx)
    }
}

impl Text {
    /// The text's first windows, each led by the token that begins a text, in
    /// the place of its first token, as llama-perplexity does it.
    fn new(
        model: &Model,
        (path, text): (&std::path::Path, &str),
        settings: &Settings,
    ) -> Result<Self, AnalyzeError> {
        let vocab = model.vocab();
        let tokens = vocab.tokenize(text, true, false)?;
        let lead = vocab.leading_bos();
        let windows: Vec<Vec<Token>> = tokens
            .chunks_exact(settings.ctx as usize)
            .take(settings.windows)
            .map(|window| {
                let mut window = window.to_vec();
                if let Some(lead) = lead {
                    window[0] = lead;
                }
                window
            })
            .collect();
        if windows.is_empty() {
            return Err(AnalyzeError::TextTooShort {
                path: path.to_owned(),
                tokens: tokens.len(),
                ctx: settings.ctx,
            });
        }
        Ok(Self { windows })
    }
}

/// Similarities, summed over the windows.
struct Means {
    /// The heads of each layer among all.
    layers: Vec<std::ops::Range<usize>>,
    /// The query heads of each unit among all.
    units: Vec<std::ops::Range<usize>>,
    by_layer: SymmetricMatrix,
    by_head: SymmetricMatrix,
    by_unit: SymmetricMatrix,
    by_unit_without_first: SymmetricMatrix,
    first_mass: f64,
}

impl Means {
    fn new(map: &AttentionMap) -> Self {
        let (mut layers, mut units) = (Vec::new(), Vec::new());
        let mut heads = 0;
        for layer in &map.layers {
            layers.push(heads..heads + layer.n_head as usize);
            for unit in 0..layer.n_head_kv {
                let of_unit = layer.heads(Part::Q, unit);
                units.push(heads + of_unit.start as usize..heads + of_unit.end as usize);
            }
            heads += layer.n_head as usize;
        }
        Self {
            by_layer: SymmetricMatrix::zeros(layers.len()),
            by_head: SymmetricMatrix::zeros(heads),
            by_unit: SymmetricMatrix::zeros(units.len()),
            by_unit_without_first: SymmetricMatrix::zeros(units.len()),
            layers,
            units,
            first_mass: 0.0,
        }
    }

    fn add(&mut self, sums: &MapSums) {
        let whole = |a: usize, b: usize| sums.maps.get(a, b);
        // A head may look at nothing but the first token: what is left then is
        // what rounding left.
        let rest = |a: usize, b: usize| {
            let (whole, first) = (sums.maps.get(a, b), sums.first.get(a, b));
            let left = whole - first;
            if left > 1e-6 * whole { left } else { 0.0 }
        };
        self.by_head.add(cosines(self.by_head.len(), whole));
        let layers = &self.layers;
        let of_layers = |l: usize, m: usize| {
            let (l, m) = (&layers[l], &layers[m]);
            let pairs = l.clone().flat_map(|a| m.clone().map(move |b| (a, b)));
            let sum: f64 = pairs.map(|(a, b)| whole(a, b)).sum();
            sum / (l.len() * m.len()) as f64
        };
        self.by_layer.add(cosines(layers.len(), of_layers));
        let units = &self.units;
        self.by_unit
            .add(cosines(units.len(), concatenated(units, whole)));
        let without = concatenated(units, rest);
        self.by_unit_without_first
            .add(cosines(units.len(), without));
        self.first_mass += sums.first_mass;
    }

    fn finish(
        mut self,
        model: &PlainModel,
        settings: &Settings,
        windows: usize,
        weights: &[Weights],
    ) -> Attention {
        for matrix in [
            &mut self.by_layer,
            &mut self.by_head,
            &mut self.by_unit,
            &mut self.by_unit_without_first,
        ] {
            matrix.divide(windows as f64);
        }
        let map = &model.map;
        let heads: Vec<(u32, u32)> = map
            .layers
            .iter()
            .flat_map(|layer| (0..layer.n_head).map(|head| (layer.layer, head)))
            .collect();
        let layers: Vec<u32> = map.layers.iter().map(|layer| layer.layer).collect();
        let rows = windows as f64 * f64::from(settings.ctx) * heads.len() as f64;
        let summary = |matrix: &SymmetricMatrix, keep: &dyn Fn(usize, usize) -> bool| {
            let pairs = matrix
                .pairs()
                .filter(|&(a, b, s)| keep(a, b) && !s.is_nan());
            Summary::of(pairs.map(|pair| pair.2))
        };
        let units = map.units();
        let unit_layer = |unit: usize| units[unit].layer;
        Attention {
            path: model.path.display().to_string(),
            model: map.describe(),
            ctx: settings.ctx,
            windows,
            first_token_share: self.first_mass / rows,
            layer_pairs: summary(&self.by_layer, &|_, _| true),
            neighbour_layers: summary(&self.by_layer, &|a, b| a == b + 1),
            head_pairs: summary(&self.by_head, &|_, _| true),
            heads_within_layers: summary(&self.by_head, &|a, b| heads[a].0 == heads[b].0),
            unit_pairs_across_layers: summary(&self.by_unit, &|a, b| {
                unit_layer(a) != unit_layer(b)
            }),
            comparisons: weights
                .iter()
                .flat_map(|w| compare(w, &self.by_unit, &self.by_unit_without_first))
                .collect(),
            layers,
            heads,
            layer_similarity: self.by_layer,
            head_similarity: self.by_head,
            unit_similarity: self.by_unit,
            unit_similarity_without_first_token: self.by_unit_without_first,
            name: model.name(),
        }
    }
}

/// The cosine of two of `n` things with these dot products.
fn cosines(n: usize, dot: impl Fn(usize, usize) -> f64) -> impl Fn(usize, usize) -> f64 {
    let norms: Vec<f64> = (0..n).map(|a| dot(a, a)).collect();
    move |a, b| match dot(a, b) {
        dot if dot.is_nan() => f64::NAN,
        dot => matching::cosine(dot, norms[a], norms[b]),
    }
}

/// The dot products of the heads' maps, concatenated unit by unit; not a number
/// for units of different numbers of heads.
fn concatenated<'a>(
    units: &'a [std::ops::Range<usize>],
    dot: impl Fn(usize, usize) -> f64 + 'a,
) -> impl Fn(usize, usize) -> f64 + 'a {
    move |a, b| {
        let (a, b) = (&units[a], &units[b]);
        if a.len() != b.len() {
            return f64::NAN;
        }
        a.clone().zip(b.clone()).map(|(a, b)| dot(a, b)).sum()
    }
}
