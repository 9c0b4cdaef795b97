//! Which architectures can be repaired.

use super::error::RepairError;
use crate::model::{AttentionMap, Residual};

/// Refuses models that repair has no derivation for.
///
/// # Errors
/// [`RepairError::Unsupported`].
pub fn check_supported(map: &AttentionMap) -> Result<(), RepairError> {
    let architecture = map.architecture;
    let why = if architecture.encoder_only {
        "it is an encoder, without the logits that repair is about"
    } else {
        match architecture.residual {
            Residual::Sequential => return Ok(()),
            Residual::Parallel => {
                "attention and feed-forward read the same input, which repair has no derivation for"
            }
            Residual::Varies => {
                "its layers are not all attention first, feed-forward second, as repair needs"
            }
        }
    };
    Err(RepairError::Unsupported {
        architecture: architecture.name.to_owned(),
        why: why.to_owned(),
    })
}
