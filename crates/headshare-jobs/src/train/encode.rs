//! What was trained becomes data of a file again: plain numbers and scales as they are,
//! other quantized tensors with codes that are fitted to the text, at the types that they
//! had or at others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use headshare_convert::convert::variant::{Variant, is_left_alone};
use headshare_convert::convert::{self, Fitted};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Choice, Edit, Plan, Store};
use headshare_convert::quantize::QuantizerError;
use headshare_convert::quantize::types::Wanted;
use headshare_files::{AtomicFile, ScratchFile};
use headshare_format::{GgmlType, TensorInfo};
use headshare_train::{Model, Train, export};

use crate::convert::{Calibration, Change, Convert, Quantization, Quantized, With};
use crate::error::Context as _;
use crate::{Error, Ui};

/// Types that are not quantized.
const PLAIN: [&str; 3] = ["f32", "f16", "bf16"];

/// How numbers are encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoding<'a> {
    /// The text that weights are fitted to.
    pub text: &'a Calibration,
    /// Other types than the tensors had.
    pub wanted: Option<&'a Wanted>,
}

/// New data of tensors, and what a plan says of their types.
pub(super) struct Encoded {
    pub fitted: Fitted,
    /// Types that differ from those before.
    pub stores: Vec<Edit>,
    /// The mixture's number in `general.file_type`, where types were changed.
    pub file_type: Option<u32>,
    pub quantized: Option<Quantized>,
}

impl Encoding<'_> {
    /// Whether weights have to be fitted to the text once `train` has changed those of
    /// tensors like these.
    pub fn fits(self, train: Train, tensors: &[TensorInfo]) -> bool {
        let keeps_codes = matches!(train, Train::Scales | Train::Norms);
        self.wanted.is_some() || !keeps_codes && tensors.iter().any(is_quantized)
    }

    /// The same where the text is read for it: plain numbers are only rounded.
    pub fn reads_text(self, train: Train, tensors: &[TensorInfo]) -> bool {
        self.fits(train, tensors) && !self.wanted.is_some_and(is_all_plain)
    }

    /// The data of `model`, which was trained from `variant` of `source`: what `plan`
    /// makes of it, with `start` data in it.
    pub fn encode(
        self,
        (source, variant): (&ModelFile, &Variant<'_>),
        plan: &Plan,
        start: Fitted,
        model: Model,
        ui: &dyn Ui,
    ) -> Result<Encoded, Error> {
        let mut changed = export::changed(variant, &model)?;
        let tensors = variant.gguf().tensors();
        if self.wanted.is_some() {
            // All of it is encoded anew, also what was not trained.
            let is_encoded = |info: &&TensorInfo| info.dims.len() > 1 && !is_left_alone(&info.name);
            for info in tensors.iter().filter(is_encoded) {
                changed.stored.remove(&info.name);
                if let Some(index) = model.parameters().index(&info.name) {
                    let numbers = model.parameters().list()[index].values().to_vec();
                    changed.numbers.insert(info.name.clone(), numbers);
                }
            }
        }
        drop(model);
        let mut encoded = Encoded {
            fitted: start,
            stores: Vec::new(),
            file_type: None,
            quantized: None,
        };
        let data = &mut encoded.fitted.tensors;
        data.extend(changed.stored);
        if changed.numbers.is_empty() {
            return Ok(encoded);
        }
        let names: BTreeSet<String> = changed.numbers.keys().cloned().collect();
        let mut all: BTreeMap<String, Vec<u8>> = data.clone();
        for (name, numbers) in changed.numbers {
            all.insert(name, numbers.iter().flat_map(|v| v.to_le_bytes()).collect());
        }
        // The numbers are not in memory meanwhile.
        let scratch = {
            let mut in_f32 = Variant::new(source, &in_f32(plan, tensors, &names), None)?;
            in_f32.fill(all);
            convert::write_plain_to_scratch(&in_f32)?
        };
        let file = ModelFile::open_plain(scratch.path())?;
        let mut without = names;
        let quantization = self.quantization(tensors);
        if quantization.changes(&file)? {
            let change = Convert {
                quantize: Some(quantization),
                ..Convert::new(scratch.path(), scratch.path(), Change::Lossless)
            };
            let about = || format!("the trained weights of {}", source.path().display());
            let planned = change.planned(&file, true, ui).about(about)?;
            without.retain(|name| !planned.fitted.tensors.contains_key(name));
            data.extend(planned.fitted.tensors);
            encoded.fitted.by.quantized = planned.fitted.by.quantized;
            encoded.quantized = planned.quantized;
            if let (Some(_), Some(types)) = (self.wanted, planned.plan) {
                encoded.file_type = types.choice.file_type;
                encoded.stores = types.edits;
            }
        }
        // What gets no other type keeps its numbers.
        for name in without {
            let Some(info) = file.gguf.tensor(&name) else {
                continue;
            };
            let bytes = file.bytes(file.gguf.data_range(info)).to_vec();
            let had = variant.gguf().tensor(&name).map(|info| info.ggml_type);
            if had != Some(GgmlType::F32) {
                encoded.stores.push(in_f32_edit(&name));
            }
            data.insert(name, bytes);
        }
        Ok(encoded)
    }

    /// Finds out whether there is room for a file of so many bytes, and for the numbers that are
    /// encoded.
    pub fn check_room(
        self,
        (output, bytes): (&Path, u64),
        train: Train,
        variant: &Variant<'_>,
    ) -> Result<(), Error> {
        let tensors = variant.gguf().tensors();
        let is_trained = |info: &TensorInfo| {
            self.wanted.is_some() || train != Train::Attention || info.name.contains(".attn_")
        };
        let numbers = |info: &TensorInfo| match is_trained(info) {
            true => 4 * info.row_elems() * info.rows(),
            false => info.byte_len(),
        };
        if self.fits(train, tensors) {
            drop(ScratchFile::create(tensors.iter().map(numbers).sum())?);
        }
        // How large it is with other types is not known yet.
        if self.wanted.is_none() {
            drop(AtomicFile::create(output, bytes, true, &[])?);
        }
        Ok(())
    }

    /// Finds types that cannot be, for the model that `variant` is.
    pub fn check(self, variant: &Variant<'_>) -> Result<(), Error> {
        let Some(wanted) = self.wanted else {
            return Ok(());
        };
        let assigned = wanted.assign(variant.gguf(), &|_| false, true);
        assigned.map_err(QuantizerError::from)?;
        Ok(())
    }

    /// What gives the numbers among `tensors` their types.
    fn quantization(self, tensors: &[TensorInfo]) -> Quantization {
        let with = match self.wanted {
            Some(wanted) if is_all_plain(wanted) => With::Rounding,
            _ => With::Calibration {
                calibration: self.text.clone(),
                settings: None,
                save_imatrix: None,
            },
        };
        Quantization {
            wanted: Some(
                self.wanted
                    .cloned()
                    .unwrap_or_else(|| Wanted::exactly(tensors, &BTreeMap::new())),
            ),
            with,
            allow_requantize: false,
        }
    }
}

fn is_all_plain(wanted: &Wanted) -> bool {
    let is_plain = |name: &str| PLAIN.contains(&name.to_ascii_lowercase().as_str());
    is_plain(&wanted.to) && wanted.overrides.iter().all(|(_, to)| is_plain(to))
}

fn is_quantized(info: &TensorInfo) -> bool {
    !PLAIN.contains(&info.ggml_type.name())
}

/// Stores the tensor `name` as F32.
fn in_f32_edit(name: &str) -> Edit {
    Edit::Store(Store {
        tensor: name.to_owned(),
        ggml_type: GgmlType::F32,
    })
}

/// `plan` without what it shares, and with tensors called `names` as F32.
fn in_f32(plan: &Plan, tensors: &[TensorInfo], names: &BTreeSet<String>) -> Plan {
    let stays = |edit: &&Edit| match edit {
        Edit::Share(_) => false,
        Edit::Store(store) => !names.contains(&store.tensor),
        _ => true,
    };
    let store = |info: &TensorInfo| in_f32_edit(&info.name);
    let is_to_be =
        |info: &&TensorInfo| names.contains(&info.name) && info.ggml_type != GgmlType::F32;
    let stored = tensors.iter().filter(is_to_be).map(store);
    let edits = plan.edits.iter().filter(stays).cloned().chain(stored);
    Plan::new(plan.source.clone(), Choice::default(), edits.collect())
}
