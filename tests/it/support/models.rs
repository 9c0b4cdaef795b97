//! Models: those that are fetched, and those that tests make.

use std::path::{Path, PathBuf};

use headshare_testmodels::ModelSpec;
pub use headshare_testmodels::fetched::{GEMMA, SMOLLM2};

/// [`SMOLLM2`]'s file.
#[track_caller]
pub fn smollm2() -> PathBuf {
    SMOLLM2.path()
}

/// [`GEMMA`]'s file.
#[track_caller]
pub fn gemma() -> PathBuf {
    GEMMA.path()
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
