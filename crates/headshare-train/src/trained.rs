//! Which tensors training changes, and how a model follows from them.

use std::fmt;
use std::str::FromStr;

use crate::adam::{AdamOptions, AdamStep, Moments};
use crate::error::TrainError;
use crate::model::Model;
use crate::ops::{self, matrix, matrix_mut, product};
use crate::parameters::{Gradients, Parameter};
use headshare_convert::model::in_layer;
use headshare_convert::random::SplitMix64;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Train {
    /// Every parameter.
    All,
    /// Matrices and biases of q, k, v and attention's output.
    Attention,
    /// The scales and shifts of norms.
    Norms,
    /// What is in front of the codes of quantized tensors ([`crate::Codes`]), and all
    /// vectors (norms, biases): what is trained is what a file of the same types stores.
    Scales,
    /// Of every matrix of a layer a change of this rank (LoRA, Hu et al. 2021): W + 2 B
    /// A, which is added to W as training goes on, so that nothing has to be merged
    /// afterwards.
    Lora(usize),
}

/// What B A is multiplied by: LoRA's alpha over its rank.
const LORA_SCALE: f32 = 2.0;

impl fmt::Display for Train {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Attention => f.write_str("attention"),
            Self::Norms => f.write_str("norms"),
            Self::Scales => f.write_str("scales"),
            Self::Lora(rank) => write!(f, "lora:{rank}"),
        }
    }
}

impl FromStr for Train {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("lora:").map(str::parse)) {
            ("all", _) => Ok(Self::All),
            ("attention", _) => Ok(Self::Attention),
            ("norms", _) => Ok(Self::Norms),
            ("scales", _) => Ok(Self::Scales),
            (_, Some(Ok(rank @ 1..))) => Ok(Self::Lora(rank)),
            _ => Err(format!(
                "{text:?} is none of all, attention, norms, scales, lora:RANK"
            )),
        }
    }
}

impl Train {
    /// Whether a parameter's own gradient is needed.
    pub fn wants(self, parameter: &Parameter) -> bool {
        let name = parameter.name.as_str();
        let part = in_layer(name).map_or("", |(_, part)| part);
        let stem = part.rsplit_once('.').map_or("", |(stem, _)| stem);
        let is_norm = name.contains("norm");
        match self {
            Self::All => true,
            Self::Attention => {
                matches!(
                    stem,
                    "attn_q" | "attn_k" | "attn_v" | "attn_qkv" | "attn_output"
                )
            }
            Self::Norms => is_norm,
            Self::Scales => parameter.rows == 1 || parameter.codes().is_some(),
            Self::Lora(_) => !part.is_empty() && parameter.rows > 1,
        }
    }
}

/// A tensor that the optimiser changes.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedTensor {
    /// The parameter's name; of LoRA's matrices with `.lora_a` or `.lora_b` after it.
    pub name: String,
    /// Its numbers, row after row; of scales, how many [units](crate::Codes::units) they have
    /// moved. Empty where they are the model's own parameter, which is then read and
    /// changed in place.
    pub values: Vec<f32>,
    /// What the optimiser remembers.
    pub moments: Moments,
    index: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    /// rank x columns.
    Down,
    /// rows x rank.
    Up,
    /// Fields of the stored form.
    Scales,
}

/// All tensors that the optimiser changes.
#[derive(Debug, Clone)]
pub struct Trained {
    train: Train,
    list: Vec<TrainedTensor>,
    /// Each parameter that is computed from trained numbers, as it was: for LoRA its
    /// own numbers, for scales its fields.
    base: Vec<(usize, Vec<f32>)>,
}

/// Gradients of a step that is still to be taken.
#[derive(Debug)]
pub struct Ready {
    /// Of what is no whole tensor of the model.
    own: Vec<Vec<f32>>,
    /// The norm of all of them together.
    pub norm: f64,
}

impl Trained {
    /// Those of `model` that `train` names. LoRA's A is random by `seed`, its B zero,
    /// so that the model is not changed yet.
    ///
    /// # Errors
    /// When the model has none.
    pub fn new(model: &Model, train: Train, seed: u64) -> Result<Self, TrainError> {
        let mut this = Self {
            train,
            list: Vec::new(),
            base: Vec::new(),
        };
        let list = model.parameters().list();
        if let Train::Lora(rank) = train {
            let ranks =
                (list.iter().filter(|of| train.wants(of))).map(|of| of.rows.min(of.columns));
            let most = ranks.max().unwrap_or(0);
            if rank > most {
                let problem = format!("no matrix has a rank of {rank}: {most} is the highest");
                return Err(TrainError::option("train", problem));
            }
        }
        for (index, parameter) in list.iter().enumerate() {
            if model.is_constant(index) || !train.wants(parameter) {
                continue;
            }
            let tensor = |name: String, values: Vec<f32>, len, kind| TrainedTensor {
                name,
                values,
                moments: Moments::zeros(len),
                index,
                kind,
            };
            let name = &parameter.name;
            if let (Train::Scales, Some(codes)) = (train, parameter.codes()) {
                let fields = codes.fields();
                let (len, kind) = (fields.len(), Kind::Scales);
                this.list
                    .push(tensor(name.clone(), vec![0.0; len], len, kind));
                this.base.push((index, fields));
                continue;
            }
            let Train::Lora(rank) = train else {
                let len = parameter.values().len();
                this.list
                    .push(tensor(name.clone(), Vec::new(), len, Kind::Whole));
                continue;
            };
            let mut random = SplitMix64::new(seed, 1 << 32 | index as u64);
            // As Kaiming's with a slope of sqrt(5), LoRA's own: uniform within this.
            let bound = 1.0 / (parameter.columns as f32).sqrt();
            let (down, up) = (rank * parameter.columns, parameter.rows * rank);
            let a: Vec<f32> = (0..down).map(|_| random.signed() * bound).collect();
            this.list
                .push(tensor(format!("{name}.lora_a"), a, down, Kind::Down));
            this.list.push(tensor(
                format!("{name}.lora_b"),
                vec![0.0; up],
                up,
                Kind::Up,
            ));
            this.base.push((index, parameter.values().to_vec()));
        }
        if this.list.is_empty() {
            let problem = format!("the model has nothing that {train} names");
            return Err(TrainError::option("train", problem));
        }
        Ok(this)
    }

    /// What is trained.
    pub fn train(&self) -> Train {
        self.train
    }

    /// The tensors, in an order that depends on the model only.
    pub fn list(&self) -> &[TrainedTensor] {
        &self.list
    }

    /// Sets what the optimiser remembers of the tensors, in the list's order.
    ///
    /// # Errors
    /// When they are not as many.
    pub fn set_moments(&mut self, moments: Vec<Moments>) -> Result<(), TrainError> {
        if moments.len() != self.list.len() {
            let (found, len) = (moments.len(), self.list.len());
            let problem = format!("of {found} tensors, where {len} are trained");
            return Err(TrainError::option("moments", problem));
        }
        for (tensor, new) in self.list.iter_mut().zip(moments) {
            let len = tensor.moments.first.len();
            if new.first.len() != len || new.second.len() != len {
                return Err(TrainError::Parameter {
                    name: tensor.name.clone(),
                    problem: format!("{len} moments are needed"),
                });
            }
            tensor.moments = new;
        }
        Ok(())
    }

    /// The numbers of a tensor of the list.
    pub fn values<'a>(&'a self, tensor: &'a TrainedTensor, model: &'a Model) -> &'a [f32] {
        match tensor.kind {
            Kind::Whole => model.parameters().list()[tensor.index].values(),
            Kind::Down | Kind::Up | Kind::Scales => &tensor.values,
        }
    }

    /// Zeros for the gradients that are needed.
    pub fn sums(&self, model: &Model) -> Gradients {
        Gradients::zeros(model.parameters(), |i| {
            self.list.iter().any(|tensor| tensor.index == i)
        })
    }

    /// Numbers that are trained.
    pub fn count(&self) -> usize {
        self.list
            .iter()
            .map(|tensor| tensor.moments.first.len())
            .sum()
    }

    /// Bytes that it takes beside the model's own: numbers, moments, and what they began with.
    pub fn bytes(&self) -> usize {
        let own = self.list.iter().map(|tensor| tensor.values.len());
        let base = self.base.iter().map(|(_, base)| base.len());
        4 * (2 * self.count() + own.chain(base).sum::<usize>())
    }

    /// The gradient of each tensor from those of the model's parameters, whose ties
    /// are folded: of W + s B A, s B^T dW for A and s dW A^T for B.
    fn gradients(&self, model: &Model, sums: &Gradients) -> Result<Vec<Vec<f32>>, TrainError> {
        let of = |(i, tensor): (usize, &TrainedTensor)| {
            let parameter = &model.parameters().list()[tensor.index];
            let (rows, columns) = (parameter.rows, parameter.columns);
            if tensor.kind == Kind::Scales {
                let gradient = |sum: &mut [f32]| self.of_fields(tensor, parameter, sum);
                return sums
                    .with(tensor.index, gradient)
                    .unwrap_or_else(|| Ok(Vec::new()));
            }
            let gradient = |sum: &mut [f32]| match tensor.kind {
                Kind::Whole | Kind::Scales => Vec::new(),
                Kind::Down => {
                    let b = &self.list[i + 1].values;
                    let rank = b.len() / rows;
                    let mut out = vec![0.0; rank * columns];
                    let b = matrix(b, rows, rank).transpose();
                    let sum = matrix(sum, rows, columns);
                    product(
                        matrix_mut(&mut out, rank, columns),
                        false,
                        b,
                        sum,
                        LORA_SCALE,
                    );
                    out
                }
                Kind::Up => {
                    let a = &self.list[i - 1].values;
                    let rank = a.len() / columns;
                    let mut out = vec![0.0; rows * rank];
                    let a = matrix(a, rank, columns).transpose();
                    let sum = matrix(sum, rows, columns);
                    product(matrix_mut(&mut out, rows, rank), false, sum, a, LORA_SCALE);
                    out
                }
            };
            Ok(sums.with(tensor.index, gradient).unwrap_or_default())
        };
        self.list.iter().enumerate().map(of).collect()
    }

    /// The gradients of scales, in their units, from those of the weights.
    fn of_fields(
        &self,
        tensor: &TrainedTensor,
        parameter: &Parameter,
        of_weights: &[f32],
    ) -> Result<Vec<f32>, TrainError> {
        let (Some(codes), Some(base)) = (parameter.codes(), self.base(tensor.index)) else {
            return Ok(Vec::new());
        };
        let mut gradients =
            (codes.gradients(of_weights)).map_err(|error| TrainError::Parameter {
                name: parameter.name.clone(),
                problem: error.to_string(),
            })?;
        for (gradient, unit) in gradients.iter_mut().zip(codes.units(base)) {
            *gradient *= unit;
        }
        Ok(gradients)
    }

    /// What parameter `index` was computed from at first.
    fn base(&self, index: usize) -> Option<&[f32]> {
        let found = self.base.binary_search_by_key(&index, |(index, _)| *index);
        found.ok().map(|at| &self.base[at].1[..])
    }

    /// One step: clips the gradients to a norm of `clip`, changes the tensors and the
    /// model, and gives the norm from before. Nothing is changed where it is not
    /// finite.
    ///
    /// # Errors
    /// When LoRA's sum is not the parameter's size, which cannot be.
    pub fn step(
        &mut self,
        model: &mut Model,
        sums: &Gradients,
        at: (AdamOptions, f64, u64),
        clip: Option<f32>,
    ) -> Result<f64, TrainError> {
        let ready = self.ready(model, sums)?;
        if ready.norm.is_finite() {
            self.apply(model, sums, &ready, at, clip)?;
        }
        Ok(ready.norm)
    }

    /// The gradients of a step that is still to be taken.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn ready(&self, model: &Model, sums: &Gradients) -> Result<Ready, TrainError> {
        let own = self.gradients(model, sums)?;
        let square = |(tensor, own): (&TrainedTensor, &Vec<f32>)| match tensor.kind {
            Kind::Whole => sums
                .with(tensor.index, |sum| ops::squares(sum))
                .unwrap_or(0.0),
            Kind::Down | Kind::Up | Kind::Scales => ops::squares(own),
        };
        let squares = self.list.iter().zip(&own).map(square);
        let norm = squares.sum::<f64>().sqrt();
        Ok(Ready { own, norm })
    }

    /// Takes the step with the gradients of `sums`, which are `ready`.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn apply(
        &mut self,
        model: &mut Model,
        sums: &Gradients,
        ready: &Ready,
        (options, rate, step): (AdamOptions, f64, u64),
        clip: Option<f32>,
    ) -> Result<(), TrainError> {
        let norm = ready.norm;
        let scale = match clip {
            Some(clip) if norm > f64::from(clip) => (f64::from(clip) / norm) as f32,
            _ => 1.0,
        };
        let of = |decays| AdamStep {
            options,
            rate,
            step,
            scale,
            decays,
        };
        for (tensor, gradient) in self.list.iter_mut().zip(&ready.own) {
            if tensor.kind != Kind::Whole {
                let decays = tensor.kind != Kind::Scales;
                of(decays).apply(&mut tensor.values, gradient, &mut tensor.moments);
            }
        }
        self.merge(model)?;
        if self.list.iter().all(|tensor| tensor.kind != Kind::Whole) {
            return Ok(());
        }
        let mut tensors = self.list.iter_mut().filter(|t| t.kind == Kind::Whole);
        let mut next = tensors.next();
        let decays: Vec<bool> = model
            .parameters()
            .list()
            .iter()
            .map(|p| p.rows > 1)
            .collect();
        model.parameters_mut().change(|index, values| {
            let Some(tensor) = next.take_if(|tensor| tensor.index == index) else {
                return;
            };
            sums.with(index, |sum| {
                of(decays[index]).apply(values, sum, &mut tensor.moments);
            });
            next = tensors.next();
        });
        Ok(())
    }

    /// Puts LoRA's W + s B A, or weights with their new scales, into the model.
    fn merge(&self, model: &mut Model) -> Result<(), TrainError> {
        if self.train == Train::Scales {
            for tensor in self.list.iter().filter(|t| t.kind == Kind::Scales) {
                let codes = model.parameters().list()[tensor.index].codes();
                let (Some(codes), Some(base)) = (codes, self.base(tensor.index)) else {
                    continue;
                };
                let moved = base.iter().zip(codes.units(base)).zip(&tensor.values);
                let fields: Vec<f32> = moved.map(|((base, unit), by)| base + unit * by).collect();
                model.parameters_mut().set_fields(tensor.index, &fields)?;
            }
            return Ok(());
        }
        for ((index, base), pair) in self.base.iter().zip(self.list.chunks_exact(2)) {
            let parameter = &model.parameters().list()[*index];
            let (rows, columns) = (parameter.rows, parameter.columns);
            let (a, b) = (&pair[0].values, &pair[1].values);
            let rank = a.len() / columns;
            let mut values = base.clone();
            let a = matrix(a, rank, columns);
            let b = matrix(b, rows, rank);
            product(
                matrix_mut(&mut values, rows, columns),
                true,
                b,
                a,
                LORA_SCALE,
            );
            model.parameters_mut().set(*index, values)?;
        }
        Ok(())
    }

    /// Sets the numbers of all tensors, in the list's order, and the model with them.
    ///
    /// # Errors
    /// When they are not as many.
    pub fn restore(&mut self, model: &mut Model, values: Vec<Vec<f32>>) -> Result<(), TrainError> {
        for (tensor, values) in self.list.iter_mut().zip(values) {
            match tensor.kind {
                Kind::Whole => model.parameters_mut().set(tensor.index, values)?,
                Kind::Down | Kind::Up | Kind::Scales if values.len() == tensor.values.len() => {
                    tensor.values = values;
                }
                Kind::Down | Kind::Up | Kind::Scales => {
                    return Err(TrainError::Parameter {
                        name: tensor.name.clone(),
                        problem: format!("{} numbers", values.len()),
                    });
                }
            }
        }
        self.merge(model)
    }
}
