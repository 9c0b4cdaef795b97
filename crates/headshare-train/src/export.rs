//! A trained model back as a variant, which is written, quantised or run like any
//! other.

use std::collections::BTreeMap;

use headshare_convert::convert::variant::Variant;
use headshare_convert::model::About;
use headshare_format::GgmlType;

use crate::error::TrainError;
use crate::model::Model;

/// Puts the model's numbers in the place of the tensors of `variant`, all of which are
/// F32: the variant that the model was loaded from, with its types changed
/// ([`Variant::with_types`]). Quantising is for those who know how.
///
/// # Errors
/// Names the tensor that is not F32, or not the model's.
pub fn fill(variant: &mut Variant<'_>, model: &Model) -> Result<(), TrainError> {
    let error = |name: &str, reason: String| TrainError::Unsupported {
        path: variant.source.path().to_owned(),
        architecture: model.config().kind.name.to_owned(),
        place: About::Tensor(name.to_owned()),
        reason,
    };
    let mut data = BTreeMap::new();
    for info in variant.gguf().tensors() {
        let name = info.name.as_str();
        if info.ggml_type != GgmlType::F32 {
            let reason = format!("is {}; trained numbers are put into F32", info.ggml_type);
            return Err(error(name, reason));
        }
        let parameter = model.parameters().index(name);
        let values = parameter.map(|i| model.parameters().list()[i].values());
        let bytes: Option<Vec<u8>> = values
            .filter(|values| 4 * values.len() as u64 == info.byte_len())
            .map(|values| values.iter().flat_map(|v| v.to_le_bytes()).collect());
        let bytes = bytes.ok_or_else(|| error(name, "is not in the trained model".to_owned()))?;
        data.insert(info.name.clone(), bytes);
    }
    variant.fill(data);
    Ok(())
}
