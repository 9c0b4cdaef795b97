//! Plan files of version 1 that `convert --plan` must not carry out.

use std::path::Path;

use serde_json::{Value, json};

use super::plan_v1::plan_v1;
use crate::support::{Folder, preset, read, small};

/// A model, its plan, and a folder for bad plans.
struct Case {
    folder: Folder,
    plan: Value,
}

impl Case {
    fn new() -> Self {
        let folder = Folder::new();
        let model = folder.file("model.gguf");
        preset("tiny-llama").write(&model).unwrap();
        let plan = run!["plan", model, "--ratio", "0.5", "--json"].ok().json();
        let plan = plan_v1(&plan);
        assert_eq!(plan["aliases"].as_array().unwrap().len(), 8);
        Self { folder, plan }
    }

    /// `convert --plan` refuses the plan `text`, in a dry run too.
    #[track_caller]
    fn refuse(&self, text: impl AsRef<[u8]>, says: &str) {
        self.refuse_path(&self.folder.write("bad.json", text), says);
        assert_eq!(self.folder.names(), ["bad.json", "model.gguf"]);
    }

    #[track_caller]
    fn refuse_path(&self, path: &Path, says: &str) {
        let (model, out) = (self.folder.file("model.gguf"), self.folder.file("out"));
        let says = [path.to_str().unwrap(), says];
        run!["convert", model, "--plan", path, "-o", out].refused(3, &says);
        run![
            "convert",
            model,
            "--plan",
            path,
            "-o",
            out,
            "--dry-run",
            "--json"
        ]
        .refused(3, &says);
    }

    /// The plan, changed.
    #[track_caller]
    fn refuse_changed(&self, says: &str, change: impl FnOnce(&mut Value)) {
        let mut plan = self.plan.clone();
        change(&mut plan);
        self.refuse(plan.to_string(), says);
    }
}

#[test]
fn what_is_no_plan_is_refused() {
    let case = Case::new();
    case.refuse("", "not a plan file");
    case.refuse("hello", "not a plan file");
    case.refuse("[]", "not a plan file");
    case.refuse("{}", "version");
    case.refuse([0xff, 0xfe], "not a plan file");
    let text = case.plan.to_string();
    for len in [1, 10, text.len() / 2, text.len() - 1] {
        case.refuse(&text[..len], "EOF while parsing");
    }
    case.refuse(format!("{text} x"), "trailing characters");
    case.refuse(format!("{text}{text}"), "trailing characters");
    case.refuse(read(&case.folder.file("model.gguf")), "not a plan file");
    case.refuse("[".repeat(1 << 20), "not a plan file");
}

#[test]
fn what_cannot_be_read_as_a_plan_is_refused_without_waiting_for_it() {
    let case = Case::new();
    let pipe = case.folder.file("pipe");
    let mkfifo = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(mkfifo.expect("mkfifo runs").success());
    case.refuse_path(&pipe, "is a pipe");
    case.refuse_path(case.folder.path(), "is a folder");
    case.refuse_path(Path::new("/dev/zero"), "is a device");
    case.refuse_path(&case.folder.file("missing.json"), "No such file");
}

#[test]
fn every_field_is_checked() {
    let case = Case::new();
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    for field in keys(&case.plan) {
        if !matches!(field.as_str(), "saved" | "dropped") {
            case.refuse_changed(&format!("missing field `{field}`"), |plan| {
                plan.as_object_mut().unwrap().remove(&field);
            });
        }
        case.refuse_changed(&format!("bad.json: {field}: "), |plan| {
            plan[&field] = json!(true)
        });
    }
    for field in keys(&case.plan["aliases"][0]) {
        case.refuse_changed(&format!("aliases[1]: missing field `{field}`"), |plan| {
            plan["aliases"][1].as_object_mut().unwrap().remove(&field);
        });
        let says = format!("aliases[1].{field}: invalid type");
        case.refuse_changed(&says, |plan| plan["aliases"][1][&field] = json!({}));
    }
    case.refuse_changed("unknown field `surprise`", |plan| {
        plan["surprise"] = json!(1)
    });
    case.refuse_changed("unknown field `surprise`", |plan| {
        plan["aliases"][0]["surprise"] = json!(1)
    });
    case.refuse_changed("match: unknown match function \"cosine\"", |plan| {
        plan["match"] = json!("cosine")
    });
    case.refuse_changed("aliases[0].parts[0]: unknown variant `o`", |plan| {
        plan["aliases"][0]["parts"] = json!(["o"]);
    });
    case.refuse_changed("aliases[3].layer: invalid value", |plan| {
        plan["aliases"][3]["layer"] = json!(-1);
    });
}

#[test]
fn another_version_is_named_before_its_unknown_fields() {
    let case = Case::new();
    for version in [0, 3, 4_000_000_000u32] {
        case.refuse_changed(&format!("version: {version} is unknown"), |plan| {
            plan["version"] = json!(version);
            plan["new"] = json!("field");
        });
    }
}

#[test]
fn units_that_are_not_there_are_named() {
    let case = Case::new();
    for (field, value, says) in [
        ("layer", 4, "aliases[0].unit: the model has no layer 4"),
        ("unit", 4, "aliases[0].unit: "),
        ("donor_layer", 4_000_000_000u32, "aliases[0].donor_unit: "),
        ("donor_unit", 4, "aliases[0].donor_unit: "),
    ] {
        case.refuse_changed(says, |plan| plan["aliases"][0][field] = json!(value));
    }
    case.refuse_changed("units: 15, but the model has 16", |plan| {
        plan["units"] = json!(15)
    });
}

#[test]
fn aliases_that_contradict_each_other_are_named() {
    let case = Case::new();
    case.refuse_changed("aliases[8]: q of", |plan| {
        let first = plan["aliases"][0].clone();
        plan["aliases"].as_array_mut().unwrap().push(first);
    });
    case.refuse_changed("aliases[2]: k of", |plan| {
        plan["aliases"][2]["parts"] = json!(["k", "q", "k"]);
    });
    case.refuse_changed("aliases[0].parts: is empty", |plan| {
        plan["aliases"][0]["parts"] = json!([]);
    });
    case.refuse_changed("aliases[7].donor_unit: q of", |plan| {
        let first = plan["aliases"][0].clone();
        plan["aliases"][7]["donor_layer"] = first["layer"].clone();
        plan["aliases"][7]["donor_unit"] = first["unit"].clone();
    });
    case.refuse_changed("aliases[0].donor_unit: q of", |plan| {
        let alias = &mut plan["aliases"][0];
        alias["donor_layer"] = alias["layer"].clone();
        alias["donor_unit"] = alias["unit"].clone();
    });
}

#[test]
fn dropped_units_are_checked() {
    let case = Case::new();
    case.refuse_changed("dropped[0]: missing field `score`", |plan| {
        plan["dropped"] = json!([{"layer": 1, "unit": 0}]);
    });
    case.refuse_changed("dropped[0].unit: the model has no layer 9", |plan| {
        plan["dropped"] = json!([{"layer": 9, "unit": 0, "score": 0.0}]);
    });
    case.refuse_changed("aliases[0].unit: ", |plan| {
        let alias = &plan["aliases"][0];
        let unit = json!({"layer": alias["layer"], "unit": alias["unit"], "score": 0.0});
        plan["dropped"] = json!([unit]);
    });
}

#[test]
fn blocks_of_other_types_or_shapes_do_not_stand_in_for_each_other() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    // Layer 1 has half as many heads, so as many query heads in fewer groups.
    headshare_testmodels::ModelSpec {
        n_layer: 2,
        n_head: headshare_testmodels::PerLayer::Each(vec![4, 4]),
        n_head_kv: headshare_testmodels::PerLayer::Each(vec![4, 2]),
        ..preset("tiny-llama")
    }
    .write(&model)
    .unwrap();
    let plan = run!["plan", model, "--ratio", "0", "--json"].ok().json();
    let mut plan = plan_v1(&plan);
    plan["aliases"] = json!([{"layer": 1, "unit": 0, "donor_layer": 0, "donor_unit": 0,
        "matched_layer": 0, "matched_unit": 0, "parts": ["q"], "score": 0.5}]);
    let path = folder.write("plan.json", plan.to_string());
    let out = folder.file("out");
    run!["convert", model, "--plan", path, "-o", out].refused(
        3,
        &["plan.json", "aliases[0]: q of", "differ in type or shape"],
    );
    // The k blocks have the same shape.
    plan["aliases"][0]["parts"] = json!(["k"]);
    let path = folder.write("plan.json", plan.to_string());
    run!["convert", model, "--plan", path, "-o", out].ok();
    run!["verify", out, "--source", model].ok();
}

#[test]
fn a_plan_for_another_file_is_refused_with_a_hint() {
    let case = Case::new();
    let zeros = format!("blake3:{}", "0".repeat(64));
    case.refuse_changed("source: ", |plan| plan["source"] = json!(zeros));
    case.refuse_changed("source: ", |plan| plan["source"] = json!("blake3:12"));
    case.refuse_changed("source: ", |plan| plan["source"] = json!(""));
    let digits = &case.plan["source"].as_str().unwrap()["blake3:".len()..];
    let other: String = digits.chars().rev().collect();
    let other = format!("blake3:{other}");
    case.refuse_changed("made for another file", |plan| {
        plan["source"] = json!(other)
    });
    // The same shape with other weights.
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    headshare_testmodels::ModelSpec {
        seed: 2,
        ..preset("tiny-llama")
    }
    .write(&model)
    .unwrap();
    let plan = folder.write("plan.json", case.plan.to_string());
    let out = folder.file("out");
    let ran = run!["convert", model, "--plan", plan, "-o", out]
        .refused(3, &["plan.json", "model.gguf", "made for another file"]);
    assert!(ran.hint().contains("headshare-gguf plan"), "{ran:#?}");
    // Another shape.
    small("tiny-gqa").write(&model).unwrap();
    run!["convert", model, "--plan", plan, "-o", out]
        .refused(3, &["plan.json", "made for another file"]);
    assert_eq!(folder.names(), ["model.gguf", "plan.json"]);
}

#[test]
fn a_plan_without_savings_and_drops_is_complete() {
    let case = Case::new();
    let mut plan = case.plan.clone();
    plan.as_object_mut()
        .unwrap()
        .retain(|key, _| key != "saved" && key != "dropped");
    let path = case
        .folder
        .write("plan.json", serde_json::to_string_pretty(&plan).unwrap());
    let (model, out) = (case.folder.file("model.gguf"), case.folder.file("out"));
    let result = run!["convert", model, "--plan", path, "-o", out, "--json"]
        .ok()
        .json();
    assert_eq!(result["saved"], case.plan["saved"]);
    run!["verify", out, "--source", model].ok();
}
