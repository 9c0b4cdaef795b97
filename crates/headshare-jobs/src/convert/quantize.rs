//! Quantizing: which types, and what weights are fitted to.

use std::path::{Path, PathBuf};

use headshare_convert::convert::{Fitted, UNKNOWN_DIGEST, digest_of};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Choice, Plan};
use headshare_convert::quantize::imatrix;
use headshare_convert::quantize::importance::Importances;
use headshare_convert::quantize::types::Wanted;
use headshare_convert::quantize::{self, By, Counts, Fit, QuantizeRecord, Settings, Types};
use headshare_convert::repair::{Record, SurveyRecord};
use serde::{Deserialize, Serialize};

use super::calibrate::{Calibration, Ready};
use crate::{Error, Ui, Unit};

/// What a model is quantized to, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// The types.
    pub wanted: Wanted,
    /// What weights are encoded by.
    pub with: With,
    /// Quantizes what is quantized already, too.
    pub allow_requantize: bool,
}

/// What weights are encoded by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum With {
    /// ggml's rounding.
    Rounding,
    /// ggml's rounding, with an importance matrix.
    Imatrix {
        /// Its file, as llama-imatrix writes it (GGUF).
        #[serde(with = "crate::path")]
        file: PathBuf,
    },
    /// A text that weights are fitted to.
    Calibration {
        /// The text.
        calibration: Calibration,
        /// How, where something else than the default is wanted.
        settings: Option<Settings>,
        /// Where to write an importance matrix of the text.
        save_imatrix: Option<PathBuf>,
    },
}

/// How a model was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// To what, and by what.
    #[serde(flatten)]
    pub record: QuantizeRecord,
    /// How the matrices were made; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrices: Option<Counts>,
    /// Tensors whose rows are no whole blocks of the type that they should have.
    pub fell_back: Vec<FellBack>,
}

/// Tensors that got another type than they should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FellBack {
    /// The type that rows are no whole blocks of.
    pub from: String,
    /// The type that they got.
    pub to: String,
    /// How many tensors.
    pub tensors: usize,
}

impl Quantization {
    /// The text that weights are fitted to.
    pub(super) fn calibration(&self) -> Option<&Calibration> {
        match &self.with {
            With::Calibration { calibration, .. } => Some(calibration),
            _ => None,
        }
    }

    /// The file that is read beside the model.
    pub(super) fn input(&self) -> Option<&PathBuf> {
        match &self.with {
            With::Rounding => None,
            With::Imatrix { file } => Some(file),
            With::Calibration { calibration, .. } => Some(&calibration.text),
        }
    }

    /// The types of what `plan` makes of `source`.
    pub(super) fn types(&self, source: &ModelFile, plan: Option<Plan>) -> Result<Types, Error> {
        let unplanned = || Plan::new(UNKNOWN_DIGEST.to_owned(), Choice::default(), Vec::new());
        let plan = plan.unwrap_or_else(unplanned);
        quantize::assign(source, plan, &self.wanted, self.allow_requantize)
            .map_err(|error| Error::from(error).about(source.path().display()))
    }

    /// Encodes; a dry run says only what would be done.
    ///
    /// With `repair` the layers after the plan's other edits, which were chosen by
    /// its content, are refitted, too.
    pub(super) fn encode(
        &self,
        source: &ModelFile,
        types: &Types,
        calibration: Option<&Ready>,
        repair: Option<Option<SurveyRecord>>,
        dry_run: bool,
        ui: &dyn Ui,
    ) -> Result<(Fitted, Option<Record>, Quantized), Error> {
        let to = self.wanted.to.clone();
        let about = |error| Error::from(error).about(source.path().display());
        let fell_back = (types.assigned.fell_back.iter())
            .map(|((from, to), &tensors)| FellBack {
                from: from.name().to_owned(),
                to: to.name().to_owned(),
                tensors,
            })
            .collect();
        let mut longest = None;
        let (by, encoded) = match (&self.with, calibration) {
            (
                With::Calibration {
                    settings,
                    save_imatrix,
                    calibration,
                },
                Some(ready),
            ) => {
                if let Some(path) = save_imatrix {
                    self.measure(source, calibration, ready, path, ui)?;
                }
                let how = Fit {
                    windows: &ready.windows,
                    options: &ready.options,
                    settings: settings.unwrap_or_default(),
                    repair: repair.is_some(),
                };
                if let Some(choice) = &repair {
                    let record = types.longest_repair(source, how, choice.clone())?;
                    longest = Some(record);
                }
                let fit = || {
                    let bar = ui.bar("quantizing", 1000, Unit::Parts);
                    types.fit(source, how, &|done| bar.part(done))
                };
                let encoded = (!dry_run).then(fit).transpose().map_err(about)?;
                (By::Calibration(Types::record(how)), encoded)
            }
            (With::Imatrix { file }, _) => {
                let (of, digest) = read_imatrix(file, source)?;
                let round = || types.round(source, &of);
                let encoded = (!dry_run).then(round).transpose().map_err(about)?;
                (By::Imatrix { digest }, encoded)
            }
            _ => {
                types.check_rounding(&Importances::new()).map_err(about)?;
                let round = || types.round(source, &Importances::new());
                let encoded = (!dry_run).then(round).transpose().map_err(about)?;
                (By::Rounding, encoded)
            }
        };
        let record = QuantizeRecord { to, by };
        let mut encoded = encoded.unwrap_or_default();
        if let (Some(done), Some(choice)) = (&mut encoded.repair, repair) {
            done.choice = choice;
        }
        let matrices = (!dry_run).then_some(encoded.counts);
        let repaired = encoded.repair.clone();
        let fitted = encoded.into_fitted(types, &record, longest.as_ref());
        let done = Quantized {
            record,
            matrices,
            fell_back,
        };
        Ok((fitted, repaired, done))
    }
}

impl Quantization {
    /// The importance matrix that is written beside the model, if one is.
    pub(super) fn saved(&self) -> Option<&PathBuf> {
        match &self.with {
            With::Calibration { save_imatrix, .. } => save_imatrix.as_ref(),
            _ => None,
        }
    }

    fn measure(
        &self,
        source: &ModelFile,
        calibration: &Calibration,
        ready: &Ready,
        path: &Path,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let bar = ui.bar("measuring", 1000, Unit::Parts);
        let (windows, options) = (&ready.windows, &ready.options);
        let of = quantize::measure(source, windows, options, &|done| bar.part(done))
            .map_err(|error| Error::from(error).about(source.path().display()))?;
        let read = (windows.count, windows.window);
        let dataset = calibration.text.display().to_string();
        imatrix::write(&of, &dataset, read, path, true)?;
        Ok(())
    }
}

/// The importance matrix in `file`, which is one of `source`, and its digest.
fn read_imatrix(file: &Path, source: &ModelFile) -> Result<(Importances, String), Error> {
    let of = imatrix::read(file)?;
    if let Some(problem) = imatrix::mismatch(&of, &source.gguf) {
        let model = source.path().display();
        let error = Error::bad_input(format!("it is of another model than {model}: {problem}"));
        return Err(error.about(file.display()));
    }
    Ok((of, digest_of(&ModelFile::open_plain(file)?)))
}
