//! Models: those that are fetched, and those that tests make.

use std::path::{Path, PathBuf};

use headshare_testmodels::ModelSpec;

use super::root;

/// A real model, by its file name.
#[track_caller]
fn fetched(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("HEADSHARE_MODELS").map_or_else(|| root().join("models"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run scripts/fetch-models.sh, or name the folder that has it in \
         HEADSHARE_MODELS",
        path.display()
    );
    path
}

/// SmolLM2-135M-Instruct, Q4_1: 30 layers, 9 heads in 3 KV groups. Talks, in
/// ChatML.
#[track_caller]
pub fn smollm2() -> PathBuf {
    fetched("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma-3-270M, Q4_K_M: 18 layers, 4 heads in 1 KV group, five types. Was not
/// trained to talk and has no chat template.
#[track_caller]
pub fn gemma() -> PathBuf {
    fetched("gemma-3-270m-q4_k_m.gguf")
}

/// A ready-made shape.
pub fn preset(name: &str) -> ModelSpec {
    ModelSpec::preset(name).expect("a preset")
}

/// The preset in two layers and with few tokens, for tests with many files.
pub fn small(name: &str) -> ModelSpec {
    ModelSpec {
        n_layer: 2,
        n_vocab: 290,
        ..preset(name)
    }
}

/// The preset with random weights, written to `folder`.
pub fn written(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    preset(name).write(&path).unwrap();
    path
}
