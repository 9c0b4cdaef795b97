//! What was trained becomes a file again: its weights get the types that they had, fitted
//! to the text, and what shares is stored once.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_convert::convert::{self, variant::Variant};
use headshare_convert::input::ModelFile;
use headshare_convert::model::RowsRange;
use headshare_convert::plan::{Choice, Edit, Plan, Store};
use headshare_convert::quantize::types::Wanted;
use headshare_format::{GgmlType, TensorInfo};
use headshare_train::{Model, export};

use crate::convert::{Calibration, Change, Convert, Converted, FileSize, Quantization, With};
use crate::error::Context as _;
use crate::{Error, Ui};

/// The file to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub path: &'a Path,
    /// Replaces one that is there.
    pub force: bool,
    /// The text that weights are fitted to.
    pub text: &'a Calibration,
}

/// Writes `model`, which was trained from `variant`, whose `rows` (alias, donor) share.
pub(super) fn write(
    output: Output<'_>,
    source: &ModelFile,
    variant: &Variant<'_>,
    plan: &Plan,
    mut model: Model,
    rows: &[Vec<(RowsRange, RowsRange)>],
    ui: &dyn Ui,
) -> Result<Converted, Error> {
    model.parameters_mut().tie(variant, &rows.concat())?;
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
    export::fill(&mut trained, &model)?;
    let in_f32 = trained.tensor_bytes();
    let scratch = convert::write_to_scratch(&trained)?;
    drop((trained, model));
    let convert = Convert {
        quantize: quantization(output.text, tensors),
        force: output.force,
        ..Convert::new(scratch.path(), output.path, Change::Lossless)
    };
    let done = convert.run(ui);
    let mut done = done.about(|| source.path().display())?;
    done.plan = Some(plan.clone());
    done.source = FileSize {
        path: source.path().display().to_string(),
        bytes: source.len(),
    };
    // It was made of numbers in F32; what it saves is less than the source's bytes.
    let resident = (done.saved.resident_bytes + source.tensor_bytes()).saturating_sub(in_f32);
    done.saved.resident_bytes = resident;
    done.saved.file_bytes = source.len() as i64 - done.output.bytes as i64;
    if done.saved.file_bytes < 0 {
        ui.warning(&format!(
            "the output is {} bytes larger than the source",
            -done.saved.file_bytes
        ));
    }
    Ok(done)
}

/// How weights get the types of `tensors` again: fitted to the text; rounded where all
/// are plain numbers, and not at all where they are F32.
fn quantization(text: &Calibration, tensors: &[TensorInfo]) -> Option<Quantization> {
    let all = |names: &[&str]| {
        let is_one = |info: &TensorInfo| names.contains(&info.ggml_type.name());
        tensors.iter().all(is_one)
    };
    if all(&["f32"]) {
        return None;
    }
    let with = match all(&PLAIN) {
        true => With::Rounding,
        false => With::Calibration {
            calibration: text.clone(),
            settings: None,
            save_imatrix: None,
        },
    };
    Some(Quantization {
        wanted: types_of(tensors),
        with,
        allow_requantize: false,
    })
}

/// Types that are not quantized.
const PLAIN: [&str; 3] = ["f32", "f16", "bf16"];

/// The types that tensors have now.
fn types_of(tensors: &[TensorInfo]) -> Wanted {
    // Patterns count only where the main type is a quantized one.
    let is_plain = |info: &&TensorInfo| PLAIN.contains(&info.ggml_type.name());
    let none = tensors.iter().all(|info| is_plain(&info));
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for info in tensors.iter().filter(|info| none || !is_plain(info)) {
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
