//! Units that are dropped: plain files of llama.cpp's deci architecture.

use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use serde_json::{Value, json as object};

use super::calibrated::convert;
use super::steps::{SMALL, expand, repairing, tokens, words};
use crate::support::{json, program, written};

pub(super) fn perplexity(file: &Path, text: &Path) -> f64 {
    let arguments = ["--ctx", "64", "--chunks", "4", "--json"];
    json(
        program()
            .args(["eval", "perplexity"])
            .arg(file)
            .arg("--text")
            .arg(text)
            .args(arguments),
    )["perplexity"]
        .as_f64()
        .unwrap()
}

/// A plan that drops `units`, and lets `aliases` share.
fn plan(source: &Path, folder: &Path, units: &[(u32, u32)], aliases: Value) -> PathBuf {
    let drop = |(layer, unit): &(u32, u32)| object!({"drop": {"layer": layer, "unit": unit}});
    let share = |share: &Value| object!({ "share": share });
    let shares = aliases.as_array().unwrap().iter().map(share);
    plan_of(
        source,
        folder,
        shares.chain(units.iter().map(drop)).collect(),
    )
}

/// A plan of these edits.
pub(super) fn plan_of(source: &Path, folder: &Path, edits: Value) -> PathBuf {
    let mut plan = json(
        program()
            .arg("plan")
            .arg(source)
            .args(["--ratio", "0", "--json"]),
    );
    plan["edits"] = edits;
    let path = folder.join("plan.json");
    std::fs::write(&path, plan.to_string()).unwrap();
    path
}

pub(super) fn by_plan(source: &Path, plan: &Path, out: &Path) -> assert_cmd::assert::Assert {
    program()
        .arg("convert")
        .arg(source)
        .arg("-o")
        .arg(out)
        .arg("--plan")
        .arg(plan)
        .assert()
}

/// `source` with zeros in the columns of attn_output that belong to `units`.
pub(super) fn silenced(source: &Path, out: &Path, units: &[(u32, u32)], per_layer: u32) {
    let file = ModelFile::open_plain(source).unwrap();
    let mut bytes = std::fs::read(source).unwrap();
    for (layer, unit) in units {
        let info = file
            .gguf
            .tensor(&format!("blk.{layer}.attn_output.weight"))
            .unwrap();
        let data = file.gguf.data_range(info);
        let row = info.row_bytes() as usize;
        let part = row / per_layer as usize;
        for row in bytes[data.start as usize..data.end as usize].chunks_mut(row) {
            row[*unit as usize * part..(*unit as usize + 1) * part].fill(0);
        }
    }
    std::fs::write(out, bytes).unwrap();
}

#[test]
fn a_unit_that_goes_is_one_that_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let at = |name: &str| folder.path().join(name);
    // A layer of which one unit goes, and one of which both go.
    let units = [(0, 1), (1, 0), (1, 1)];
    let source = written(folder.path(), "tiny-gqa");
    let plan_file = plan(&source, folder.path(), &units, object!([]));
    by_plan(&source, &plan_file, &at("cut")).success();
    silenced(&source, &at("silenced"), &units, 2);
    let cut = ModelFile::open_plain(&at("cut")).unwrap();
    assert_eq!(cut.gguf.architecture().unwrap(), Some("deci"));
    assert!(cut.gguf.tensor("blk.1.attn_q.weight").is_none());
    assert!(cut.len() < std::fs::metadata(&source).unwrap().len());
    let (a, b) = (
        perplexity(&at("cut"), &text),
        perplexity(&at("silenced"), &text),
    );
    assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
    assert!(
        (perplexity(&source, &text) / b - 1.0).abs() > 1e-3,
        "dropping changes nothing"
    );
    assert_eq!(tokens(&at("cut")), tokens(&at("silenced")));

    // The rest can share, by numbers of the source.
    let alias = object!([{"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 0,
        "matched_layer": 0, "matched_unit": 0, "parts": ["q", "k", "v"], "score": 0.5}]);
    let plan_file = plan(&source, folder.path(), &units[..2], alias);
    by_plan(&source, &plan_file, &at("both")).success();
    let report = json(program().arg("verify").arg(at("both")).arg("--json"));
    assert_eq!(report["ok"], true, "{report}");
    expand(&at("both"), &at("plain"));
    assert_eq!(tokens(&at("both")), tokens(&at("plain")));
}

#[test]
fn dropped_units_are_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let stats = at("stats");
    let stats = stats.to_str().unwrap();
    let drop = [&SMALL[..], &["--units", "drop", "--save-stats", stats]].concat();
    let result = convert(&source, &text, &at("drop"), &drop);
    let edits = result["plan"]["edits"].as_array().unwrap();
    assert!(!edits.is_empty());
    assert!(edits.iter().all(|edit| edit.get("drop").is_some()));
    for tensor in result["repair"]["tensors"].as_array().unwrap() {
        assert!(
            tensor["after"].as_f64() <= tensor["before"].as_f64(),
            "{tensor}"
        );
    }
    assert_eq!(
        result["output"]["bytes"],
        std::fs::metadata(at("drop")).unwrap().len()
    );
    assert!(!tokens(&at("drop")).as_array().unwrap().is_empty());

    let auto = [&SMALL[..], &["--units", "auto", "--stats", stats]].concat();
    let result = convert(&source, &text, &at("auto"), &auto);
    let plan = &result["plan"];
    let count = plan["edits"].as_array().unwrap().len();
    assert!(count > 0, "{plan}");
    let again = at("again");
    convert(&source, &text, &again, &auto);
    assert!(std::fs::read(at("auto")).unwrap() == std::fs::read(again).unwrap());
}

#[test]
fn what_cannot_go_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let out = folder.path().join("out.gguf");
    let gemma = written(folder.path(), "tiny-gemma3");
    let output = repairing(&gemma, &text, &out)
        .args(SMALL)
        .args(["--units", "drop"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("units can go from llama models only"),
        "{stderr}"
    );
    assert!(stderr.contains("hint: --units share"), "{stderr}");

    let source = written(folder.path(), "tiny-gqa");
    let refused = |units: &[(u32, u32)], aliases: Value, code: i32, says: &str| {
        let plan_file = plan(&source, folder.path(), units, aliases);
        let assert = by_plan(&source, &plan_file, &out).code(code);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(says), "{stderr}");
        assert!(!out.exists());
    };
    refused(
        &[(0, 0), (0, 1)],
        object!([]),
        1,
        "a unit of layer 0 must be left",
    );
    refused(
        &[(0, 7)],
        object!([]),
        3,
        "edits[0].drop.unit: the model has no layer 0, unit 7",
    );
    refused(
        &[(1, 0), (1, 0)],
        object!([]),
        3,
        "edits[1].drop: layer 1, unit 0 goes twice",
    );
    let alias = object!([{"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 0,
        "matched_layer": 0, "matched_unit": 0, "parts": ["q", "k", "v"], "score": 0.5}]);
    refused(
        &[(0, 0)],
        alias,
        3,
        "edits[0].share.donor_unit: layer 0, unit 0 is dropped",
    );
}
