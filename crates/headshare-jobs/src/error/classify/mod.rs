//! What kind of error each of the crates below has found, and what can be done
//! about it.

#[cfg(feature = "train")]
mod training;

use headshare_convert::baseline::BaselineError;
use headshare_convert::convert::variant::ShapeError;
use headshare_convert::convert::{ConvertError, Damage};
use headshare_convert::encode::QuantizeError;
use headshare_convert::engine::EngineError;
use headshare_convert::fit::FitError;
use headshare_convert::fit::StatisticsError;
use headshare_convert::input::InputError;
use headshare_convert::matching::MatchError;
use headshare_convert::model;
use headshare_convert::plan::PlanError;
use headshare_convert::quantize::QuantizerError;
use headshare_convert::quantize::types::TypesError;
use headshare_convert::repair::RepairError;
use headshare_convert::repair::choose::SurveyError;
use headshare_eval::analyze::AnalyzeError;
use headshare_eval::eval::EvalError;
use headshare_eval::eval::choice::ChoiceError;
use headshare_eval::eval::generate::PromptError;
use headshare_eval::eval::task_file::TaskError;
use headshare_eval::report::ReportError;
use headshare_files::FileError;
use headshare_format::FormatError;
use headshare_runtime::calibrate::CalibrateError;
use headshare_runtime::own_text::OwnTextError;
use headshare_runtime::stitched::StitchError;
use headshare_runtime::{ContextError, GenerateError, ModelError, SamplerError};

use super::{Advice, Error, Kind};

/// An error of a crate below, whose kind is known.
pub trait Classify: std::error::Error + Send + Sync + 'static {
    /// Whose fault it is.
    fn kind(&self) -> Kind;

    /// What can be done about it.
    fn advice(&self) -> Option<Advice> {
        None
    }
}

impl<E: Classify> From<E> for Error {
    fn from(error: E) -> Self {
        Self {
            kind: error.kind(),
            advice: error.advice(),
            source: error.into(),
        }
    }
}

impl Classify for FileError {
    fn kind(&self) -> Kind {
        match self {
            Self::SameFile { .. } | Self::Exists { .. } => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Exists { .. } => Some(Advice::Overwrite),
            Self::SameFile { .. } => Some(Advice::AnotherOutput),
            Self::NoSpace { .. } => Some(Advice::MoreSpace),
            error if error.is_out_of_memory() => Some(Advice::MoreMemory),
            _ => None,
        }
    }
}

impl Classify for InputError {
    fn kind(&self) -> Kind {
        match self {
            Self::File(error) if error.is_out_of_memory() => Kind::Failed,
            // Not there, a folder, a pipe, or not what it must be.
            _ => Kind::BadInput,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::File(error) => error.advice(),
            Self::Content { error, .. } => of_format(error),
            Self::NotNumbers { .. } => Some(Advice::GoodCopy),
        }
    }
}

fn of_format(error: &FormatError) -> Option<Advice> {
    use headshare_format::Advice as Said;
    Some(match error.advice.as_ref()? {
        Said::Words(words) => Advice::Words(words.clone()),
        Said::StartFromExpanded => Advice::StartFromExpanded,
        Said::Expand => Advice::Expand,
        Said::UseNewer => Advice::UseNewer,
        Said::EditPlainFile => Advice::EditPlainFile,
        _ => return None,
    })
}

impl Classify for model::HeadsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Format(_) => Kind::BadInput,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::NotAModel(_) | Self::NotShareable { .. } | Self::UnknownArchitecture(_) => {
                Some(Advice::LosslessNeedsNoHeads)
            }
            Self::Converted => Some(Advice::ExpandFirst),
            Self::Format(error) => of_format(error),
        }
    }
}

impl Classify for ShapeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Model(_) => Kind::BadInput,
            Self::Units(_) => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Model(error) => of_format(error),
            Self::Units(_) => Some(Advice::ShareOnly),
        }
    }
}

impl Classify for MatchError {
    fn kind(&self) -> Kind {
        Kind::Failed
    }

    fn advice(&self) -> Option<Advice> {
        matches!(self, Self::NonFinite { .. }).then_some(Advice::LosslessComparesBytes)
    }
}

impl Classify for BaselineError {
    fn kind(&self) -> Kind {
        match self {
            Self::Ratio(error) => error.kind(),
            Self::NotFinite { .. } => Kind::BadInput,
            Self::Weights { .. } | Self::Missing { .. } => Kind::Failed,
        }
    }
}

impl Classify for PlanError {
    fn kind(&self) -> Kind {
        Kind::BadInput
    }
}

impl Classify for SurveyError {
    fn kind(&self) -> Kind {
        Kind::BadInput
    }

    fn advice(&self) -> Option<Advice> {
        Some(Advice::MeasureAgain)
    }
}

impl Classify for StatisticsError {
    fn kind(&self) -> Kind {
        Kind::BadInput
    }

    fn advice(&self) -> Option<Advice> {
        Some(Advice::MeasureAgain)
    }
}

impl Classify for Damage {
    fn kind(&self) -> Kind {
        Kind::CheckFailed
    }

    fn advice(&self) -> Option<Advice> {
        Some(match self.is_of_header() {
            true => Advice::EditPlainFile,
            false => Advice::Damaged,
        })
    }
}

impl Classify for ConvertError {
    fn kind(&self) -> Kind {
        match self {
            Self::Input(error) => error.kind(),
            Self::File(error) => error.kind(),
            Self::Model { error, .. } => error.kind(),
            Self::Plan(error) => error.kind(),
            Self::Damaged(damage) => damage.kind(),
            Self::WrongSource { .. } => Kind::BadInput,
            Self::Shape { error, .. } => error.kind(),
            Self::Encode { .. } => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Input(error) => error.advice(),
            Self::File(error) => error.advice(),
            Self::Model { error, .. } => error.advice(),
            Self::Plan(error) => error.advice(),
            Self::Damaged(damage) => damage.advice(),
            Self::WrongSource { .. } => Some(Advice::PlanAgain),
            Self::Shape { error, .. } => error.advice(),
            Self::Encode { .. } => None,
        }
    }
}

impl Classify for EngineError {
    fn kind(&self) -> Kind {
        match self {
            Self::Memory { .. } | Self::WindowTooLong { .. } => Kind::Usage,
            Self::TextTooShort { .. }
            | Self::Vocab(_)
            | Self::NotFinite { .. }
            | Self::NotNumbers(_) => Kind::BadInput,
            Self::Model(error) => error.kind(),
            Self::Calibrate(error) => of_calibrator(error),
            Self::OwnText(OwnTextError::Context(error)) => error.kind(),
            Self::OwnText(OwnTextError::Sampler(error)) => error.kind(),
            Self::OwnText(OwnTextError::NoText) => Kind::BadInput,
            Self::OwnText(OwnTextError::NoLogits) | Self::Thread(_) | Self::Internal(_) => {
                Kind::Failed
            }
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::TextTooShort { .. } => Some(Advice::MoreText),
            Self::Memory { needed, .. } => Some(Advice::RaiseBound(*needed)),
            Self::WindowTooLong { positions, .. } => {
                Some(Advice::CalibrationWindowAtMost(*positions))
            }
            Self::NotFinite { .. } => Some(Advice::TryModel),
            Self::NotNumbers(error) => error.advice(),
            _ => None,
        }
    }
}

/// A model that llama.cpp cannot load or run is bad input, if that is its fault.
fn of_calibrator(error: &CalibrateError) -> Kind {
    match error {
        CalibrateError::Model(error) if is_of_file(error) => Kind::BadInput,
        CalibrateError::Context(error) if is_of_model(error) => Kind::BadInput,
        _ => Kind::Failed,
    }
}

impl Classify for TypesError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown { .. }
            | Self::UnknownOf { .. }
            | Self::Pattern { .. }
            | Self::Rows { .. }
            | Self::Requantized { .. } => Kind::Usage,
            Self::Missing(_) | Self::Mixture(_) => Kind::BadInput,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Requantized { .. } => Some(Advice::AllowRequantize),
            Self::Rows { name, .. } => Some(Advice::TypeFor(name.clone())),
            _ => None,
        }
    }
}

impl Classify for QuantizerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Types(error) => error.kind(),
            Self::Convert(error) => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Repair(error) => error.kind(),
            Self::NeedsImportances { .. } | Self::OneType { .. } | Self::Nothing(_) => Kind::Usage,
            Self::Tensor { .. } | Self::NotFinite { .. } => Kind::BadInput,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::NeedsImportances { .. } => Some(Advice::Calibrate),
            Self::Types(error) => error.advice(),
            Self::Convert(error) => error.advice(),
            Self::Engine(error) => error.advice(),
            Self::Repair(error) => error.advice(),
            Self::Tensor { error, .. } => match error {
                QuantizeError::Singular => Some(Advice::MoreDamping),
                QuantizeError::Ggml(_) | QuantizeError::Shape { .. } => None,
            },
            Self::OneType { .. } | Self::Nothing(_) => None,
            Self::NotFinite { .. } => Some(Advice::GoodCopy),
        }
    }
}

impl Classify for FitError {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownType { .. }
            | Self::TooSmall { .. }
            | Self::FitsAlready { .. }
            | Self::InMemoryAlready { .. }
            | Self::NoMemory { .. }
            | Self::NotInMemory { .. }
            | Self::NotMeasured { .. } => Kind::Usage,
            Self::NoMoves | Self::Weights { .. } | Self::NotFinite { .. } => Kind::BadInput,
            Self::NoNumbers => Kind::Failed,
            Self::Convert(error) => error.kind(),
            Self::Run(error) => error.kind(),
            Self::Sharing(error) => error.kind(),
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Convert(error) => error.advice(),
            Self::Run(error) => error.advice(),
            Self::Sharing(error) => error.advice(),
            _ => None,
        }
    }
}

impl Classify for RepairError {
    fn kind(&self) -> Kind {
        match self {
            Self::Engine(error) => error.kind(),
            Self::Convert(error) => error.kind(),
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Engine(error) => error.advice(),
            Self::Convert(error) => error.advice(),
            _ => None,
        }
    }
}

impl Classify for AnalyzeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Convert(error) => error.kind(),
            Self::Input(error) => error.kind(),
            Self::CtxTooLarge { .. } => Kind::Usage,
            Self::Match { .. } | Self::Context(_) | Self::NoMemory { .. } => Kind::Failed,
            _ => Kind::BadInput,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Convert(error) => error.advice(),
            Self::Match { error, .. } => error.advice(),
            Self::Input(error) => error.advice(),
            Self::TextTooShort { .. } | Self::CtxTooLarge { .. } => {
                Some(Advice::SmallerWindow(None))
            }
            _ => None,
        }
    }
}

impl Classify for EvalError {
    fn kind(&self) -> Kind {
        match self {
            Self::WindowTooLarge { .. } => Kind::Usage,
            error if error.is_bad_input() => Kind::BadInput,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::TextTooShort {
                n_tokens, at_least, ..
            } if *n_tokens >= *at_least as usize => {
                // A round number, as people give.
                Some(Advice::SmallerWindow(Some(1 << n_tokens.ilog2())))
            }
            Self::EmptyText | Self::TextTooShort { .. } => Some(Advice::LongerText),
            Self::WindowTooLarge { n_positions, .. } => Some(Advice::WindowAtMost(*n_positions)),
            Self::Vocabularies(_) => Some(Advice::SameModel),
            _ => None,
        }
    }
}

impl Classify for ChoiceError {
    fn kind(&self) -> Kind {
        match self {
            Self::Context(_) => Kind::Failed,
            _ => Kind::BadInput,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            // The last token is predicted and needs no place.
            Self::TooLong { tokens, .. } => Some(Advice::LargerContext(*tokens as u64)),
            Self::NoFirstToken { .. } => Some(Advice::GiveContext),
            Self::NoTokens { .. } => Some(Advice::AnotherContinuation),
            Self::NotANumber { .. } => Some(Advice::GoodCopy),
            Self::Vocab(_) | Self::Context(_) => None,
        }
    }
}

impl Classify for TaskError {
    fn kind(&self) -> Kind {
        Kind::BadInput
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Line { hint, .. } | Self::Content { hint, .. } => hint.clone().map(Advice::Words),
            _ => None,
        }
    }
}

impl Classify for ReportError {
    fn kind(&self) -> Kind {
        match self {
            Self::File(error) => error.kind(),
            error if error.is_usage() => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::File(error) => error.advice(),
            error if error.is_usage() => Some(Advice::NewFolder {
                is_file: matches!(error, Self::Folder { .. }),
            }),
            _ => None,
        }
    }
}

impl Classify for ModelError {
    fn kind(&self) -> Kind {
        match self {
            Self::Stitch(error) => error.kind(),
            error if is_of_file(error) => Kind::BadInput,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Stitch(error) => error.advice(),
            _ => None,
        }
    }
}

impl Classify for StitchError {
    fn kind(&self) -> Kind {
        match self {
            Self::File(error) => error.kind(),
            Self::Unsupported => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::File(error) => error.advice(),
            _ => None,
        }
    }
}

impl Classify for ContextError {
    fn kind(&self) -> Kind {
        match is_of_model(self) {
            true => Kind::BadInput,
            false => Kind::Failed,
        }
    }
}

impl Classify for GenerateError {
    fn kind(&self) -> Kind {
        match self {
            Self::PromptTooLong { .. } | Self::EmptyPrompt => Kind::Usage,
            Self::Model(ModelError::NotGenerative { .. }) | Self::Vocab(_) => Kind::BadInput,
            Self::Context(error) => error.kind(),
            Self::Sampler(error) => error.kind(),
            _ => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::PromptTooLong { .. } => Some(Advice::LargerContextOrShorterPrompt),
            Self::EmptyPrompt => Some(Advice::GivePrompt),
            Self::Sampler(error) => error.advice(),
            _ => None,
        }
    }
}

impl Classify for SamplerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Parameter { .. } | Self::Grammar(_) => Kind::Usage,
            Self::NotANumber | Self::Failed(_) => Kind::BadInput,
            Self::GrammarStuck => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Parameter { name, .. } => Some(Advice::SamplingParameter((*name).to_owned())),
            _ => None,
        }
    }
}

impl Classify for PromptError {
    fn kind(&self) -> Kind {
        match &self.source {
            // It stands in a file.
            GenerateError::EmptyPrompt => Kind::BadInput,
            error => error.kind(),
        }
    }
}

/// Whether a file that was given is to blame that no model could be loaded.
fn is_of_file(error: &ModelError) -> bool {
    matches!(
        error,
        ModelError::Open { .. }
            | ModelError::Load { .. }
            | ModelError::Metadata { .. }
            | ModelError::NotGenerative { .. }
    )
}

/// Whether the model is to blame that it cannot be run.
fn is_of_model(error: &ContextError) -> bool {
    matches!(
        error,
        ContextError::Decode(_) | ContextError::NotGenerative { .. }
    )
}
