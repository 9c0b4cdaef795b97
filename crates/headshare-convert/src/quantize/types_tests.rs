//! Tests of which tensor gets which type.

use std::collections::BTreeMap;

use headshare_format::{GgmlType, Gguf};
use headshare_testmodels::{ModelSpec, type_named as named};

use super::types::{Assigned, Wanted};

fn gguf(n_embd: u32) -> Gguf {
    let spec = ModelSpec {
        n_embd,
        n_ff: 2 * n_embd,
        weight_type: named("f16").unwrap(),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    };
    Gguf::parse(&spec.to_bytes().unwrap()).unwrap()
}

fn wanted(to: &str) -> Wanted {
    Wanted {
        to: to.to_owned(),
        pure: true,
        overrides: Vec::new(),
        untie: false,
    }
}

/// Types of as many bits: three that are paired in any way agree, and it comes to an end.
#[test]
fn three_of_as_many_bits_agree() {
    let names = ["a", "b", "c"];
    for pairs in [[(0, 1), (2, 1)], [(0, 1), (0, 2)], [(1, 0), (2, 0)]] {
        for types in [["q4_0", "q4_0", "iq4_nl"], ["q4_K", "iq4_nl", "q4_0"]] {
            let mut assigned = Assigned {
                to: "q4_0".to_owned(),
                types: (names.iter().zip(types))
                    .map(|(name, to)| ((*name).to_owned(), named(to).unwrap()))
                    .collect(),
                kept: BTreeMap::new(),
                file_type: None,
                fell_back: BTreeMap::new(),
                unmatched: Vec::new(),
            };
            let name = |i: usize| names[i].to_owned();
            let pairs: Vec<_> = pairs.iter().map(|&(a, b)| (name(a), name(b))).collect();
            assigned.agree(&pairs, &|_| named("f16"));
            let of = |name: &str| assigned.types[name];
            assert!(
                of("a") == of("b") && of("b") == of("c"),
                "{:?}",
                assigned.types
            );
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_counted_by_what_they_get() {
    let assigned = wanted("q4_K").assign(&gguf(64), &|_| false, false).unwrap();
    let (q4, q5) = (named("q4_K").unwrap(), named("q5_0").unwrap());
    assert!(assigned.fell_back.keys().eq(assigned.types.keys()));
    assert!(assigned.fell_back.values().all(|pair| *pair == (q4, q5)));
    assert!(assigned.types.values().all(|t| *t == q5) && assigned.types.len() > 8);
    let assigned = wanted("q4_K")
        .assign(&gguf(256), &|_| false, false)
        .unwrap();
    assert!(assigned.fell_back.is_empty());
    assert_eq!(assigned.file_type, Some(15));
    // What counts is the type that a tensor should have, not the one that most have.
    let wanted = Wanted {
        to: "q4_0".to_owned(),
        pure: true,
        overrides: vec![
            ("attn_q".to_owned(), "q6_K".to_owned()),
            ("attn_Q".to_owned(), "q8_0".to_owned()),
        ],
        untie: false,
    };
    let assigned = wanted.assign(&gguf(64), &|_| false, false).unwrap();
    let (q6, q8) = (named("q6_K").unwrap(), named("q8_0").unwrap());
    assert!(!assigned.fell_back.is_empty());
    for (name, pair) in &assigned.fell_back {
        assert!(name.contains("attn_q") && *pair == (q6, q8), "{name}");
    }
    assert_eq!(assigned.unmatched, ["attn_Q"]);
}

/// Mixtures give more bits to some layers by their place in the model, not in the file.
#[test]
fn a_mixture_does_not_depend_on_the_order_of_the_file() {
    let spec = ModelSpec {
        n_layer: 8,
        n_embd: 256,
        n_ff: 256,
        weight_type: named("f16").unwrap(),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    };
    let bytes = spec.to_bytes().unwrap();
    // Layers have the same shapes, so their names can change places.
    let mut permuted = bytes.clone();
    for at in 0..permuted.len() - 5 {
        if permuted[at..].starts_with(b"blk.") && permuted[at + 5] == b'.' {
            permuted[at + 4] = b'0' + (permuted[at + 4] - b'0') * 3 % 8;
        }
    }
    let [natural, other] = [bytes, permuted].map(|bytes| Gguf::parse(&bytes).unwrap());
    let names =
        |gguf: &Gguf| -> Vec<String> { gguf.tensors().iter().map(|t| t.name.clone()).collect() };
    assert_ne!(names(&natural), names(&other));
    for mixture in ["q4_K_M", "q3_K_L", "iq4_xs"] {
        let wanted = Wanted {
            pure: false,
            ..wanted(mixture)
        };
        let of = |gguf: &Gguf| wanted.assign(gguf, &|_| false, false).unwrap().types;
        assert_eq!(of(&natural), of(&other), "{mixture}");
    }
    let types = |name: &str| -> Vec<&str> {
        let wanted = Wanted {
            pure: false,
            ..wanted("q4_K_M")
        };
        let types = wanted.assign(&other, &|_| false, false).unwrap().types;
        let of = |layer| types[&format!("blk.{layer}.{name}.weight")].name();
        (0..8).map(of).collect()
    };
    let (more, less) = ("q6_K", "q4_K");
    assert_eq!(
        types("ffn_down"),
        [more, less, less, more, less, less, more, more]
    );
}

#[test]
fn a_type_that_is_no_mixture_is_for_all_that_may_be_quantized() {
    let gguf = gguf(64);
    let assigned = wanted("mxfp4").assign(&gguf, &|_| false, false).unwrap();
    assert_eq!(assigned.file_type, Some(38));
    let mxfp4 = named("mxfp4").unwrap();
    assert!(assigned.types.values().all(|t| *t == mxfp4));
    let matrices = gguf.tensors().iter().filter(|t| t.dims.len() > 1).count();
    assert_eq!(assigned.types.len(), matrices);
}

/// llama.cpp's own main type of the mixture iq2_s is iq2_xs.
#[test]
fn one_type_for_all_is_the_one_that_was_named() {
    let gguf = gguf(256);
    for name in ["iq2_s", "iq2_xs", "q4_K", "q4_0"] {
        let assigned = wanted(name).assign(&gguf, &|_| false, false).unwrap();
        let to = named(name).unwrap();
        assert!(assigned.types.values().all(|t| *t == to), "{name}");
    }
}

/// llama.cpp itself does not look at them there.
#[test]
fn patterns_count_beside_types_that_are_not_quantized() {
    let gguf = gguf(64);
    let wanted = Wanted {
        to: "bf16".to_owned(),
        pure: false,
        overrides: vec![("ffn_down".to_owned(), "q8_0".to_owned())],
        untie: false,
    };
    let assigned = wanted.assign(&gguf, &|_| false, false).unwrap();
    assert_eq!(assigned.file_type, Some(32));
    assert!(assigned.types.len() > 8);
    for (name, to) in &assigned.types {
        let is_down = name.contains("ffn_down");
        assert_eq!(to.name(), if is_down { "q8_0" } else { "bf16" }, "{name}");
    }
}

#[test]
fn tensors_with_rows_in_common_get_the_type_with_the_most_bits() {
    let [q4, q5, q8] = ["q4_0", "q5_0", "q8_0"].map(|name| named(name).unwrap());
    let of = [("a", q4), ("b", q8), ("c", q5), ("d", q4)];
    let mut assigned = Assigned {
        to: "q4_0".to_owned(),
        kept: BTreeMap::new(),
        types: of
            .into_iter()
            .map(|(name, t)| (name.to_owned(), t))
            .collect(),
        file_type: None,
        fell_back: BTreeMap::new(),
        unmatched: Vec::new(),
    };
    let links = [("a", "c"), ("c", "b"), ("d", "not there")];
    let links = links.map(|(a, b)| (a.to_owned(), b.to_owned()));
    assigned.agree(&links, &|name| (name != "not there").then_some(q4));
    let types: Vec<GgmlType> = assigned.types.values().copied().collect();
    assert_eq!(types, [q8, q8, q8, q4]);
    // What has that type already keeps it.
    assigned.agree(&links, &|name| (name == "not there").then_some(q8));
    assert_eq!(assigned.types.get("d"), Some(&q8));
    assert_eq!(assigned.types.get("not there"), None);
}
