//! A converted file is the model that it expands to, to the last bit.

use serde_json::Value;

use super::{converted_smollm2, eval, path};
use crate::support::{Folder, SMOLLM2, needs, preset, smollm2, valley};

/// The measured values, without what tells one file from another.
fn values(mut report: Value) -> Value {
    let object = report.as_object_mut().unwrap();
    for key in ["file", "bytes", "resolve"] {
        assert!(object.remove(key).is_some(), "no {key}");
    }
    report
}

#[test]
fn smollm2_converted_and_expanded() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let converted = converted_smollm2(&folder, "0.3");
    let expanded = folder.file("expanded.gguf");
    run!("expand", converted, "-o", expanded, "-q").ok();
    let text = valley();
    let common = [
        "--text",
        path(&text),
        "--ctx",
        "128",
        "--chunks",
        "4",
        "--json",
    ];
    let of = |args: &[&str]| eval(&[args, &common].concat()).ok().json();
    let whole = of(&[path(&expanded)]);
    assert_eq!(whole["resolve"], "none");
    assert_eq!(whole["tokens"], 4 * 63);
    for resolve in ["auto", "map", "expand"] {
        let report = of(&[path(&converted), "--resolve", resolve]);
        assert!(report["bytes"].as_u64() < whole["bytes"].as_u64());
        assert_ne!(report["resolve"], "none");
        assert_eq!(values(report), values(whole.clone()), "{resolve}");
    }
    // Against each other there is no difference, against the source there is.
    let same = of(&[path(&converted), "--base", path(&expanded)]);
    assert_eq!(same["perplexity"], whole["perplexity"]);
    let base = &same["base"];
    assert_eq!(base["perplexity"], whole["perplexity"]);
    for (key, value) in [
        ("kl_mean", 0.0),
        ("kl_max", 0.0),
        ("ln_ratio", 0.0),
        ("ratio", 1.0),
        ("same_top", 1.0),
    ] {
        assert_eq!(base[key], value, "{key}");
    }
    let source = of(&[path(&converted), "--base", path(&smollm2())]);
    let base = &source["base"];
    assert!(base["kl_mean"].as_f64().unwrap() > 0.1, "{source}");
    assert!(base["ratio"].as_f64().unwrap() > 1.1, "{source}");
}

#[test]
fn repacked_weights_folded() {
    let folder = Folder::new();
    let q4_0 = headshare_testmodels::ModelSpec {
        weight_type: headshare_testmodels::type_named("q4_0").unwrap(),
        ..preset("tiny-gqa")
    };
    let (plain, converted, expanded) = (
        folder.file("plain.gguf"),
        folder.file("converted.gguf"),
        folder.file("expanded.gguf"),
    );
    q4_0.write(&plain).unwrap();
    run!("convert", plain, "-o", converted, "--ratio", "0.4", "-q").ok();
    run!("expand", converted, "-o", expanded, "-q").ok();
    let text = valley();
    let common = [
        "--text",
        path(&text),
        "--ctx",
        "64",
        "--chunks",
        "30",
        "--json",
    ];
    let of = |file, resolve| {
        eval(&[&[file, "--resolve", resolve], &common[..]].concat())
            .ok()
            .json()
    };
    let whole = of(path(&expanded), "auto");
    assert_eq!(values(of(path(&converted), "fold")), values(whole.clone()));
    assert_ne!(values(of(path(&plain), "auto")), values(whole));
}

#[test]
fn slow_types_may_be_computed_with_as_f16() {
    let folder = Folder::new();
    let file = |name: &str| folder.file(name);
    let text = valley();
    let of = |file: &std::path::Path, more: &[&str]| {
        let common = [
            "--text",
            path(&text),
            "--ctx",
            "64",
            "--chunks",
            "6",
            "--json",
        ];
        eval(&[&[path(file)], more, &common].concat()).ok().json()
    };
    let of_type = |name: &str| headshare_testmodels::ModelSpec {
        weight_type: headshare_testmodels::type_named(name).unwrap(),
        ..preset("tiny-gqa")
    };
    let (slow, exact) = (file("slow"), file("exact"));
    of_type("q4_1").write(&slow).unwrap();
    of_type("f32").write(&exact).unwrap();
    let (stored, fast) = (of(&slow, &[]), of(&slow, &["--fast"]));
    assert!(fast["as_f16"].as_u64().unwrap() > 8, "{fast}");
    assert!(stored.get("as_f16").is_none(), "{stored}");
    let [a, b] = [&stored, &fast].map(|figures| figures["perplexity"].as_f64().unwrap());
    assert!((a / b).ln().abs() < 0.01 && a != b, "{a} and {b}");
    // What is fast as it is stays so.
    let mut fast = of(&exact, &["--fast"]);
    assert_eq!(
        fast.as_object_mut().unwrap().remove("as_f16"),
        Some(0.into())
    );
    assert_eq!(fast, of(&exact, &[]));
    // A converted file is what it expands to.
    let (shared, expanded) = (file("shared"), file("expanded"));
    run!("convert", slow, "-o", shared, "--ratio", "0.3", "-q").ok();
    run!("expand", shared, "-o", expanded, "-q").ok();
    let [shared, expanded] = [shared, expanded].map(|file| values(of(&file, &["--fast"])));
    assert_eq!(shared, expanded);
    let text = path(&text);
    let both = [path(&slow), "--text", text, "--fast", "--resolve", "map"];
    let ran = eval(&both).exits(2);
    assert!(ran.stderr.contains("cannot be used with"), "{ran:?}");
}
