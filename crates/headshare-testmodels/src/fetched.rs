//! Real models, which `scripts/fetch-models.sh` fetches: tests that need one
//! begin with [`needs!`](crate::needs), and are skipped by name where it is
//! missing.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A real model, by the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched(&'static str);

/// SmolLM2-135M-Instruct, Q4_1: 30 layers, 9 heads in 3 KV groups. Talks, in
/// ChatML.
pub const SMOLLM2: Fetched = Fetched("SmolLM2-135M-Instruct.Q4_1.gguf");

/// Gemma-3-270M, Q4_K_M: 18 layers, 4 heads in 1 KV group, five types. Was not
/// trained to talk and has no chat template.
pub const GEMMA: Fetched = Fetched("gemma-3-270m-q4_k_m.gguf");

/// The folder with the models: `models` in the repository, or the one that
/// HEADSHARE_MODELS names.
pub fn folder() -> PathBuf {
    std::env::var_os("HEADSHARE_MODELS").map_or_else(
        || {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
            root.expect("the crate lies two folders below the root")
                .join("models")
        },
        PathBuf::from,
    )
}

impl Fetched {
    /// Where it is.
    ///
    /// # Panics
    /// When it is not there; see [`needs!`](crate::needs).
    #[track_caller]
    pub fn path(self) -> PathBuf {
        let path = folder().join(self.0);
        assert!(path.is_file(), "{}", missing(&path));
        path
    }
}

fn missing(path: &Path) -> String {
    format!(
        "{} is missing: run scripts/fetch-models.sh, or name the folder that has it in \
         HEADSHARE_MODELS",
        path.display()
    )
}

/// Whether the test `name` is to be skipped, since one of `models` is missing.
/// Says so on stderr, which no test runner keeps to itself.
///
/// # Panics
/// When one is missing and HEADSHARE_REQUIRE_MODELS is set, as `scripts/test.sh`
/// sets it.
pub fn skipped(name: &str, models: &[Fetched]) -> bool {
    let paths = models.iter().map(|model| folder().join(model.0));
    let Some(path) = paths.into_iter().find(|path| !path.is_file()) else {
        return false;
    };
    let required = std::env::var_os("HEADSHARE_REQUIRE_MODELS").is_some();
    assert!(!required, "{}", missing(&path));
    let line = format!("skipped: {name}: {}\n", missing(&path));
    std::io::stderr().write_all(line.as_bytes()).ok();
    true
}

/// Ends the test that it stands in, with a line that names it, where a model
/// that it needs is missing.
///
/// ```
/// # use headshare_testmodels::{fetched::SMOLLM2, needs};
/// fn a_test() {
///     needs!(SMOLLM2);
///     assert!(SMOLLM2.path().is_file());
/// }
/// # a_test();
/// ```
#[macro_export]
macro_rules! needs {
    ($($model:expr),+ $(,)?) => {
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        let name = name.strip_suffix("::here").unwrap_or(name);
        if $crate::fetched::skipped(name, &[$($model),+]) {
            return;
        }
    };
}
