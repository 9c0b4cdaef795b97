//! Repair of models that a plan gives other shapes or types, and how large its
//! outputs become.

use std::path::Path;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::ModelSpec;
use serde_json::{Value, json as object};

use super::steps::{expand, repairing, tokens, verify, words};
use crate::support::{json, program, written};

/// Arguments that keep a conversion short.
const SHORT: [&str; 4] = ["--windows", "6", "--window", "64"];

/// Repairs after a plan of `edits`; a dry run says the very size before.
#[track_caller]
fn repaired(source: &Path, out: &Path, edits: &Value) -> Value {
    let folder = out.parent().unwrap();
    let plan = folder.join("plan.json");
    let digest = blake3::hash(&std::fs::read(source).unwrap()).to_hex();
    let text = object!({"version": 2, "source": format!("blake3:{digest}"), "edits": edits});
    std::fs::write(&plan, text.to_string()).unwrap();
    converted(source, out, &["--plan", plan.to_str().unwrap()])
}

#[track_caller]
fn converted(source: &Path, out: &Path, more: &[&str]) -> Value {
    let text = words(out.parent().unwrap());
    let run = |last: &str| {
        let mut command = repairing(source, &text, out);
        json(command.args(SHORT).args(more).args(["--json", last]))
    };
    let dry = run("--dry-run");
    let result = run("--force");
    let len = std::fs::metadata(out).unwrap().len();
    assert!(dry["at_most"].is_null(), "{more:?}");
    assert_eq!(dry["output"]["bytes"], len, "{more:?}");
    assert_eq!(dry["saved"], result["saved"], "{more:?}");
    result
}

/// What became of each matrix: name, ridge, error before, error after.
fn refitted(result: &Value) -> Vec<(String, bool, f64, f64)> {
    let tensors = result["repair"]["tensors"].as_array().unwrap().iter();
    tensors
        .map(|t| {
            let error = |when: &str| t[when].as_f64().unwrap();
            let name = t["name"].as_str().unwrap().to_owned();
            (
                name,
                !t["lambda"].is_null(),
                error("before"),
                error("after"),
            )
        })
        .collect()
}

#[test]
fn narrower_layers_and_other_types_are_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-llama");
    let store = |tensor: &str| object!({"store": {"tensor": tensor, "type": "q4_0"}});
    let narrow =
        |layer: u32| object!({"narrow": {"layer": layer, "channels": [[0, 40], [64, 128]]}});
    let down = |layer: u32| format!("blk.{layer}.ffn_down.weight");
    let share = object!({"share": {"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 2,
                                   "parts": ["q", "k", "v"]}});
    for (what, edits, first) in [
        ("one layer is narrower", object!([narrow(1)]), 1),
        (
            "a matrix that is fitted gets another type",
            object!([store("blk.2.ffn_down.weight")]),
            2,
        ),
        (
            "the embedding gets another type",
            object!([store("token_embd.weight")]),
            0,
        ),
        (
            "units go and share, all layers are narrower",
            {
                let all = (0..4).map(narrow).chain([share]);
                let drop = object!({"drop": {"layer": 3, "unit": 0}});
                all.chain([drop]).collect()
            },
            0,
        ),
    ] {
        let out = file("out.gguf");
        let _ = std::fs::remove_file(&out);
        let result = repaired(&source, &out, &edits);
        let tensors = refitted(&result);
        assert_eq!(tensors.len(), 2 * (4 - first), "{what}: {tensors:?}");
        assert_eq!(tensors[1].0, down(first as u32), "{what}");
        let mut better = 0;
        for (name, is_refitted, before, after) in &tensors {
            assert_eq!(after < before, *is_refitted, "{what}: {name}");
            better += usize::from(*is_refitted);
        }
        assert!(better > 0, "{what}: nothing was refitted");
        // It runs, and what it was repaired to is in the file.
        let converted = ModelFile::open(&out).unwrap();
        let plain = match converted.table {
            Some(_) => {
                let plain = file("plain.gguf");
                let _ = std::fs::remove_file(&plain);
                expand(&out, &plain);
                plain
            }
            None => out.clone(),
        };
        assert_eq!(tokens(&out), tokens(&plain), "{what}");
        let plain = ModelFile::open(&plain).unwrap();
        let original = ModelFile::open(&source).unwrap();
        for (name, is_refitted, ..) in tensors {
            let [now, then] = [&plain, &original].map(|file| file.gguf.tensor(&name).unwrap());
            if now.dims == then.dims && now.ggml_type == then.ggml_type {
                let now = plain.bytes(plain.gguf.data_range(now));
                let then = original.bytes(original.gguf.data_range(then));
                assert_eq!(now != then, is_refitted, "{what}: {name}");
            }
        }
    }
}

#[test]
fn a_dry_run_says_the_size_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let gqa = written(folder.path(), "tiny-gqa");
    let wide = file("wide.gguf");
    let spec = ModelSpec {
        n_embd: 256,
        n_ff: 512,
        weight_type: headshare_testmodels::type_named("q4_1").unwrap(),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    };
    spec.write(&wide).unwrap();
    for (source, more) in [
        (&gqa, &["--ratio", "0.4", "--choose", "match"][..]),
        (&gqa, &["--ratio", "0.4"]),
        (&wide, &["--ratio", "0.4", "--units", "drop"]),
        (&wide, &["--ratio", "0.4", "--units", "auto"]),
    ] {
        let out = file("out.gguf");
        let _ = std::fs::remove_file(&out);
        converted(source, &out, more);
        let output = ModelFile::open(&out).unwrap();
        if output.table.is_some() {
            let report = verify(&out, source);
            assert_eq!(report["ok"], true, "{more:?}: {report}");
        } else {
            // A plain file says itself how it was made.
            let made_by = output.gguf.str_value("headshare_gguf.made_by").unwrap();
            let made_by: Value = serde_json::from_str(made_by.unwrap()).unwrap();
            assert!(made_by["repair"]["tensors"].is_array(), "{made_by}");
        }
    }
}

/// What a repair leaves as it is, and repeats another layer, is stored once.
#[test]
fn a_dry_run_says_what_depends_on_the_repair() {
    let folder = tempfile::tempdir().unwrap();
    let single = written(folder.path(), "tiny-llama");
    let source = folder.path().join("merged.gguf");
    headshare_testmodels::self_merge(&single, &[0, 1, 2, 2, 3], &source).unwrap();
    let out = folder.path().join("out.gguf");
    let text = words(folder.path());
    let run = |more: &[&str]| {
        let mut command = repairing(&source, &text, &out);
        let done = command.args(SHORT).args(more).assert().success();
        String::from_utf8(done.get_output().stdout.clone()).unwrap()
    };
    let plan = folder.path().join("plan.json");
    let digest = blake3::hash(&std::fs::read(&source).unwrap()).to_hex();
    let share = |donor_layer: u32, donor_unit: u32| {
        object!({"share": {"layer": 3, "unit": 1, "donor_layer": donor_layer,
            "donor_unit": donor_unit, "parts": ["q", "k", "v"]}})
    };
    // Its own copy: nothing changes, and nothing is refitted. Another: much is.
    for (edit, stays) in [(share(2, 1), true), (share(0, 2), false)] {
        let text = object!({"version": 2, "source": format!("blake3:{digest}"), "edits": [edit]});
        std::fs::write(&plan, text.to_string()).unwrap();
        let plan = ["--plan", plan.to_str().unwrap()];
        let dry: Value =
            serde_json::from_str(&run(&[&plan[..], &["--json", "--dry-run"]].concat())).unwrap();
        assert_eq!(dry["at_most"], true, "{dry}");
        let words = run(&[&plan[..], &["--dry-run"]].concat());
        for said in [" -> at most ", " bytes, at least ", "resident: at least "] {
            assert!(words.contains(said), "{words}");
        }
        let real: Value =
            serde_json::from_str(&run(&[&plan[..], &["--json", "--force"]].concat())).unwrap();
        assert!(real["at_most"].is_null());
        let number = |value: &Value| value.as_i64().unwrap();
        let [said, is] = [&dry, &real].map(|result| number(&result["output"]["bytes"]));
        assert_eq!(is, number(&std::fs::metadata(&out).unwrap().len().into()));
        if stays {
            assert!(refitted(&real).iter().all(|tensor| !tensor.1), "{real}");
            assert!(is < said, "{is} bytes, not {said}");
        } else {
            assert!(refitted(&real).iter().any(|tensor| tensor.1), "{real}");
            assert!(is <= said, "{is} bytes, not {said}");
        }
        for kind in ["file_bytes", "resident_bytes"] {
            let [said, is] = [&dry, &real].map(|result| number(&result["saved"][kind]));
            assert!(is >= said, "{kind}: {is}, not {said}");
        }
    }
}

/// A plain file has no alias table: it says itself what its tensors must be.
#[test]
fn plain_files_are_verified_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-llama");
    let out = file("out.gguf");
    let edits = object!([
        {"narrow": {"layer": 1, "channels": [[0, 40], [64, 128]]}},
        {"store": {"tensor": "blk.0.ffn_up.weight", "type": "q4_0"}},
    ]);
    let result = repaired(&source, &out, &edits);
    let new: Vec<String> = (refitted(&result).into_iter())
        .filter(|t| t.1)
        .map(|t| t.0)
        .collect();
    let verified = |path: &Path, more: &[&Path]| {
        let mut command = program();
        command.arg("verify").arg(path).arg("--json");
        more.iter().for_each(|source| {
            command.arg("--source").arg(source);
        });
        let output = command.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report)
    };
    for more in [&[][..], &[source.as_path()]] {
        let (code, report) = verified(&out, more);
        assert_eq!((code, &report["ok"]), (Some(0), &true.into()), "{report}");
        assert_eq!(report["replaced_tensors"], new.len() + 1, "{report}");
    }
    // Damage is found: of what was computed always, of the rest by the source.
    let broken = file("broken.gguf");
    for (tensor, found_alone) in [(new[0].as_str(), true), ("blk.0.attn_q.weight", false)] {
        let model = ModelFile::open(&out).unwrap();
        let at = model
            .gguf
            .data_range(model.gguf.tensor(tensor).unwrap())
            .start;
        let mut bytes = std::fs::read(&out).unwrap();
        bytes[at as usize + 5] ^= 1;
        std::fs::write(&broken, bytes).unwrap();
        let (code, _) = verified(&broken, &[]);
        assert_eq!(code, Some(if found_alone { 4 } else { 0 }), "{tensor}");
        let (code, report) = verified(&broken, &[&source]);
        assert_eq!(code, Some(4), "{tensor}");
        assert_eq!(report["findings"][0]["subject"], tensor, "{report}");
    }
    let other = written(folder.path(), "tiny-gqa");
    assert_eq!(verified(&out, &[&other]).0, Some(4));
    // Whatever is in the file about it is bad input when it cannot be read.
    program().arg("verify").arg(&source).assert().code(3);
}
