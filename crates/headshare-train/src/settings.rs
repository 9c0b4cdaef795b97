//! How a model is trained.

use serde::{Deserialize, Serialize};

use crate::adam::AdamOptions;
use crate::error::TrainError;
use crate::schedule::Schedule;
use crate::trained::Train;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is trained, as [`Train`] is written.
    pub train: String,
    /// Learning rates, and the number of steps.
    pub schedule: Schedule,
    /// The optimiser's options.
    pub adam: AdamOptions,
    /// The largest norm of all gradients together.
    pub clip: Option<f32>,
    /// Windows computed at once: they decide what memory it takes.
    pub batch: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// Weight of the language-model loss.
    pub language: f32,
    /// Weight of the divergence from the other model; needs one.
    pub distillation: f32,
    /// Weight of the relative distance from the other model's residual stream; needs one of
    /// as many layers and the same width.
    #[serde(default)]
    pub hidden: f32,
    /// Weight of the distance of paired heads; needs pairs.
    pub gamma: f32,
    /// Whether paired heads stay apart in the end. Otherwise they are evaluated as they will
    /// share, and the numbers that do best so are taken; apart, those of the last step.
    #[serde(default)]
    pub apart: bool,
    /// Evaluate after every so many steps, and after the last; 0 for never.
    pub evaluate_every: u64,
    /// Decides the order of windows, and LoRA's beginning.
    pub seed: u64,
}

impl Default for Settings {
    /// The paper's, but for the number of steps, which is 1.
    fn default() -> Self {
        Self {
            train: Train::All.to_string(),
            schedule: Schedule {
                peak: 5e-5,
                floor: 0.1,
                warmup: 0,
                steps: 1,
            },
            adam: AdamOptions::default(),
            clip: Some(1.0),
            batch: 4,
            accumulate: 1,
            language: 1.0,
            distillation: 0.0,
            hidden: 0.0,
            gamma: 0.5,
            apart: false,
            evaluate_every: 0,
            seed: 0,
        }
    }
}

impl Settings {
    /// Whether anything is learned from another model.
    pub fn learns_from_other(&self) -> bool {
        self.distillation > 0.0 || self.hidden > 0.0
    }

    /// What is trained, where there is another model or not, and pairs or not.
    ///
    /// # Errors
    /// When the settings make no sense together; names the one.
    pub fn check(&self, teacher: bool, pairs: bool) -> Result<Train, TrainError> {
        let wrong = |field, problem: &str| Err(TrainError::option(field, problem));
        let train = self.train.parse();
        let train = train.map_err(|problem: String| TrainError::option("train", problem))?;
        let is_weight = |w: f32| w.is_finite() && w >= 0.0;
        if self.batch == 0 || self.accumulate == 0 {
            return wrong("batch", "a step needs at least one window");
        }
        let weights = [
            ("language", self.language),
            ("distillation", self.distillation),
            ("hidden", self.hidden),
            ("gamma", self.gamma),
        ];
        if let Some((field, _)) = weights.into_iter().find(|(_, weight)| !is_weight(*weight)) {
            return wrong(field, "weights of losses are finite and not negative");
        }
        let learns = self.learns_from_other();
        if learns && !teacher {
            return wrong("distillation", "there is no other model to learn from");
        }
        if self.language == 0.0 && !learns && !(pairs && self.gamma > 0.0) {
            return wrong("language", "every loss has the weight 0");
        }
        if pairs && self.gamma > 0.0 && train == Train::Norms {
            return wrong(
                "train",
                "norms are no part of heads: no pair would come closer",
            );
        }
        let betas = [self.adam.beta1, self.adam.beta2];
        if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return wrong("adam", "betas are at least 0 and below 1");
        }
        if !(self.schedule.peak.is_finite() && self.schedule.peak >= 0.0) {
            return wrong("schedule", "the learning rate is finite and not negative");
        }
        if self.clip.is_some_and(|clip| clip.is_nan() || clip <= 0.0) {
            return wrong("clip", "the largest norm is more than 0");
        }
        Ok(train)
    }
}
