//! What was trained becomes a file again: its weights get the types that they had, fitted
//! to the text, and what shares is stored once.

use std::collections::BTreeMap;

use headshare_convert::convert::{self, variant::Variant};
use headshare_convert::input::ModelFile;
use headshare_convert::model::RowsRange;
use headshare_convert::plan::{Choice, Edit, Plan, Store};
use headshare_convert::quantize::types::Wanted;
use headshare_format::{GgmlType, TensorInfo};
use headshare_train::Model;

use super::TrainModel;
use crate::convert::{Calibration, Change, Convert, Converted, FileSize, Quantization, With};
use crate::{Error, Ui};

/// Writes `model`, which was trained from `variant`, whose `rows` (alias, donor) share.
pub(super) fn write(
    job: &TrainModel,
    source: &ModelFile,
    variant: &Variant<'_>,
    plan: &Plan,
    model: &Model,
    rows: &[Vec<(RowsRange, RowsRange)>],
    ui: &dyn Ui,
) -> Result<Converted, Error> {
    let mut numbers: Vec<Vec<f32>> = (model.parameters().list().iter())
        .map(|parameter| parameter.values().to_vec())
        .collect();
    for (alias, donor) in rows.iter().flatten() {
        let [from, to] = [donor, alias].map(|range| elements(variant, range));
        let taken = numbers[donor.tensor][from].to_vec();
        numbers[alias.tensor][to].copy_from_slice(&taken);
    }
    // All of it in F32, with nothing shared by name: what is equal is found.
    let tensors = variant.gguf().tensors();
    let kept = plan
        .edits
        .iter()
        .filter(|edit| !matches!(edit, Edit::Share(_) | Edit::Store(_)));
    let store = |info: &TensorInfo| {
        Edit::Store(Store {
            tensor: info.name.clone(),
            ggml_type: GgmlType::F32,
        })
    };
    let stored = tensors
        .iter()
        .filter(|info| info.ggml_type != GgmlType::F32);
    let edits = kept.cloned().chain(stored.map(store)).collect();
    let plain = Plan::new(plan.source.clone(), Choice::default(), edits);
    let mut trained = Variant::new(source, &plain, None)?;
    let bytes = |values: &Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let data: BTreeMap<String, Vec<u8>> = (tensors.iter().zip(&numbers))
        .map(|(info, values)| (info.name.clone(), bytes(values)))
        .collect();
    trained.fill(data);
    let scratch = convert::write_to_scratch(&trained)?;
    drop((trained, numbers));
    let quantize = Quantization {
        wanted: types_of(tensors),
        with: With::Calibration {
            calibration: Calibration {
                window: job.text.window.max(8),
                ..job.text.clone()
            },
            settings: None,
            save_imatrix: None,
        },
        allow_requantize: false,
    };
    let is_plain = |info: &TensorInfo| ["f32", "f16", "bf16"].contains(&info.ggml_type.name());
    let quantize = match tensors.iter().all(is_plain) {
        true => Quantization {
            with: With::Rounding,
            ..quantize
        },
        false => quantize,
    };
    let convert = Convert {
        quantize: Some(quantize),
        force: job.force,
        ..Convert::new(scratch.path(), &job.output, Change::Lossless)
    };
    let mut done = convert.run(ui)?;
    done.source = FileSize {
        path: source.path().display().to_string(),
        bytes: source.len(),
    };
    done.saved.file_bytes = source.len() as i64 - done.output.bytes as i64;
    Ok(done)
}

/// The numbers of the tensor that `range` are.
fn elements(variant: &Variant<'_>, range: &RowsRange) -> std::ops::Range<usize> {
    let info = &variant.gguf().tensors()[range.tensor];
    let row = info.row_bytes().max(1);
    let of = |bytes: u64| (bytes / row * info.row_elems()) as usize;
    of(range.offset)..of(range.offset + range.len)
}

/// The types that tensors have now.
fn types_of(tensors: &[TensorInfo]) -> Wanted {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for info in tensors {
        *bytes.entry(info.ggml_type.name()).or_default() += info.byte_len();
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    let pattern = |info: &TensorInfo| {
        let name = info.name.replace('.', "\\.");
        (format!("^{name}$"), info.ggml_type.name().to_owned())
    };
    let matrices = tensors.iter().filter(|info| info.dims.len() > 1);
    Wanted {
        to: most.map_or("f32", |(name, _)| name).to_owned(),
        pure: true,
        overrides: matrices.map(pattern).collect(),
    }
}
