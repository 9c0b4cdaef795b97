//! A regridded model computes what its source does, with other weights.

use std::path::Path;
use std::sync::Arc;

use headshare_regrid::{How, regrid};
use headshare_runtime::{Context, ContextParams, Model, ModelParams};
use headshare_testmodels::{ModelSpec, type_named};

/// The logits after each of some tokens.
fn logits(path: &Path) -> Vec<f32> {
    let model = Arc::new(Model::load(path, &ModelParams::default(), None).unwrap());
    let params = ContextParams {
        n_ctx: Some(64),
        n_threads: Some(1),
        reproducible: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params).unwrap();
    let mut all = Vec::new();
    for token in [1, 7, 30, 11, 5, 200, 17] {
        context.decode(&[token]).unwrap();
        all.extend_from_slice(context.logits().unwrap());
    }
    all
}

fn check(preset: &str, expected: impl Fn(&How) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    let mut spec = ModelSpec::preset(preset).unwrap();
    spec.weight_type = type_named("f32").unwrap();
    spec.write(&source).unwrap();
    let how = regrid(&source, &out, type_named("f32").unwrap(), 1).unwrap();
    assert!(expected(&how), "{how:?}");
    let (before, after) = (logits(&source), logits(&out));
    let largest = before.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 2e-3 * largest, "{preset}: {a} and {b}");
    }
    assert_ne!(
        std::fs::read(&source).unwrap(),
        std::fs::read(&out).unwrap()
    );
    // The same again is the same file.
    let again = folder.path().join("again");
    regrid(&source, &again, type_named("f32").unwrap(), 1).unwrap();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap());
}

#[test]
fn a_turned_residual_stream_changes_nothing() {
    check("tiny-llama", |how| matches!(how, How::Turned { .. }));
    check("tiny-gqa", |how| matches!(how, How::Turned { .. }));
}

#[test]
fn moved_scales_change_nothing() {
    check("tiny-gemma3", |how| *how == How::Scaled);
}

#[test]
fn other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    for preset in ["tiny-gpt2", "tiny-moe", "tiny-phi3"] {
        ModelSpec::preset(preset).unwrap().write(&source).unwrap();
        let out = folder.path().join("out");
        let error = regrid(&source, &out, type_named("f32").unwrap(), 1).unwrap_err();
        assert!(
            format!("{error:#}").contains("only plain llama-like"),
            "{error:#}"
        );
        assert!(!out.exists());
    }
}
