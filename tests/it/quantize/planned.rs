//! Plans whose tensors keep their types, or get those that the plan says.

use std::path::Path;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, self_merge, type_named};
use serde_json::{Value, json as json_of};

use super::{SHORT, divergence, plan_of, quantized, tokens_both_ways};
use crate::repair::steps::{verify, words};
use crate::support::{json, preset, program, read, written};

/// `convert SOURCE --plan PLAN`, of short windows.
fn carried_out(source: &Path, plan: &Path, out: &Path, more: &[&str]) -> Value {
    let mut command = program();
    command.arg("convert").arg(source).arg("-o").arg(out);
    command.arg("--plan").arg(plan).args(more);
    if !more.is_empty() {
        command.args(SHORT);
    }
    json(command.arg("--json"))
}

/// What is refitted says so in the file: that takes bytes, too.
#[test]
fn a_dry_run_knows_of_what_is_refitted_at_the_type_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let text = words(folder.path());
    let calibrate = ["--calibrate", text.to_str().unwrap()];
    let drop = json_of!([{"drop": {"layer": 1, "unit": 0}}]);
    let plan = plan_of(&source, &drop);
    let dry = carried_out(
        &source,
        &plan,
        &at("out"),
        &[&calibrate[..], &["--dry-run"]].concat(),
    );
    let done = carried_out(&source, &plan, &at("out"), &calibrate);
    assert!(!done["repair"]["tensors"].as_array().unwrap().is_empty());
    let [told, is] = [&dry, &done].map(|of| of["output"]["bytes"].as_u64().unwrap());
    assert_eq!(is, read(&at("out")).len() as u64);
    assert!(is <= told && told < is + 8192, "{told} told, {is} written");
}

/// The types that a plan says are fitted as all others are.
#[test]
fn types_of_a_plan_and_of_the_command_are_fitted_together() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let (up, head) = ("blk.1.ffn_up.weight", "output.weight");
    let store = |tensor: &str| json_of!({"store": {"tensor": tensor, "type": "q4_0"}});
    let plan = plan_of(&source, &json_of!([store(up), store(head)]));
    let of_plan = quantized(
        &source,
        "q8_0",
        &at("planned"),
        &["--pure", "--plan", plan.to_str().unwrap()],
    );
    let types = [
        "--tensor-type",
        "blk.1.ffn_up=q4_0",
        "--tensor-type",
        "^output.weight=q4_0",
    ];
    let of_command = quantized(
        &source,
        "q8_0",
        &at("named"),
        &[&["--pure"][..], &types].concat(),
    );
    let matrices = |done: &Value| done["quantized"]["matrices"].clone();
    assert_eq!(matrices(&of_plan), matrices(&of_command));
    let [planned, named] = ["planned", "named"].map(|name| ModelFile::open(&at(name)).unwrap());
    for info in named.gguf.tensors() {
        let other = planned.gguf.tensor(&info.name).unwrap();
        assert_eq!(other.ggml_type, info.ggml_type, "{}", info.name);
        let data = |file: &ModelFile, info| file.bytes(file.gguf.data_range(info)).to_vec();
        assert!(data(&planned, other) == data(&named, info), "{}", info.name);
    }
}

/// Without types, a text only repairs, and the file says nothing of types.
#[test]
fn a_plan_without_types_changes_none() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let text = words(folder.path());
    let calibrate = ["--calibrate", text.to_str().unwrap()];
    let file_type = |file: &Path| {
        let file = ModelFile::open(file).unwrap();
        file.gguf.u64_value("general.file_type").unwrap()
    };
    let drop = json_of!([{"drop": {"layer": 1, "unit": 0}}]);
    let plan = plan_of(&source, &drop);
    let done = carried_out(&source, &plan, &at("out"), &calibrate);
    assert_eq!(done["quantized"]["to"], "f32", "{}", done["quantized"]);
    assert_eq!(file_type(&at("out")), file_type(&source));
    assert!(!done["repair"]["tensors"].as_array().unwrap().is_empty());
    // Neither types nor units: what is equal is stored once, and nothing is fitted.
    let merged = at("merged.gguf");
    self_merge(&source, &[0, 1, 2, 3, 0, 1, 2, 3], &merged).unwrap();
    let plan = plan_of(&merged, &json_of!([]));
    let done = carried_out(&merged, &plan, &at("once"), &calibrate);
    assert_eq!(done.get("quantized"), None);
    let without = carried_out(&merged, &plan, &at("once-more"), &[]);
    assert_eq!(done["duplicates"], without["duplicates"]);
    assert!(read(&at("once")) == read(&at("once-more")));
}

#[test]
fn what_shares_and_keeps_its_type_is_repaired_while_all_is_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = at("model.gguf");
    let spec = ModelSpec {
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-llama")
    };
    spec.write(&source).unwrap();
    let share = |layer: u32, unit: u32, donor: u32| {
        json_of!({"share": {"layer": layer, "unit": unit, "donor_layer": 0, "donor_unit": donor,
                            "parts": ["q", "k", "v"]}})
    };
    let plan = plan_of(
        &source,
        &json_of!([share(1, 0, 0), share(1, 1, 2), share(2, 3, 0)]),
    );
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let (shared, repaired, fitted, both) = (at("shared"), at("repaired"), at("fitted"), at("both"));
    carried_out(&source, &plan, &shared, &[]);
    carried_out(&source, &plan, &repaired, &["--repair", text]);
    let done = carried_out(&source, &plan, &fitted, &["--calibrate", text]);
    // What the plan does beside types is repaired without being asked.
    assert!(!done["repair"]["tensors"].as_array().unwrap().is_empty());
    carried_out(
        &source,
        &plan,
        &both,
        &["--repair", text, "--calibrate", text],
    );
    assert!(read(&fitted) == read(&both));
    verify(&fitted, &source);
    tokens_both_ways(&fitted);
    let [shared, repaired, fitted] = [&shared, &repaired, &fitted].map(|f| divergence(f, &source));
    assert!(
        repaired < 0.9 * shared && fitted < 1.05 * repaired,
        "{shared} nats, {repaired} repaired, {fitted} fitted"
    );
}

#[test]
fn blocks_that_share_are_stored_at_one_type() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("model.gguf");
    preset("tiny-llama").write(&source).unwrap();
    let text = words(folder.path());
    let store = |layer: u32, to: &str| {
        let tensor = format!("blk.{layer}.attn_q.weight");
        json_of!({"store": {"tensor": tensor, "type": to}})
    };
    let share = json_of!({"share": {"layer": 1, "unit": 0, "donor_layer": 0, "donor_unit": 0,
                                    "parts": ["q"]}});
    let no_unit = json_of!({"share": {"layer": 1, "unit": 99, "donor_layer": 0, "donor_unit": 0,
                                      "parts": ["q"]}});
    let differ = "q of layer 1, unit 0 and of layer 0, unit 0 are stored at different types";
    let text = text.to_str().unwrap();
    for (stores, share, refused) in [
        (vec![store(1, "q8_0")], &share, Some(differ)),
        (
            vec![store(0, "q4_0"), store(1, "q8_0")],
            &share,
            Some(differ),
        ),
        (
            vec![store(1, "q8_0")],
            &no_unit,
            Some("the model has no layer 1, unit 99"),
        ),
        (vec![store(0, "q8_0"), store(1, "q8_0")], &share, None),
    ] {
        let edits = [stores, vec![share.clone()]].concat();
        let plan = plan_of(&source, &json_of!(edits));
        for more in [vec![], vec!["--repair", text], vec!["--calibrate", text]] {
            let out = folder.path().join("out");
            let mut command = program();
            command.arg("convert").arg(&source).arg("-o").arg(&out);
            command.arg("--plan").arg(&plan).args(&more);
            if !more.is_empty() {
                command.args(SHORT);
            }
            let ran = command.arg("--force").output().unwrap();
            let stderr = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.success(), refused.is_none(), "{stderr}");
            let at = format!("edits[{}].share", edits.len() - 1);
            let says = [at.as_str(), refused.unwrap_or_default(), "plan.json"];
            assert!(
                refused.is_none() || says.iter().all(|part| stderr.contains(part)),
                "{stderr}"
            );
        }
    }
}
