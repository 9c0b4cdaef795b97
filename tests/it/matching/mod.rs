//! Matching against a naive oracle, and its rules one by one.

mod grid;
mod oracle;
mod scale;
mod synthetic;

use std::cell::RefCell;

use headshare_gguf::matching::{
    MatchError, MatchFunction, Matching, aliases_for, match_units, rank_units, score_matrices,
};
use headshare_gguf::model::{Part, UnitId};
use proptest::prelude::*;

use synthetic::{Layer, Random, Synthetic};

fn run(blocks: &Synthetic, function: MatchFunction, ratio: f64) -> Matching {
    match_units(blocks, function, ratio, &|_| ()).unwrap()
}

fn id(layer: u32, unit: u32) -> UnitId {
    UnitId { layer, unit }
}

/// (unit, matched, donor) of every alias, as (layer, unit).
fn triples(matching: &Matching) -> Vec<[(u32, u32); 3]> {
    let pair = |id: UnitId| (id.layer, id.unit);
    matching
        .aliases
        .iter()
        .map(|m| [pair(m.unit), pair(m.matched), pair(m.donor)])
        .collect()
}

fn check(name: &str, blocks: &Synthetic, function: MatchFunction, ratio: f64) {
    let what = format!("{name}, {function}, ratio {ratio}");
    let matching = run(blocks, function, ratio);
    let n = (ratio * blocks.ids.len() as f64 + 0.5).floor() as usize;
    assert_eq!(matching.requested, n, "{what}");
    assert_eq!(matching.units, blocks.ids.len(), "{what}");
    let expected = oracle::shares(blocks, function, n);
    assert_eq!(matching.aliases.len(), expected.len(), "{what}");
    let mut last = None;
    for found in &matching.aliases {
        let parts: String = found.parts.iter().map(|part| part.as_str()).collect();
        let key = (found.unit, &*parts);
        let place = (found.unit, found.parts.clone());
        assert!(
            last.as_ref() < Some(&place),
            "{what}: {place:?} after {last:?}"
        );
        last = Some(place);
        let (_, (matched, donor, score)) = expected
            .iter()
            .find(|((unit, parts), _)| (*unit, *parts) == key)
            .unwrap_or_else(|| panic!("{what}: {key:?} must not share"));
        assert_eq!(
            (found.matched, found.donor),
            (*matched, *donor),
            "{what}: {key:?}"
        );
        assert!(
            (found.score - score).abs() < 1e-12,
            "{what}: {} {score}",
            found.score
        );
    }
}

/// The table of shapes that every match function is checked on.
fn shapes() -> Vec<(&'static str, Synthetic)> {
    let layer = |units, lengths, classes| Layer {
        units,
        lengths,
        classes,
    };
    let mha = [96, 96, 96];
    let gqa = [144, 48, 48];
    let mut table = vec![
        ("one layer", Synthetic::uniform(1, 1, 5, mha)),
        ("one unit", Synthetic::uniform(2, 1, 1, mha)),
        ("one unit a layer", Synthetic::uniform(3, 6, 1, mha)),
        ("multi-head", Synthetic::uniform(4, 5, 7, mha)),
        ("grouped-query", Synthetic::uniform(5, 6, 3, gqa)),
        (
            "key and value lengths differ",
            Synthetic::uniform(6, 4, 4, [80, 80, 24]),
        ),
        (
            "unit counts vary by layer",
            Synthetic::random(7, 8, &[1, 4, 0, 2, 7, 3].map(|n| layer(n, gqa, [0; 3]))),
        ),
        (
            "v has another type in some layers",
            Synthetic::random(8, 16, &[0, 1, 0, 1, 1, 2].map(|v| layer(4, mha, [0, 0, v]))),
        ),
        (
            "classes of other lengths",
            Synthetic::random(
                9,
                16,
                &[
                    layer(3, [144, 48, 48], [0, 0, 0]),
                    layer(3, [160, 48, 48], [1, 0, 0]),
                    layer(2, [144, 64, 48], [0, 1, 0]),
                    layer(3, [160, 48, 48], [1, 0, 0]),
                    layer(2, [144, 64, 96], [0, 1, 7]),
                    layer(3, [144, 48, 48], [0, 0, 0]),
                ],
            ),
        ),
        (
            "several tiles",
            Synthetic::uniform(10, 15, 19, [40, 24, 24]),
        ),
        (
            "tiles in full",
            Synthetic::uniform(11, 16, 16, [40, 24, 24]),
        ),
    ];
    for length in [1, 7, 2047, 2048, 2049, 4096, 4103] {
        table.push((
            "slab boundary",
            Synthetic::uniform(12, 3, 3, [length, 9, length]),
        ));
    }
    for (granularity, length) in [(256, 2048 + 256), (256, 256), (768, 3 * 768), (3000, 6000)] {
        let shape = layer(3, [length, granularity, 2 * granularity], [0; 3]);
        table.push((
            "coarse granularity",
            Synthetic::random(13, granularity, &[shape; 3]),
        ));
    }
    let mut copies = Synthetic::uniform(14, 6, 4, gqa);
    for (from, to, factor) in [
        (0, 4, 1.0),
        (4, 9, 1.0),
        (9, 20, 1.0),
        (2, 12, -1.0),
        (12, 13, 0.0),
        (5, 21, 0.5),
    ] {
        copies.copy(from, to, factor);
    }
    table.push(("copies, negatives and zeros", copies));
    let mut extreme = Synthetic::uniform(15, 5, 4, mha);
    for (unit, factor) in [(1, 1e30), (6, 1e-30), (9, 3e38), (11, 1e-38), (14, 1e-43)] {
        extreme.copy(unit, unit, factor);
    }
    table.push(("huge and tiny weights", extreme));
    table
}

#[test]
fn every_match_function_agrees_with_the_oracle_on_every_shape() {
    for (name, blocks) in shapes() {
        for function in MatchFunction::ALL {
            for ratio in [0.0, 0.1, 0.3, 0.5, 1.0] {
                check(name, &blocks, function, ratio);
            }
        }
    }
}

#[test]
fn score_matrices_agree_with_the_oracle() {
    for (name, blocks) in shapes() {
        for function in MatchFunction::ALL {
            let matrices = score_matrices(&blocks, function, &|_| ()).unwrap();
            assert_eq!(
                matrices.len(),
                if function == MatchFunction::Separate {
                    3
                } else {
                    1
                }
            );
            for matrix in &matrices {
                let parts: Vec<usize> = matrix.parts.iter().map(|&part| part as usize).collect();
                let shared = if function == MatchFunction::Separate {
                    &parts[..]
                } else {
                    &[0, 1, 2]
                };
                for a in 0..blocks.ids.len() {
                    for (b, &score) in matrix.row(a).iter().enumerate() {
                        let fits = shared
                            .iter()
                            .all(|&p| blocks.classes[a][p] == blocks.classes[b][p]);
                        assert_eq!(score.to_bits(), matrix.get(b, a).to_bits());
                        assert_eq!(score.is_nan(), !fits, "{name}, {function}: {a}, {b}");
                        if fits {
                            let expected = oracle::cosine(&blocks, &parts, a, b);
                            let error = (f64::from(score) - expected).abs();
                            assert!(error < 2e-6, "{name}, {function}: {a}, {b}: {error}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn first_unit_wins_ties() {
    let a: &[f32] = &[3.0, 1.0, 2.0];
    let b: &[f32] = &[1.0, 0.0, 0.0];
    let blocks = Synthetic::vectors(&[&[b, a, a], &[a, b], &[b, a]]);
    let matching = run(&blocks, MatchFunction::Qk, 1.0);
    let expected = [
        [(1, 0), (0, 1), (0, 1)],
        [(1, 1), (0, 0), (0, 0)],
        [(2, 0), (0, 0), (0, 0)],
        [(2, 1), (0, 1), (0, 1)],
    ];
    assert_eq!(triples(&matching), expected);
    assert!(matching.aliases.iter().all(|found| found.score == 1.0));
    // All candidates tie: the first in (layer, unit) order are selected.
    assert_eq!(
        triples(&run(&blocks, MatchFunction::Qk, 2.0 / 7.0)),
        expected[..2]
    );
}

#[test]
fn chains_resolve_to_their_root_only_through_aliases() {
    // Each is most like the one before it, the later the more.
    let layers: &[&[&[f32]]] = &[
        &[&[1.0, 0.0]],
        &[&[1.0, 0.4]],
        &[&[1.0, 0.7]],
        &[&[1.0, 0.9]],
    ];
    let blocks = Synthetic::vectors(layers);
    let expected: &[&[[(u32, u32); 3]]] = &[
        &[],
        &[[(3, 0), (2, 0), (2, 0)]],
        &[[(2, 0), (1, 0), (1, 0)], [(3, 0), (2, 0), (1, 0)]],
        &[
            [(1, 0), (0, 0), (0, 0)],
            [(2, 0), (1, 0), (0, 0)],
            [(3, 0), (2, 0), (0, 0)],
        ],
    ];
    for (n, expected) in expected.iter().enumerate() {
        let matching = run(&blocks, MatchFunction::Qkv, n as f64 / 4.0);
        assert_eq!(&triples(&matching), expected, "{n} aliases");
    }
}

#[test]
fn zero_blocks_score_zero_with_all_units() {
    let zero: &[f32] = &[0.0, -0.0];
    let one: &[f32] = &[1.0, 0.0];
    let minus: &[f32] = &[-1.0, 0.0];
    let blocks = Synthetic::vectors(&[&[one, zero], &[zero, minus]]);
    let matching = run(&blocks, MatchFunction::Qk, 1.0);
    // Zero matches the first unit of all; -1 is beaten by the 0 of a zero block.
    assert_eq!(
        triples(&matching),
        [[(1, 0), (0, 0), (0, 0)], [(1, 1), (0, 1), (0, 1)]]
    );
    assert!(
        matching
            .aliases
            .iter()
            .all(|found| found.score.to_bits() == 0)
    );
}

#[test]
fn opposite_units_are_no_candidates() {
    let blocks = Synthetic::vectors(&[&[&[0.1, 0.7]], &[&[-0.1, -0.7]]]);
    let matching = run(&blocks, MatchFunction::Q, 1.0);
    assert_eq!((matching.requested, matching.aliases.len()), (2, 0));
}

#[test]
fn counts_round_half_up_and_stop_at_the_candidates() {
    for (ratio, units, expected) in [
        (0.0, 9, 0),
        (0.5, 9, 5),
        (0.5, 1, 1),
        (0.3, 5, 2),
        (0.3, 90, 27),
        (0.1, 4, 0),
        (0.1, 5, 1),
        (0.05, 30, 2),
        // 14.499999999999998 in binary.
        (0.29, 50, 15),
        (0.144, 100, 14),
        (1.0, 9, 9),
        (1.0, 0, 0),
    ] {
        assert_eq!(
            aliases_for(ratio, units).unwrap(),
            expected,
            "{ratio} of {units}"
        );
    }
    // The ratios of whole percents, against integers.
    for percent in 0..=100usize {
        for units in 0..300 {
            let count = aliases_for(percent as f64 / 100.0, units).unwrap();
            assert_eq!(count, (percent * units + 50) / 100, "{percent}% of {units}");
        }
    }
    let blocks = Synthetic::uniform(21, 2, 3, [16, 16, 16]);
    let matching = run(&blocks, MatchFunction::Qk, 1.0);
    assert_eq!((matching.requested, matching.aliases.len()), (6, 3));
    let single = run(
        &Synthetic::uniform(21, 1, 3, [16; 3]),
        MatchFunction::Qk,
        1.0,
    );
    assert_eq!(
        (single.requested, single.aliases.len(), single.skipped.len()),
        (3, 0, 0)
    );
}

#[test]
fn ratios_outside_zero_to_one_are_errors() {
    let blocks = Synthetic::uniform(22, 2, 2, [4, 4, 4]);
    for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY, -f64::INFINITY] {
        let error = match_units(&blocks, MatchFunction::Qk, ratio, &|_| ()).unwrap_err();
        assert!(matches!(error, MatchError::Ratio(_)), "{ratio}: {error}");
    }
    assert_eq!(
        MatchError::Ratio(1.5).to_string(),
        "the ratio must be between 0 and 1, not 1.5"
    );
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for weight in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut blocks = Synthetic::uniform(23, 3, 2, [3000, 64, 64]);
        blocks.weights[3][1][5] = weight;
        blocks.weights[4][1][5] = weight;
        for function in [MatchFunction::Qk, MatchFunction::K, MatchFunction::Separate] {
            let error = match_units(&blocks, function, 0.5, &|_| ()).unwrap_err();
            assert_eq!(
                error.to_string(),
                "a weight of the k block of layer 1, unit 1 is not finite",
            );
        }
        // What is not looked at is not judged.
        run(&blocks, MatchFunction::V, 0.5);
    }
}

#[test]
fn units_that_fit_no_earlier_unit_are_skipped() {
    let layer = |units, v| Layer {
        units,
        lengths: [32, 32, 32],
        classes: [0, 0, v],
    };
    let layers = [
        layer(2, 0),
        layer(2, 1),
        layer(1, 0),
        layer(1, 1),
        layer(1, 2),
    ];
    let blocks = Synthetic::random(24, 32, &layers);
    for ratio in [0.0, 1.0] {
        let skipped = run(&blocks, MatchFunction::Q, ratio).skipped;
        let units: Vec<UnitId> = skipped.iter().map(|skipped| skipped.unit).collect();
        assert_eq!(units, [id(1, 0), id(1, 1), id(4, 0)]);
        assert!(skipped.iter().all(|skipped| skipped.parts == Part::ALL));
        let skipped = run(&blocks, MatchFunction::Separate, ratio).skipped;
        assert_eq!(skipped.len(), 3);
        assert!(skipped.iter().all(|skipped| skipped.parts == [Part::V]));
    }
}

#[test]
fn inconsistent_sources_are_errors_not_panics() {
    let good = Synthetic::uniform(25, 2, 2, [32, 32, 32]);
    let mut longer = good.clone();
    longer.weights[3][0].push(1.0);
    let mut coarse = good.clone();
    coarse.granularity = 5;
    let mut zero = good.clone();
    zero.granularity = 0;
    let mut unsorted = good.clone();
    unsorted.ids.swap(0, 3);
    for blocks in [longer, coarse, zero, unsorted] {
        let error = match_units(&blocks, MatchFunction::Qk, 0.5, &|_| ()).unwrap_err();
        assert!(matches!(error, MatchError::Inconsistent { .. }), "{error}");
    }
    run(&Synthetic::vectors(&[]), MatchFunction::Qk, 0.5);
    run(
        &Synthetic::vectors(&[&[&[]], &[&[]]]),
        MatchFunction::Qk,
        0.5,
    );
}

#[test]
fn one_ranking_serves_every_ratio() {
    let blocks = Synthetic::uniform(26, 4, 5, [48, 16, 16]);
    for function in MatchFunction::ALL {
        let ranking = rank_units(&blocks, function, &|_| ()).unwrap();
        assert_eq!(ranking.units(), 20);
        for (_, candidates) in ranking.lists() {
            assert_eq!(candidates.len(), 15);
            assert!(
                candidates
                    .windows(2)
                    .all(|pair| pair[0].score >= pair[1].score)
            );
        }
        for ratio in [0.0, 0.1, 0.3, 1.0] {
            assert_eq!(
                ranking.select(ratio).unwrap(),
                run(&blocks, function, ratio)
            );
        }
    }
}

#[test]
fn progress_rises_to_one() {
    let blocks = Synthetic::uniform(27, 4, 5, [4500, 100, 100]);
    for function in MatchFunction::ALL {
        let seen = RefCell::new(vec![0.0]);
        match_units(&blocks, function, 0.5, &|share| {
            seen.borrow_mut().push(share)
        })
        .unwrap();
        let seen = seen.into_inner();
        assert!(
            seen.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12),
            "{seen:?}"
        );
        assert_eq!(seen.last(), Some(&1.0));
    }
}

#[test]
fn names_of_match_functions_round_trip() {
    for function in MatchFunction::ALL {
        let name = function.to_string();
        assert_eq!(name.parse(), Ok(function));
        assert_eq!(
            serde_json::to_string(&function).unwrap(),
            format!("{name:?}")
        );
    }
    assert_eq!(MatchFunction::default(), MatchFunction::Qk);
    assert_eq!(
        serde_json::to_string(&Part::ALL).unwrap(),
        r#"["q","k","v"]"#
    );
    let error = "QK".parse::<MatchFunction>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown match function \"QK\": use qk, q, k, v, qkv or separate"
    );
}

#[test]
fn scores_closer_than_single_precision_are_told_apart() {
    // Donors in layer 0 are the target with one weight moved a little: cosines
    // differ by about 1e-10, and not in the order of the units.
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut blocks = Synthetic::uniform(seed, 2, 9, [600, 200, 10]);
        for donor in 0..9 {
            blocks.copy(9, donor, 1.0);
            let at = random.below(600);
            blocks.weights[donor][0][at] += 1e-3 + 1e-6 * random.weight();
        }
        check("near ties", &blocks, MatchFunction::Qk, 0.5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_shapes_agree_with_the_oracle(
        seed: u64,
        function in prop::sample::select(&MatchFunction::ALL[..]),
        granularity in prop::sample::select(&[1usize, 8, 32][..]),
        rows in prop::array::uniform3(1usize..6),
        layers in prop::collection::vec((0u32..6, 0u32..2), 1..8),
        copies in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(),
             prop::sample::select(&[1.0f32, -1.0, 0.0][..])), 0..6),
        ratio in 0.0..1.0f64,
    ) {
        let lengths = rows.map(|rows| rows * 32);
        let layers: Vec<Layer> = layers
            .iter()
            .map(|&(units, v)| Layer { units, lengths, classes: [0, 0, v] })
            .collect();
        let mut blocks = Synthetic::random(seed, granularity, &layers);
        for (from, to, factor) in &copies {
            if !blocks.ids.is_empty() {
                let units = blocks.ids.len();
                blocks.copy(from.index(units), to.index(units), *factor);
            }
        }
        check("random", &blocks, function, ratio);
    }
}
