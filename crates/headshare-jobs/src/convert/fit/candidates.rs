//! Plans that are really made, to see which is best.

use crate::convert::calibrate::is_own;
use headshare_convert::convert;
use headshare_convert::fit::{self, FitError};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::Plan;
use headshare_convert::quantize::takes;

use super::budget::{Budget, MadeToFit, Tried, as_planned};
use crate::convert::Convert;
use crate::convert::calibrate::Calibration;
use crate::{Error, Quiet, Ui, Unit};

/// Windows that a plan is made with to see how good it is, at most.
const TRIED_WITH: u32 = 8;

impl Convert {
    /// The best of `candidates`, which are made with a few of the windows and measured on
    /// others. The first one where that cannot be told.
    pub(super) fn best_of(
        &self,
        candidates: Vec<(Plan, MadeToFit)>,
        budget: &Budget,
        source: &ModelFile,
        ui: &dyn Ui,
    ) -> Result<Option<(Plan, MadeToFit)>, Error> {
        let tried = match candidates.len() {
            0 | 1 => None,
            _ => self.tried(&candidates, budget, source, &|_, _| (), ui)?,
        };
        let Some(tried) = tried else {
            if candidates.len() > 1 {
                ui.remark(
                    "note: the windows are too few to make several plans and measure them on others: the one that is predicted to be best is taken",
                );
            }
            return Ok(candidates.into_iter().next());
        };
        if tried.iter().all(|of| of.measured.is_none()) {
            return Err(budget.about(source, FitError::NoNumbers));
        }
        let measured = |i: &usize| tried[*i].measured.unwrap_or(f64::INFINITY);
        let best = (0..tried.len()).min_by(|a, b| measured(a).total_cmp(&measured(b)));
        let best = candidates.into_iter().nth(best.unwrap_or(0));
        Ok(best.map(|(plan, fit)| (plan, MadeToFit { tried, ..fit })))
    }

    /// What `candidates` really cost, made with a few of the windows and measured on others;
    /// `None` where the windows are too few. `tell` is told of each.
    pub(super) fn tried(
        &self,
        candidates: &[(Plan, MadeToFit)],
        budget: &Budget,
        source: &ModelFile,
        tell: &dyn Fn(usize, &Tried),
        ui: &dyn Ui,
    ) -> Result<Option<Vec<Tried>>, Error> {
        let ready = (budget.calibration).prepare(source, takes(source), true, &Quiet)?;
        let Some(some) = budget.some_of(ready.windows.count) else {
            return Ok(None);
        };
        let made_with = match is_own(&some.text) {
            // What the model writes itself begins with the same windows, however many there are.
            true => {
                let some = some.windows as usize * ready.windows.window as usize;
                ready.windows.tokens[..some].to_vec()
            }
            false => {
                some.prepare(source, takes(source), true, &Quiet)?
                    .windows
                    .tokens
            }
        };
        let bar = ui.bar("comparing", candidates.len() as u64, Unit::Parts);
        let mut tried = Vec::new();
        for (i, (plan, fit)) in candidates.iter().enumerate() {
            let job = Self {
                fit: None,
                quantize: Some(as_planned(&some)),
                ..self.clone()
            };
            let mut plan = Some(plan.clone());
            let (fitted, ..) = job.fit(source, &mut plan, None, None, &Quiet)?;
            if let Some(plan) = &mut plan {
                source.digest().clone_into(&mut plan.source);
            }
            let made = convert::prepare(source, plan, fitted, self.page()?)?.into_read()?;
            let (windows, options) = (&ready.windows, &ready.options);
            let measured = fit::divergence(source, &made, (windows, &made_with), options)?;
            let of = Tried {
                predicted: fit.predicted,
                measured,
            };
            tell(i, &of);
            tried.push(of);
            bar.set(i as u64 + 1);
        }
        Ok(Some(tried))
    }
}

impl Budget {
    /// The text, with so many of `windows` that every other one of them is left to measure
    /// on; `None` where they are too few.
    pub(super) fn some_of(&self, windows: u32) -> Option<Calibration> {
        // Windows are spread evenly, so these are among the even ones where they divide half.
        let half = windows / 2;
        let divides = |n: &u32| half.is_multiple_of(*n) && windows.is_multiple_of(2);
        let some = (2..=TRIED_WITH).rev().chain([half]).find(divides);
        let windows = some.unwrap_or(half.min(TRIED_WITH));
        (windows >= 2).then(|| Calibration {
            windows,
            ..self.calibration.clone()
        })
    }
}
