//! Training what is in front of codes: the file holds what was trained, to the bit.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::ModelFile;
use headshare_convert::model::{AttentionMap, Part, RowsRange, UnitId};
use headshare_format::GgmlType;
use headshare_testmodels::ModelSpec;
use headshare_train::{Model, Train, Trainer, export};

use crate::support::{preset, written};
use crate::training::{settings, text};

/// A model with codes, plain numbers and a tensor whose scales cannot be trained.
pub fn mixed() -> ModelSpec {
    let named = |name: &str| GgmlType::named(name).unwrap();
    ModelSpec {
        weight_type: named("q4_1"),
        types: vec![
            ("ffn_down.weight".to_owned(), named("mxfp4")),
            ("ffn_up.weight".to_owned(), named("q8_0")),
            ("output.weight".to_owned(), named("f16")),
        ],
        ..preset("tiny-gqa")
    }
}

/// The rows of two units' keys, of which the second are the first's from now on.
fn ties(file: &ModelFile) -> Vec<(RowsRange, RowsRange)> {
    let map = AttentionMap::of(&file.gguf).unwrap();
    let block = |layer| map.block(UnitId { layer, unit: 0 }, Part::K).unwrap();
    vec![(block(2), block(1))]
}

pub fn model(variant: &Variant<'_>, ties: &[(RowsRange, RowsRange)]) -> Model {
    let mut model = Model::load(variant, ties, &Device::Cpu).unwrap();
    model.parameters_mut().keep_codes(variant).unwrap();
    model
}

#[test]
fn a_file_with_trained_scales_computes_what_was_trained() {
    let (_folder, file) = written(&mixed());
    let ties = ties(&file);
    let mut variant = Variant::unchanged(&file);
    let model = model(&variant, &ties);
    // Training nothing changes nothing, but for rows that are another's.
    let unchanged = export::changed(&variant, &model).unwrap();
    assert!(unchanged.stored.is_empty() && unchanged.numbers.is_empty());
    let mut settings = settings(Train::Scales, 24);
    settings.schedule.peak = 1e-2;
    let mut trainer = Trainer::new(model, settings, text(), None, None, None).unwrap();
    let mut losses = Vec::new();
    trainer
        .run(&AtomicBool::new(false), &mut |p| losses.push(p.loss))
        .unwrap();
    assert!(losses[23] < losses[0] - 0.1, "{losses:?}");
    let trained = trainer.into_best().unwrap();
    let changed = export::changed(&variant, &trained).unwrap();
    assert!(changed.numbers.is_empty());
    let has = |name: &str| changed.stored.contains_key(name);
    assert!(has("blk.0.attn_q.weight") && has("blk.0.ffn_up.weight"));
    assert!(has("blk.3.attn_norm.weight") && has("token_embd.weight"));
    // No scales of its own, and no codes.
    assert!(!has("blk.0.ffn_down.weight") && !has("output.weight"));
    variant.fill(changed.stored);
    // The tied rows are equal in the file, too.
    let rows = |range: &RowsRange| {
        let data = variant.tensor_data(range.tensor).unwrap();
        data[range.offset as usize..(range.offset + range.len) as usize].to_vec()
    };
    assert!(rows(&ties[0].0) == rows(&ties[0].1));
    let again = Model::load(&variant, &[], &Device::Cpu).unwrap();
    let lists = (trained.parameters().list(), again.parameters().list());
    for (a, b) in lists.0.iter().zip(lists.1) {
        assert!(a.values() == b.values(), "{}", a.name);
    }
}

#[test]
fn numbers_of_other_tensors_are_what_codes_are_wanted_for() {
    let (_folder, file) = written(&mixed());
    let variant = Variant::unchanged(&file);
    let model = Model::load(&variant, &[], &Device::Cpu).unwrap();
    let settings = settings(Train::Attention, 2);
    let mut trainer = Trainer::new(model, settings, text(), None, None, None).unwrap();
    trainer.run(&AtomicBool::new(false), &mut |_| ()).unwrap();
    let trained = trainer.into_best().unwrap();
    let changed = export::changed(&variant, &trained).unwrap();
    let attention = |name: &String| name.contains("attn_") && !name.contains("norm");
    let names: Vec<&String> = changed.numbers.keys().collect();
    assert!(
        names.len() >= 12 && names.iter().all(|n| attention(n)),
        "{names:?}"
    );
    // The outputs' type ends like the head's: both are plain numbers.
    let is_output = |name: &String| name.ends_with(".attn_output.weight");
    assert!(changed.stored.len() == 4 && changed.stored.keys().all(is_output));
}
