//! What the loss owes to single weights, to first order: w dL/dw, for LLM-Pruner's
//! importances (Ma et al. 2023, arXiv 2305.11627).

use crate::error::TrainError;
use crate::loss::{Objective, add_gradients, predicted};
use crate::model::Model;
use crate::parameters::Gradients;
use crate::windows::Windows;

/// The products of weights and their gradients.
#[derive(Debug)]
pub struct Products<'a> {
    model: &'a Model,
    gradients: Gradients,
}

impl<'a> Products<'a> {
    /// Those of the parameters that `wanted` names, with the gradients of the mean
    /// cross-entropy over all predicted tokens of `windows`. One window is computed after
    /// the other; `progress` is told how many are done.
    ///
    /// # Errors
    /// When the windows do not fit the model.
    pub fn of(
        model: &'a Model,
        windows: &Windows,
        wanted: impl Fn(&str) -> bool,
        progress: &dyn Fn(u64),
    ) -> Result<Self, TrainError> {
        let list = model.parameters().list();
        let gradients = Gradients::zeros(model.parameters(), |i| wanted(&list[i].name));
        let objective = Objective {
            language: 1.0,
            distillation: None,
        };
        let weight = 1.0 / predicted(windows) as f32;
        for window in 0..windows.count() {
            let one = windows.pick(&[window]);
            add_gradients(model, &one, &objective, weight, &gradients)?;
            progress(window as u64 + 1);
        }
        gradients.fold_ties(model.parameters());
        Ok(Self { model, gradients })
    }

    /// w dL/dw of the parameter `name`, row after row; `None` where it was not wanted.
    pub fn get(&self, name: &str) -> Option<Vec<f32>> {
        let parameters = self.model.parameters();
        let index = parameters.index(name)?;
        let weights = parameters.list()[index].values();
        let times = |sum: &mut [f32]| weights.iter().zip(sum).map(|(w, g)| w * *g).collect();
        self.gradients.with(index, times)
    }
}
