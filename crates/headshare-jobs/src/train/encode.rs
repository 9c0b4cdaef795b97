//! What was trained becomes data of a file again: plain numbers and scales as they are,
//! other quantized tensors with codes that are fitted to the text, at the types that they
//! had or at others.

use std::collections::{BTreeMap, BTreeSet};

use headshare_convert::convert::{self, Fitted, variant::Variant};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Choice, Edit, Plan, Store};
use headshare_convert::quantize::types::Wanted;
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
            for info in tensors.iter().filter(|info| info.dims.len() > 1) {
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
        let in_f32 = in_f32(plan, tensors, &names);
        let mut scratch = Variant::new(source, &in_f32, None)?;
        let mut all: BTreeMap<String, Vec<u8>> = data.clone();
        for (name, numbers) in changed.numbers {
            all.insert(name, numbers.iter().flat_map(|v| v.to_le_bytes()).collect());
        }
        scratch.fill(all);
        let scratch = convert::write_plain_to_scratch(&scratch)?;
        let change = Convert {
            quantize: Some(self.quantization(tensors)),
            ..Convert::new(scratch.path(), scratch.path(), Change::Lossless)
        };
        let file = ModelFile::open_plain(scratch.path())?;
        let about = || source.path().display();
        let planned = change.planned(&file, ui).about(about)?;
        data.extend(planned.fitted.tensors);
        encoded.fitted.by.quantized = planned.fitted.by.quantized;
        encoded.quantized = planned.quantized;
        if let (Some(_), Some(types)) = (self.wanted, planned.plan) {
            encoded.file_type = types.choice.file_type;
            encoded.stores = types.edits;
        }
        Ok(encoded)
    }

    /// What gives the numbers among `tensors` their types.
    fn quantization(self, tensors: &[TensorInfo]) -> Quantization {
        let plain = |name: &str| PLAIN.contains(&name);
        let with = match self.wanted {
            Some(wanted) if plain(&wanted.to) => With::Rounding,
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

fn is_quantized(info: &TensorInfo) -> bool {
    !PLAIN.contains(&info.ggml_type.name())
}

/// `plan` without what it shares, and with tensors called `names` as F32.
fn in_f32(plan: &Plan, tensors: &[TensorInfo], names: &BTreeSet<String>) -> Plan {
    let stays = |edit: &&Edit| match edit {
        Edit::Share(_) => false,
        Edit::Store(store) => !names.contains(&store.tensor),
        _ => true,
    };
    let store = |info: &TensorInfo| {
        Edit::Store(Store {
            tensor: info.name.clone(),
            ggml_type: GgmlType::F32,
        })
    };
    let is_to_be =
        |info: &&TensorInfo| names.contains(&info.name) && info.ggml_type != GgmlType::F32;
    let stored = tensors.iter().filter(is_to_be).map(store);
    let edits = plan.edits.iter().filter(stays).cloned().chain(stored);
    Plan::new(plan.source.clone(), Choice::default(), edits.collect())
}
