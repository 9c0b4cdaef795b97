//! Measuring and choosing on models so tiny that all their plans can be looked at.

use std::sync::Arc;
use std::time::Duration;

use headshare_format::{GgmlType, PageSize};
use headshare_testmodels::{ModelSpec, type_named as named};
use tempfile::TempDir;

use super::cuts::Cut;
use super::moves::{self, in_file, movable};
use super::select::{Alternatives, choose};
use super::*;
use crate::engine::{Options, Text, Windows};
use crate::input::ModelFile;

fn windows() -> Windows {
    let (count, window) = (4, 24);
    let tokens = (0..count * window).map(|i| (i * 37 % 290 + 5) as i32);
    Windows {
        tokens: tokens.collect(),
        count,
        window,
        vocabulary: 320,
        widest: 0,
        digest: String::new(),
    }
}

fn options() -> Options {
    Options {
        text: Text::Own,
        windows: 4,
        window: 24,
        memory: 1 << 30,
        n_threads: Some(1),
        stop: Arc::default(),
    }
}

struct Subject {
    _folder: TempDir,
    source: ModelFile,
    movable: Vec<Movable>,
}

impl Subject {
    fn new(spec: &ModelSpec, types: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        spec.write(&path).unwrap();
        let source = ModelFile::open_plain(&path).unwrap();
        let types: Vec<GgmlType> = types.iter().map(|name| named(name).unwrap()).collect();
        let movable = movable(&source, &types).unwrap();
        Self {
            _folder: folder,
            source,
            movable,
        }
    }

    fn measured(&self, time: Option<Duration>) -> Statistics {
        let of = (&self.source, "");
        let with = (&windows(), &options());
        Statistics::measure(of, &self.movable, with, time, &|_| ()).unwrap()
    }
}

/// Bytes that `cut` saves after so many steps, of a model whose tensors keep their types.
fn saved(source: &ModelFile, cut: &Cut, steps: usize) -> u64 {
    let left = |n: u64| n * u64::from(cut.left(steps)) / u64::from(cut.of);
    let of = |name: &String| {
        let info = source.gguf.tensor(name).unwrap();
        let (row, rows) = match *name == cut.tensor() {
            true => (left(info.row_elems()), info.rows()),
            false => (info.row_elems(), left(info.rows())),
        };
        let bytes = info.ggml_type.row_bytes(row).unwrap() * rows;
        in_file(info.byte_len(), source) - in_file(bytes, source)
    };
    cut.tensors().iter().map(of).sum()
}

/// Of all plans, those that cost less than all that are smaller.
fn best_of_all(all: &[Alternatives]) -> Vec<(u64, f64)> {
    all.iter().fold(vec![(0, 0.0)], |plans, of| {
        let with = |&(bytes, cost): &(u64, f64)| of.iter().map(move |o| (bytes + o.0, cost + o.1));
        let mut more: Vec<(u64, f64)> = plans.iter().flat_map(with).collect();
        more.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut least = f64::INFINITY;
        more.retain(|&(_, cost)| {
            let is_better = cost < least;
            least = least.min(cost);
            is_better
        });
        more
    })
}

#[test]
fn what_is_chosen_is_no_worse_than_any_move_alone_and_close_to_the_best_of_all_plans() {
    for (layers, types) in [(1, &["q8_0", "q4_0"][..]), (2, &["q8_0"])] {
        let spec = ModelSpec {
            n_layer: layers,
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        let subject = Subject::new(&spec, types);
        let (source, statistics) = (&subject.source, subject.measured(None));
        let counts = Counts {
            page: PageSize::KIB_4,
            unit_cache: 0,
        };
        let groups = groups(source, &subject.movable, &statistics, counts).unwrap();
        let all: Vec<Alternatives> = groups.iter().map(Group::alternatives).collect();
        let now: u64 = groups.iter().map(Group::now).sum();
        let mut moves = Vec::new();
        for tensor in &subject.movable {
            for m in &tensor.moves {
                let cost = statistics.cost(tensor, m.to).unwrap();
                moves.push((now - (tensor.bytes - m.bytes), cost));
            }
        }
        for cut in &statistics.cuts {
            let sensitivity = statistics.sensitivity(&cut.tensor()).unwrap();
            for steps in 1..=cut.steps.len() {
                let bytes = now - saved(source, cut, steps);
                moves.push((bytes, sensitivity * cut.loss(steps)));
            }
        }
        // Units of the second layer, and channels of all.
        assert_eq!(statistics.cuts.len() as u32, 2 * layers - 1);
        assert!(moves.len() > 10, "{}", moves.len());
        for (bytes, cost) in moves {
            let chosen = choose(&all, bytes).unwrap();
            assert!(chosen.bytes <= bytes);
            assert!(chosen.cost <= cost * (1.0 + 1e-9), "{} {cost}", chosen.cost);
        }
        let best = best_of_all(&all);
        assert!(best.len() > 50, "{}", best.len());
        // The hardest sizes: those that one plan fills to the byte.
        let above = best.iter().map(|&(bytes, cost)| {
            let chosen = choose(&all, bytes).unwrap();
            assert!(chosen.cost >= cost * (1.0 - 1e-9));
            (chosen.cost + 1e-9) / (cost + 1e-9)
        });
        let mut above: Vec<f64> = above.collect();
        above.sort_by(f64::total_cmp);
        let of = |part: usize| above[(above.len() - 1) * part / 100];
        assert!(of(50) < 1.02 && of(90) < 1.2 && of(100) < 2.0, "{above:?}");
    }
}

#[test]
fn without_time_a_tensor_of_each_kind_is_measured_and_nothing_else() {
    let preset = |name: &str| ModelSpec::preset(name).unwrap();
    // Heads that could share; heads that could go; no heads.
    for (name, lacks_units) in [
        ("tiny-qwen2", true),
        ("tiny-gqa", false),
        ("tiny-mamba", false),
    ] {
        let subject = Subject::new(&preset(name), &["q8_0"]);
        let statistics = subject.measured(Some(Duration::ZERO));
        assert_eq!(statistics.lacks_units, lacks_units, "{name}");
        assert!(statistics.units.is_empty());
        let kind = |name: &str| name.trim_start_matches(|c: char| c != '_').to_owned();
        let kinds = |estimated: bool| {
            let some = statistics
                .tensors
                .iter()
                .filter(|of| of.estimated == estimated);
            some.map(|of| kind(&of.name)).collect::<Vec<_>>()
        };
        let (mut measured, estimated) = (kinds(false), kinds(true));
        assert!(!estimated.is_empty(), "{name}");
        assert!(estimated.iter().all(|kind| measured.contains(kind)));
        measured.sort();
        let count = measured.len();
        measured.dedup();
        assert_eq!(measured.len(), count, "{name}: one of each kind");
    }
}

#[test]
fn what_loses_columns_is_probed_and_made_anew_at_the_type_that_it_has() {
    let spec = ModelSpec {
        weight_type: named("q4_0").unwrap(),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    };
    // No type is smaller, so nothing but what columns go from can change.
    let subject = Subject::new(&spec, &["q4_0"]);
    let down = "blk.1.ffn_down.weight";
    for tensor in &subject.movable {
        let ends = ["ffn_down.weight", "attn_output.weight"];
        assert!(
            ends.iter().any(|end| tensor.name.ends_with(end)),
            "{}",
            tensor.name
        );
        assert_eq!(
            tensor.moves.len(),
            usize::from(tensor.name.ends_with(ends[0]))
        );
        assert!(!tensor.probes.is_empty() && !tensor.probes.contains(&tensor.has));
    }
    let statistics = subject.measured(None);
    let of = statistics
        .tensors
        .iter()
        .find(|of| of.name == down)
        .unwrap();
    assert!(of.probed != "q4_0" && of.divergence > 0.0, "{of:?}");
    let own = of.types.iter().find(|of| of.name == "q4_0").unwrap();
    // About what rounding to 4 bits changes of numbers that lie on no grid.
    assert!((2e-3..2e-2).contains(&own.rounded), "{own:?}");
    assert!(own.encoded < own.rounded);
    assert!(!statistics.cuts.is_empty());
}

#[test]
fn what_is_made_anew_does_not_stay_on_its_grid() {
    for (name, least) in [
        ("q8_0", 1e-6),
        ("q4_0", 2e-3),
        ("q4_K", 1e-3),
        ("q6_K", 5e-5),
        ("q2_K", 1e-2),
    ] {
        let spec = ModelSpec {
            n_layer: 1,
            n_ff: 512,
            types: vec![("ffn_down.weight".to_owned(), named(name).unwrap())],
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        let statistics = Subject::new(&spec, &["q8_0"]).measured(None);
        let of = statistics
            .tensors
            .iter()
            .find(|of| of.name.contains("ffn_down"))
            .unwrap();
        let own = of.types.iter().find(|of| of.name == name).unwrap();
        assert!(own.rounded > least, "{name}: {own:?}");
    }
}

#[test]
fn a_probe_is_a_type_that_shows_an_error_whatever_is_allowed() {
    let spec = ModelSpec::preset("tiny-gqa").unwrap();
    for (allowed, probes) in [
        (&["q8_0"][..], &["q4_0", "iq4_nl"][..]),
        (&["q2_0"], &["q4_0", "iq4_nl"]),
        (&["q8_0", "mxfp4"], &[]),
    ] {
        for tensor in Subject::new(&spec, allowed).movable {
            let names: Vec<&str> = tensor.probes.iter().map(|t| t.name()).collect();
            assert_eq!(names, probes, "{}", tensor.name);
        }
    }
    let none = moves::types(Some(&["q9".to_owned()]));
    assert!(matches!(none, Err(FitError::UnknownType { .. })));
}
