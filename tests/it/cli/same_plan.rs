//! `plan --json` says what an independent computation says.

use std::path::Path;

use serde_json::Value;

use super::oracle::{Alias, Dots, Model, PARTS};
use crate::support::{GEMMA, SMOLLM2, gemma, needs, read, smollm2};

#[track_caller]
fn check(path: &Path, dots: &Dots, function: &str, ratio: &str) {
    let plan = run![
        "plan", path, "--match", function, "--ratio", ratio, "--json"
    ]
    .ok()
    .json();
    assert_eq!(plan["version"], 2);
    assert_eq!(plan["choice"]["by"], function);
    assert_eq!(plan["choice"]["ratio"].to_string(), ratio);
    let digest = blake3::hash(&read(path)).to_hex();
    assert_eq!(plan["source"], format!("blake3:{digest}"));
    let edits = plan["edits"].as_array().unwrap().iter();
    let found: Vec<Alias> = edits.map(|edit| alias(&edit["share"])).collect();
    let expected = dots.plan(function, ratio.parse().unwrap());
    let places = |list: &[Alias]| -> Vec<String> {
        let place = |a: &Alias| format!("{:?}", (a.unit, a.donor, a.matched, &a.parts));
        list.iter().map(place).collect()
    };
    assert_eq!(places(&found), places(&expected), "{function} {ratio}");
    for (a, b) in found.iter().zip(&expected) {
        assert!((a.score - b.score).abs() < 1e-4, "{a:?} {b:?}");
    }
}

fn alias(json: &Value) -> Alias {
    let unit = |layer: &str, unit: &str| {
        let number = |key: &str| {
            json[key]
                .as_u64()
                .unwrap_or_else(|| panic!("{key}: {json}"))
        };
        (number(layer), number(unit))
    };
    assert_eq!(json.as_object().unwrap().len(), 8, "{json}");
    Alias {
        unit: unit("layer", "unit"),
        donor: unit("donor_layer", "donor_unit"),
        matched: unit("matched_layer", "matched_unit"),
        parts: json["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| *PARTS.iter().find(|part| p == *part).unwrap())
            .collect(),
        score: json["score"].as_f64().unwrap(),
    }
}

#[test]
fn on_smollm2_for_all_match_functions_at_10_and_30_percent() {
    needs!(SMOLLM2);
    let dots = Dots::new(&Model::new(read(&smollm2())));
    for function in ["qk", "q", "k", "v", "qkv", "separate"] {
        for ratio in ["0.1", "0.3"] {
            check(&smollm2(), &dots, function, ratio);
        }
    }
}

#[test]
fn on_gemma_whose_types_vary_by_layer() {
    needs!(GEMMA);
    let dots = Dots::new(&Model::new(read(&gemma())));
    for ratio in ["0.1", "0.3", "1.0"] {
        check(&gemma(), &dots, "qk", ratio);
    }
    check(&gemma(), &dots, "separate", "0.3");
}
