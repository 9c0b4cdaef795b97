//! Plans whose tensors keep their types, or get those that the plan says.

use std::path::Path;

use headshare_testmodels::{ModelSpec, type_named};
use serde_json::{Value, json as json_of};

use super::{SHORT, divergence, plan_of, tokens_both_ways};
use crate::repair::steps::{verify, words};
use crate::support::{json, preset, program, read};

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
    let source = at("model.gguf");
    preset("tiny-gqa").write(&source).unwrap();
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
