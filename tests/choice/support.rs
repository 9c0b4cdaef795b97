//! Runs the program, and makes the files that it is run on.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headshare_testmodels::ModelSpec;
use serde_json::Value;

/// SmolLM2-135M-Instruct, Q4_1.
pub fn smollm2() -> PathBuf {
    fetched("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma-3-270M, Q4_K_M.
pub fn gemma() -> PathBuf {
    fetched("gemma-3-270m-q4_k_m.gguf")
}

fn fetched(name: &str) -> PathBuf {
    let folder = std::env::var_os("HEADSHARE_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not there: run scripts/fetch-models.sh",
        path.display()
    );
    path
}

/// A task file of these tests.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/choice")
        .join(name)
}

/// A data set that lies beside the repository; `None`, with a remark, where
/// there is none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data")
        .join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: there is no ../shared/data/{name}");
    None
}

/// A model with random weights.
pub fn tiny(folder: &Path, preset: &str) -> PathBuf {
    let path = folder.join(format!("{preset}.gguf"));
    let spec = ModelSpec::preset(preset).unwrap();
    spec.write(&path).unwrap();
    path
}

/// `eval MEASURE MODEL ARGS` on one thread: ggml's threads spin while they
/// wait, which tests side by side cannot afford.
pub fn run_eval(measure: &str, model: &Path, args: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headshare-gguf"))
        .args(["eval", measure])
        .arg(model)
        .args(["-t", "1"])
        .args(args)
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What it printed: one JSON object on one line.
#[track_caller]
pub fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line = text(&output.stdout).strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "{line}");
    serde_json::from_str(line).unwrap()
}

/// Refused as a bad input file: one `error:` line with `part` in it, and
/// nothing on stdout.
#[track_caller]
pub fn refused(output: &Output, part: &str) {
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let first = text(&output.stderr).lines().next().unwrap_or("");
    assert!(first.starts_with("error: "), "{output:?}");
    assert!(first.contains(part), "no {part:?} in {first}");
}

/// Runs `eval` with these arguments (strings and paths).
macro_rules! eval {
    ($measure:expr, $model:expr, $($arg:expr),* $(,)?) => {
        $crate::support::run_eval($measure, &$model, &[$(std::ffi::OsStr::new(&$arg)),*])
    };
}
pub(crate) use eval;
