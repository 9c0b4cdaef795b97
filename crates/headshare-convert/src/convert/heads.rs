//! Where the heads of a source are.

use super::error::ConvertError;
use crate::input::ModelFile;
use crate::model::AttentionMap;

/// Where the heads of `source` are.
///
/// # Errors
/// When the architecture, a tensor or a layer does not allow sharing heads.
pub fn attention_map(source: &ModelFile) -> Result<AttentionMap, ConvertError> {
    AttentionMap::of(&source.gguf).map_err(|error| ConvertError::model(source, error))
}
