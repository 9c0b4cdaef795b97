//! A trained model back as the tensors of a file.

use std::collections::BTreeMap;

use headshare_convert::convert::variant::{Variant, is_left_alone};
use headshare_format::TensorInfo;
use headshare_runtime::quants::{QuantError, dequantize_row, quantize_rows, type_info};

use crate::error::TrainError;
use crate::model::Model;
use crate::parameters::Parameter;

/// What training has changed.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    /// Tensors as they are stored, at the types that they had, by name: plain numbers,
    /// and codes whose scales were trained.
    pub stored: BTreeMap<String, Vec<u8>>,
    /// Numbers of quantized tensors, row after row, which codes have to be found for.
    pub numbers: BTreeMap<String, Vec<f32>>,
}

/// What `model`, which was loaded from `variant`, has other than that: beside rows that
/// are tied, which are their donors' in any case.
///
/// # Errors
/// Names the tensor whose numbers its type cannot hold.
pub fn changed(variant: &Variant<'_>, model: &Model) -> Result<Changed, TrainError> {
    let mut changed = Changed::default();
    let list = model.parameters().list();
    let tensors = variant.gguf().tensors();
    let is_one = |(info, p): (&TensorInfo, &Parameter)| {
        info.name == p.name && info.dims.iter().product::<u64>() == p.values().len() as u64
    };
    if list.len() != tensors.len() || !tensors.iter().zip(list).all(is_one) {
        let path = variant.source.path().display();
        let problem = format!("the trained model is not one of the tensors of {path}");
        return Err(TrainError::option("variant", problem));
    }
    for (i, (info, parameter)) in tensors.iter().zip(list).enumerate() {
        let was = model.parameters().stored(variant, i)?;
        let about = |error| TrainError::Weights {
            path: variant.source.path().to_owned(),
            tensor: info.name.clone(),
            error,
        };
        let is_plain = type_info(info.ggml_type.id()).is_some_and(|t| !t.is_quantized);
        if is_plain {
            let bytes = encoded(info.ggml_type.id(), parameter).map_err(about)?;
            if bytes != was {
                changed.stored.insert(info.name.clone(), bytes);
            }
            continue;
        }
        let mut numbers = vec![0.0; parameter.values().len()];
        dequantize_row(info.ggml_type.id(), &was, &mut numbers).map_err(about)?;
        model.parameters().put_silence(i, &mut numbers);
        if numbers == parameter.values() {
            continue;
        }
        let bytes = match model.parameters().codes(i)? {
            Some(bytes) => bytes,
            // No codes are looked for where llama.cpp's quantizer leaves a matrix alone.
            None if is_left_alone(&info.name) => {
                encoded(info.ggml_type.id(), parameter).map_err(about)?
            }
            None => {
                let numbers = parameter.values().to_vec();
                changed.numbers.insert(info.name.clone(), numbers);
                continue;
            }
        };
        changed.stored.insert(info.name.clone(), bytes);
    }
    Ok(changed)
}

/// Numbers at a type, rounded.
fn encoded(ggml_type: u32, parameter: &Parameter) -> Result<Vec<u8>, QuantError> {
    quantize_rows(ggml_type, parameter.values(), parameter.columns, None)
}
