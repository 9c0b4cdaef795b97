//! Products of weights and gradients, which LLM-Pruner's importances are made of.

use headshare_convert::baseline::{Ranking, tensors_of_units};
use headshare_convert::model::{AttentionMap, UnitId};
use headshare_train::importance::Products;
use headshare_train::loss::{Objective, loss_and_gradients, losses};

use crate::support::{every_architecture, loaded, preset, windows, written};

const LANGUAGE: Objective<'static> = Objective {
    language: 1.0,
    distillation: None,
};

#[test]
fn products_are_of_the_mean_over_all_windows() {
    for spec in every_architecture() {
        let (_folder, file) = written(&spec);
        let windows = windows(spec.n_vocab as usize, 3, 16);
        let model = loaded(&file);
        let map = AttentionMap::of(&file.gguf).unwrap();
        let wanted = tensors_of_units(&file, &map).unwrap();
        let steps = std::cell::RefCell::new(Vec::new());
        let wants = |name: &str| wanted.contains(name);
        let progress = |done| steps.borrow_mut().push(done);
        let products = Products::of(&model, &windows, wants, &progress).unwrap();
        assert_eq!(*steps.borrow(), [1, 2, 3]);
        assert!(products.get("token_embd.weight").is_none());
        let (_, all) = loss_and_gradients(&model, &windows, &LANGUAGE).unwrap();
        for name in &wanted {
            let index = model.parameters().index(name).unwrap();
            let weights = model.parameters().list()[index].values();
            let expected = all.with(index, |sum| {
                let products = weights.iter().zip(sum.iter()).map(|(w, g)| w * g);
                products.collect::<Vec<f32>>()
            });
            let (expected, got) = (expected.unwrap(), products.get(name).unwrap());
            let largest = expected.iter().fold(0f32, |a, v| a.max(v.abs()));
            for (a, b) in expected.iter().zip(&got) {
                assert!(
                    (a - b).abs() <= 1e-4 * largest,
                    "{} {name}: {a} {b}",
                    spec.arch
                );
            }
        }
    }
}

/// The slope of the loss where a unit's columns grow, all by the same part, is the sum of
/// the products; and importances are sums of what these are without signs.
#[test]
fn products_are_slopes_and_importances_their_sums() {
    let spec = preset("tiny-gqa");
    let (_folder, file) = written(&spec);
    let windows = windows(spec.n_vocab as usize, 2, 24);
    let mut model = loaded(&file);
    let map = AttentionMap::of(&file.gguf).unwrap();
    let wanted = tensors_of_units(&file, &map).unwrap();
    let read = loaded(&file);
    let products = Products::of(&read, &windows, |name| wanted.contains(name), &|_| ());
    let products = products.unwrap();
    let name = "blk.1.attn_output.weight";
    let index = model.parameters().index(name).unwrap();
    let width = model.parameters().list()[index].columns / 2;
    let weights = model.parameters().list()[index].values().to_vec();
    let own = |i: usize| i % (2 * width) >= width;
    let mut loss = |step: f32| {
        let grown = weights.iter().enumerate();
        let grown = grown.map(|(i, w)| if own(i) { w * (1.0 + step) } else { *w });
        model.set(name, grown.collect()).unwrap();
        losses(&model, &windows, &LANGUAGE)
            .unwrap()
            .total(&LANGUAGE)
    };
    let step = 0.05;
    let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
    let of_unit = products.get(name).unwrap();
    let sum: f64 = (of_unit.iter().enumerate())
        .filter(|(i, _)| own(*i))
        .map(|(_, &p)| f64::from(p))
        .sum();
    assert!(
        (slope - sum).abs() < 0.02 * sum.abs() + 1e-6,
        "{slope} {sum}"
    );

    let ranking = Ranking::llm_pruner(&file, &map, &mut |name| products.get(name)).unwrap();
    let layer = map.layer(1).unwrap();
    let mut naive = 0.0;
    for (name, rows, columns) in [
        (
            "attn_q",
            layer.heads_per_unit() as usize * 8..2 * layer.heads_per_unit() as usize * 8,
            None,
        ),
        ("attn_k", 8..16, None),
        ("attn_v", 8..16, None),
        ("attn_output", 0..64, Some(32..64)),
    ] {
        let values = products.get(&format!("blk.1.{name}.weight")).unwrap();
        for row in values.chunks(64).skip(rows.start).take(rows.len()) {
            let columns = columns.clone().unwrap_or(0..64);
            naive += row[columns].iter().map(|p| f64::from(p.abs())).sum::<f64>();
        }
    }
    let got = ranking.importances()[&UnitId { layer: 1, unit: 1 }];
    assert!((got / naive - 1.0).abs() < 1e-9, "{got} {naive}");
}
