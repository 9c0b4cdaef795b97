//! Gradients of whole models.

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::model::{AttentionMap, Part, RowsRange, UnitId};
use headshare_train::loss::pairs::HeadPairs;
use headshare_train::loss::{Distillation, Objective, loss_and_gradients, losses};
use headshare_train::{Gradients, Model};

use crate::support::{every_architecture, loaded, preset, windows, written};

const LANGUAGE: Objective<'static> = Objective {
    language: 1.0,
    distillation: None,
};

fn gradient(sums: &Gradients, index: usize) -> Vec<f32> {
    sums.with(index, |sum| sum.to_vec()).unwrap()
}

/// The model with every parameter moved by `step` times a direction of its own, and
/// the slope along it that the gradients tell.
fn moved(file_model: &mut Model, sums: &Gradients, step: f64) -> f64 {
    let names: Vec<String> = (file_model.parameters().list().iter())
        .map(|p| p.name.clone())
        .collect();
    let mut slope = 0.0;
    for (i, name) in names.iter().enumerate() {
        if file_model.is_constant(i) {
            continue;
        }
        let g = gradient(sums, i);
        let values = file_model.parameters().list()[i].values();
        // Against the gradient's sign, so that the parts do not cancel out, and by as
        // much as the numbers are large.
        let size = values.iter().fold(0f32, |a, v| a.max(v.abs()));
        let along = |i: usize, g: f32| {
            let part = ((i * 7919) % 101) as f32 / 101.0 + 0.5;
            f64::from(part * size * if g < 0.0 { -1.0 } else { 1.0 })
        };
        let new = values.iter().zip(&g).enumerate();
        let new: Vec<f32> = new
            .map(|(i, (v, g))| {
                slope += along(i, *g) * f64::from(*g);
                (f64::from(*v) + step * along(i, *g)) as f32
            })
            .collect();
        file_model.set(name, new).unwrap();
    }
    slope
}

#[test]
fn every_parameter_of_every_architecture_has_one_and_it_is_right() {
    let both = |spec| [(spec, false), (spec, true)];
    for (spec, distil) in every_architecture().iter().flat_map(both) {
        let (_folder, file) = written(spec);
        let windows = windows(spec.n_vocab as usize, 2, 24);
        let model = loaded(&file);
        let teacher_spec = headshare_testmodels::ModelSpec {
            seed: 5,
            ..spec.clone()
        };
        let (_other, teacher_file) = written(&teacher_spec);
        let teacher = loaded(&teacher_file);
        let objective = match distil {
            false => LANGUAGE,
            true => Objective {
                language: 0.6,
                distillation: Some(Distillation {
                    teacher: &teacher,
                    divergence: 0.7,
                    hidden: 0.3,
                }),
            },
        };
        let (found, sums) = loss_and_gradients(&model, &windows, &objective).unwrap();
        let loss = found.total(&objective);
        assert_eq!(losses(&model, &windows, &objective).unwrap(), found);
        for (i, parameter) in model.parameters().list().iter().enumerate() {
            if model.is_constant(i) {
                assert!(!sums.has(i));
                continue;
            }
            let g = gradient(&sums, i);
            let none = g.iter().filter(|g| **g == 0.0).count();
            assert!(g.iter().all(|g| g.is_finite()));
            // Few tokens and positions come up; a shift of keys changes nothing, so
            // that its gradient is rounding, of which some is 0.
            let most = match parameter.name.as_str() {
                "token_embd.weight" | "position_embd.weight" => g.len() - 1,
                name if name.ends_with("bias") => g.len() / 8,
                _ => 0,
            };
            assert!(
                none <= most,
                "{}: {}: {none} of {} are 0",
                spec.arch,
                parameter.name,
                g.len()
            );
        }
        let along = |step: f64| {
            let mut model = loaded(&file);
            let slope = moved(&mut model, &sums, step);
            (
                losses(&model, &windows, &objective)
                    .unwrap()
                    .total(&objective),
                slope,
            )
        };
        let slopes = [4e-4, 2e-4].map(|h| (along(h).0 - along(-h).0) / (2.0 * h));
        let expected = (4.0 * slopes[1] - slopes[0]) / 3.0;
        let slope = along(0.0).1;
        let off = (slope - expected).abs() / expected.abs();
        println!(
            "{}: loss {loss:.4}, slope {slope:.5} {expected:.5}",
            spec.arch
        );
        assert!(off < 5e-3, "{}: {slope} {expected}", spec.arch);

        // Keeping activations changes no bit.
        let mut keeping = loaded(&file);
        keeping.keep_layers(if distil { 2 } else { 99 });
        let (kept_losses, kept_sums) = loss_and_gradients(&keeping, &windows, &objective).unwrap();
        assert_eq!(kept_losses, found);
        for i in (0..model.parameters().list().len()).filter(|&i| !model.is_constant(i)) {
            assert!(gradient(&sums, i) == gradient(&kept_sums, i));
        }

        let mut plain = loaded(&file).with_candle_operations();
        plain.keep_layers(usize::from(distil));
        let (plain_losses, plain_sums) = loss_and_gradients(&plain, &windows, &objective).unwrap();
        assert!((plain_losses.total(&objective) - loss).abs() < 1e-5 * loss.abs());
        for (i, parameter) in model.parameters().list().iter().enumerate() {
            if model.is_constant(i) {
                continue;
            }
            let (own, plain) = (gradient(&sums, i), gradient(&plain_sums, i));
            let largest = plain.iter().fold(0f32, |a, v| a.max(v.abs()));
            for (a, b) in own.iter().zip(&plain) {
                let off = (a - b).abs();
                assert!(
                    off < 1e-4 * largest + 1e-7,
                    "{}: {}: {a} {b}",
                    spec.arch,
                    parameter.name
                );
            }
        }
    }
}

/// The rows of the parts of two units.
pub fn blocks(map: &AttentionMap, a: UnitId, b: UnitId) -> Vec<(RowsRange, RowsRange)> {
    let rows = |part| Some((map.block(a, part)?, map.block(b, part)?));
    Part::ALL.into_iter().filter_map(rows).collect()
}

pub fn unit(layer: u32, unit: u32) -> UnitId {
    UnitId { layer, unit }
}

#[test]
fn a_tied_blocks_gradient_is_the_sum() {
    for spec in [preset("tiny-gqa"), preset("tiny-gpt2")] {
        let (_folder, file) = written(&spec);
        let map = AttentionMap::of(&file.gguf).unwrap();
        let mut ties = blocks(&map, unit(2, 1), unit(0, 0));
        ties.extend(blocks(&map, unit(3, 0), unit(0, 0)));
        let variant = Variant::unchanged(&file);
        let tied = Model::load(&variant, &ties, &Device::Cpu).unwrap();
        // The same numbers, not tied.
        let mut apart = loaded(&file);
        for parameter in tied.parameters().list() {
            apart
                .set(&parameter.name, parameter.values().to_vec())
                .unwrap();
        }
        let windows = windows(spec.n_vocab as usize, 2, 16);
        let (a, tied_sums) = loss_and_gradients(&tied, &windows, &LANGUAGE).unwrap();
        let (b, sums) = loss_and_gradients(&apart, &windows, &LANGUAGE).unwrap();
        assert_eq!(a, b);
        let numbers = |range: &RowsRange| {
            let row = file.gguf.tensors()[range.tensor].row_bytes();
            let columns = tied.parameters().list()[range.tensor].columns;
            let at = |offset: u64| (offset / row) as usize * columns;
            at(range.offset)..at(range.offset + range.len)
        };
        for pairs in ties.chunks(3).take(1) {
            for (part, (alias, donor)) in pairs.iter().enumerate() {
                let other = &ties[3 + part].0;
                let of = |range: &RowsRange| gradient(&sums, range.tensor)[numbers(range)].to_vec();
                let whole = gradient(&tied_sums, donor.tensor)[numbers(donor)].to_vec();
                let parts = [of(donor), of(alias), of(other)];
                for (i, sum) in whole.iter().enumerate() {
                    let expected: f32 = parts.iter().map(|part| part[i]).sum();
                    assert!((sum - expected).abs() <= 1e-5 * expected.abs() + 1e-8);
                }
                let left = gradient(&tied_sums, alias.tensor)[numbers(alias)].to_vec();
                assert!(left.iter().all(|g| *g == 0.0));
                let list = tied.parameters().list();
                let equal = list[alias.tensor].values()[numbers(alias)].to_vec();
                assert_eq!(equal, list[donor.tensor].values()[numbers(donor)]);
            }
        }
    }
}

#[test]
fn the_distance_of_heads_is_the_papers_and_has_its_gradient() {
    let spec = preset("tiny-gqa");
    let (_folder, file) = written(&spec);
    let variant = Variant::unchanged(&file);
    let map = AttentionMap::of(&file.gguf).unwrap();
    // Nothing is between these two.
    let alike = blocks(&map, unit(1, 1), unit(0, 1));
    let new_model = || {
        let mut model = loaded(&file);
        model.parameters_mut().tie(&variant, &alike).unwrap();
        model.parameters_mut().tie(&variant, &[]).unwrap();
        model
    };
    let pairs = [
        blocks(&map, unit(2, 1), unit(0, 0)),
        blocks(&map, unit(3, 1), unit(1, 0)),
        alike.clone(),
    ];
    let model = new_model();
    let pairs_of_parts = pairs.to_vec();
    let pairs = HeadPairs::new(&model, &variant, &pairs, 3).unwrap();
    assert_eq!(pairs.len(), 3);
    // By hand: rows of q, k and v.
    let value = |name: &str, rows: std::ops::Range<usize>| {
        let index = model.parameters().index(name).unwrap();
        model.parameters().list()[index].values()[rows.start * 64..rows.end * 64].to_vec()
    };
    let distance = |a: Vec<f32>, b: Vec<f32>| {
        let each = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2));
        each.sum::<f64>().sqrt()
    };
    let first = distance(
        value("blk.2.attn_q.weight", 32..64),
        value("blk.0.attn_q.weight", 0..32),
    ) + distance(
        value("blk.2.attn_k.weight", 8..16),
        value("blk.0.attn_k.weight", 0..8),
    ) + distance(
        value("blk.2.attn_v.weight", 8..16),
        value("blk.0.attn_v.weight", 0..8),
    );
    let distances = pairs.distances(&model);
    assert!((distances[0] - first).abs() < 1e-6 && distances[2] == 0.0);
    let loss = pairs.loss(&model);
    assert!((loss - distances.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    // q, k and v paired apart are as many pairs.
    let apart = pairs_of_parts.concat();
    let apart: Vec<_> = apart.into_iter().map(|block| vec![block]).collect();
    let apart = HeadPairs::new(&model, &variant, &apart, 3).unwrap();
    assert_eq!(apart.len(), 9);
    assert!((apart.loss(&model) - loss).abs() < 1e-12);

    let sums = Gradients::zeros(model.parameters(), |_| true);
    assert_eq!(pairs.add_gradients(&model, 0.5, &sums), loss);
    let along = |step: f64| {
        let mut model = new_model();
        let slope = moved(&mut model, &sums, step);
        (0.5 * pairs.loss(&model), slope)
    };
    let expected = (along(1e-3).0 - along(-1e-3).0) / 2e-3;
    let slope = along(0.0).1;
    assert!(
        (slope - expected).abs() < 2e-3 * expected,
        "{slope} {expected}"
    );
}

/// Predictions and hidden states of `teacher` alone.
fn learning_from(teacher: &Model) -> Objective<'_> {
    Objective {
        language: 0.0,
        distillation: Some(Distillation {
            teacher,
            divergence: 1.0,
            hidden: 1.0,
        }),
    }
}

#[test]
fn a_model_learns_nothing_from_itself() {
    let (_folder, file) = written(&preset("tiny-qwen3"));
    let model = loaded(&file);
    let windows = windows(320, 2, 20);
    let objective = learning_from(&model);
    let (losses, sums) = loss_and_gradients(&model, &windows, &objective).unwrap();
    assert!(losses.distillation.abs() < 1e-4, "{losses:?}");
    assert_eq!(losses.hidden, 0.0);
    for i in 0..model.parameters().list().len() {
        assert!(gradient(&sums, i).iter().all(|g| g.abs() < 1e-6));
    }
    let (_other, file) = written(&headshare_testmodels::ModelSpec {
        n_vocab: 330,
        ..preset("tiny-qwen3")
    });
    let other = loaded(&file);
    let objective = learning_from(&other);
    let error = loss_and_gradients(&model, &windows, &objective).unwrap_err();
    assert!(
        error.to_string().contains("vocabulary is 330, not 320"),
        "{error}"
    );
    let (_other, file) = written(&headshare_testmodels::ModelSpec {
        n_layer: 3,
        ..preset("tiny-qwen3")
    });
    let other = loaded(&file);
    let mut objective = learning_from(&other);
    let error = loss_and_gradients(&model, &windows, &objective).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("3 layers of width 64, not 4 of 64"),
        "{error}"
    );
    // Predictions alone can be learned from it.
    if let Some(of) = &mut objective.distillation {
        of.hidden = 0.0;
    }
    let (losses, _) = loss_and_gradients(&model, &windows, &objective).unwrap();
    assert!(losses.distillation > 0.0 && losses.hidden == 0.0);
}
