//! Quantizing: which types, and what weights are fitted to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use headshare_convert::convert::variant::Variant;
use headshare_convert::convert::{Fitted, UNKNOWN_DIGEST, attention_map};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Choice, Edit, Plan};
use headshare_convert::quantize::imatrix;
use headshare_convert::quantize::importance::Importances;
use headshare_convert::quantize::types::{Assigned, TypesError, Wanted};
use headshare_convert::quantize::{
    self, By, Counts, Fit, QuantizeRecord, QuantizerError, Settings, TypedPlan, Unfitted,
};
use headshare_convert::repair::{Record, SurveyRecord, check_supported};
use serde::{Deserialize, Serialize};

use super::calibrate::{Calibration, Ready};
use crate::{Advice, Error, Ui, Unit};

/// What a model is quantized to, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// The types; null stands for those of the plan that is carried out.
    pub wanted: Option<Wanted>,
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
    /// The types are those that a plan gives to each tensor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_plan: bool,
    /// How the matrices were made; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrices: Option<Counts>,
    /// Matrices that could not be fitted as others are; absent where there are none.
    #[serde(default, skip_serializing_if = "Unfitted::is_empty")]
    pub unfitted: Unfitted,
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

    /// The importance matrix that is written beside the model, if one is.
    pub(super) fn saved(&self) -> Option<&PathBuf> {
        match &self.with {
            With::Calibration { save_imatrix, .. } => save_imatrix.as_ref(),
            _ => None,
        }
    }

    /// Whether what `plan` makes of `source` beside its types is repaired in the same pass
    /// without being asked: where the plan says the types, too, and a text is there.
    pub(super) fn repairs(&self, source: &ModelFile, plan: Option<&Plan>) -> bool {
        let is_type = |edit: &Edit| matches!(edit, Edit::Store(_));
        let more = plan.is_some_and(|plan| !plan.edits.iter().all(is_type));
        if !more || self.wanted.is_some() || self.calibration().is_none() {
            return false;
        }
        attention_map(source).is_ok_and(|map| check_supported(&map).is_ok())
    }

    /// `plan`, which makes something of `source`, with the types of that.
    pub(super) fn assign(
        &self,
        source: &ModelFile,
        plan: Option<Plan>,
        ui: &dyn Ui,
    ) -> Result<TypedPlan, Error> {
        let mut plan = plan.unwrap_or_else(unplanned);
        let of_plan;
        let wanted = match &self.wanted {
            Some(wanted) => wanted,
            None => {
                of_plan = types_of(&mut plan, source)?;
                &of_plan
            }
        };
        let typed = quantize::assign(source, plan, wanted, self.allow_requantize)
            .map_err(|error| about_types(source, error))?;
        // A plan's own names are no patterns that a user could have got wrong.
        let unmatched = self.wanted.iter().flat_map(|_| &typed.assigned.unmatched);
        for pattern in unmatched {
            ui.warning(&format!(
                "no name of a tensor that can be quantized contains a match of {pattern}"
            ));
        }
        Ok(typed)
    }

    /// Whether any tensor of `source` gets another type.
    pub(crate) fn changes(&self, source: &ModelFile) -> Result<bool, Error> {
        let Some(wanted) = &self.wanted else {
            return Ok(true);
        };
        let assigned = wanted.assign(&source.gguf, &|_| false, self.allow_requantize);
        let assigned = assigned.map_err(|error| about_types(source, error.into()))?;
        Ok(!assigned.types.is_empty())
    }

    /// Encodes; a dry run says only what would be done.
    pub(super) fn encode(
        &self,
        source: &ModelFile,
        typed: &TypedPlan,
        calibration: Option<&Ready>,
        repair: Option<Beside>,
        dry_run: bool,
        ui: &dyn Ui,
    ) -> Result<(Fitted, Option<Record>, Quantized), Error> {
        let about = |error| Error::from(error).about(source.path().display());
        let mut longest = None;
        let (by, new) = match (&self.with, calibration) {
            (With::Calibration { settings, .. }, Some(ready)) => {
                let how = Fit {
                    windows: &ready.windows,
                    options: &ready.options,
                    settings: settings.unwrap_or_default(),
                    repair: repair.is_some(),
                };
                if let Some(Beside { choice }) = &repair {
                    longest = Some(typed.longest_repair(source, how, choice.clone())?);
                }
                let fit = || {
                    let bar = ui.bar("quantizing", 1000, Unit::Parts);
                    typed.fit(source, how, &|done| bar.part(done))
                };
                let new = (!dry_run).then(fit).transpose().map_err(about)?;
                (By::Calibration(how.record()), new)
            }
            (with, _) => {
                let (of, by) = match with {
                    With::Imatrix { file } => read_imatrix(file, source)?,
                    _ => (Importances::new(), By::Rounding),
                };
                typed.check_rounding(&of).map_err(about)?;
                if let With::Imatrix { file } = with {
                    warn_of_missing(&typed.without_importances(&of), file, ui);
                }
                let round = || typed.round(source, &of);
                (by, (!dry_run).then(round).transpose().map_err(about)?)
            }
        };
        let to = typed.assigned.to.clone();
        let record = QuantizeRecord { to, by };
        let mut new = new.unwrap_or_default();
        if let (Some(done), Some(Beside { choice })) = (&mut new.repair, repair) {
            done.choice = choice;
        }
        let repaired = new.repair.clone();
        let done = Quantized {
            record: record.clone(),
            by_plan: self.wanted.is_none(),
            matrices: (!dry_run).then_some(new.counts),
            unfitted: new.unfitted.clone(),
            fell_back: fell_back(&typed.assigned),
        };
        let fitted = new.into_fitted(typed, &record, longest.as_ref());
        Ok((fitted, repaired, done))
    }

    /// Measures the importance matrix of the calibration's text and writes it, where
    /// one is wanted.
    pub(super) fn save_imatrix(
        &self,
        source: &ModelFile,
        ready: &Ready,
        force: bool,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let (Some(path), Some(calibration)) = (self.saved(), self.calibration()) else {
            return Ok(());
        };
        ready.write_imatrix(source, &calibration.text, (path, force), ui)
    }
}

/// Names `source` in an error, unless it is about the words of the command.
fn about_types(source: &ModelFile, error: QuantizerError) -> Error {
    let is_of_words = matches!(
        error,
        QuantizerError::Types(
            TypesError::Unknown { .. } | TypesError::UnknownOf { .. } | TypesError::Pattern { .. }
        )
    );
    match is_of_words {
        true => error.into(),
        false => Error::from(error).about(source.path().display()),
    }
}

/// Takes the types that `plan` gives to tensors of `source` out of it.
fn types_of(plan: &mut Plan, source: &ModelFile) -> Result<Wanted, Error> {
    // Names the edit that cannot be.
    Variant::new(source, plan, None)?;
    let stores = plan.clone();
    let types = stores.stores().map(|s| (s.tensor.as_str(), s.ggml_type));
    plan.edits.retain(|edit| !matches!(edit, Edit::Store(_)));
    Ok(Wanted::exactly(source.gguf.tensors(), &types.collect()))
}

/// A plan that changes nothing yet.
pub(crate) fn unplanned() -> Plan {
    Plan::new(UNKNOWN_DIGEST.to_owned(), Choice::default(), Vec::new())
}

fn fell_back(assigned: &Assigned) -> Vec<FellBack> {
    let mut tensors: BTreeMap<_, usize> = BTreeMap::new();
    for pair in assigned.fell_back.values() {
        *tensors.entry(*pair).or_default() += 1;
    }
    let all = tensors.into_iter();
    all.map(|((from, to), tensors)| FellBack {
        from: from.name().to_owned(),
        to: to.name().to_owned(),
        tensors,
    })
    .collect()
}

/// Says that `file` has no importances of tensors called `names`.
fn warn_of_missing(names: &[&str], file: &Path, ui: &dyn Ui) {
    if let [first, ..] = names {
        let (n, file) = (names.len(), file.display());
        ui.warning(&format!(
            "{file} has no importances of {n} tensors, such as {first}: they are rounded without"
        ));
    }
}

/// The importance matrix in `file`, which must be one of `source`.
fn read_imatrix(file: &Path, source: &ModelFile) -> Result<(Importances, By), Error> {
    let file = match ModelFile::open_plain(file) {
        Err(_) if is_no_gguf(file) => {
            let problem = "it is no GGUF file: of llama-imatrix's formats this one is read, the older \
                           one (.dat) is not";
            let help = "llama-imatrix --in-file FILE.dat -o FILE.gguf makes one of the other";
            let error = Error::bad_input(problem).advise(Advice::Words(help.into()));
            return Err(error.about(file.display()));
        }
        file => file?,
    };
    let of = imatrix::read(&file)?;
    if let Some(problem) = imatrix::mismatch(&of, &source.gguf) {
        let model = source.path().display();
        let error = Error::bad_input(format!("it is of another model than {model}: {problem}"));
        return Err(error.about(file.path().display()));
    }
    let digest = file.digest().to_owned();
    Ok((of, By::Imatrix { digest }))
}

/// Whether `file` can be read and is something else than a GGUF.
fn is_no_gguf(file: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && &magic != b"GGUF"
}

/// A repair that is carried out in the same pass.
pub(super) struct Beside {
    /// What its units were chosen by, where something was measured for it.
    pub choice: Option<SurveyRecord>,
}
