//! Errors of training.

use headshare_train::TrainError;

use super::{Classify, of_format};
use crate::Advice;
use crate::error::Kind;

impl Classify for TrainError {
    fn kind(&self) -> Kind {
        match self {
            Self::Heads { error, .. } => error.kind(),
            Self::Format { .. }
            | Self::Checkpoint { .. }
            | Self::OtherRun { .. }
            | Self::TooShort(_)
            | Self::Windows(_) => Kind::BadInput,
            Self::Options { .. } | Self::Positions { .. } => Kind::Usage,
            Self::Convert(error) => error.kind(),
            Self::File(error) => error.kind(),
            Self::Unsupported { .. }
            | Self::Weights { .. }
            | Self::Tensor(_)
            | Self::Parameter { .. }
            | Self::NotFinite { .. } => Kind::Failed,
        }
    }

    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Heads { error, .. } => error.advice(),
            Self::Format { error, .. } => of_format(error),
            Self::Convert(error) => error.advice(),
            Self::File(error) => error.advice(),
            Self::TooShort(_) => Some(Advice::LongerText),
            Self::Positions { positions, .. } => u32::try_from(*positions)
                .ok()
                .map(Advice::CalibrationWindowAtMost),
            Self::NotFinite { step: 0, .. } => Some(Advice::TryModel),
            Self::NotFinite { kept, .. } => Some(Advice::LowerRate {
                has_state: !kept.is_empty(),
            }),
            Self::OtherRun { field, .. } => Some(Advice::AsBefore(field.clone())),
            _ => None,
        }
    }
}
