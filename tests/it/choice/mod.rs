//! Multiple choice and generation against references, as a library and as
//! scripts see them.

mod bad_input;
mod batches;
mod generate;
mod output;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{self, PROGRAM, text};

/// A task file of these tests.
fn data(name: &str) -> PathBuf {
    support::data("choice").join(name)
}

/// `eval MEASURE MODEL ARGS` on one thread: ggml's threads spin while they
/// wait, which tests side by side cannot afford.
fn run_eval(measure: &str, model: &Path, args: &[&OsStr]) -> Output {
    Command::new(PROGRAM)
        .args(["eval", measure])
        .arg(model)
        .args(["-t", "1"])
        .args(args)
        .output()
        .unwrap()
}

/// What it printed: one JSON object on one line.
#[track_caller]
fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line = text(&output.stdout).strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "{line}");
    serde_json::from_str(line).unwrap()
}

/// Refused as a bad input file: one `error:` line with `part` in it, and
/// nothing on stdout.
#[track_caller]
fn refused(output: &Output, part: &str) {
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let first = text(&output.stderr).lines().next().unwrap_or("");
    assert!(first.starts_with("error: "), "{output:?}");
    assert!(first.contains(part), "no {part:?} in {first}");
}

/// Runs `eval` with these arguments (strings and paths).
macro_rules! eval {
    ($measure:expr, $model:expr, $($arg:expr),* $(,)?) => {
        $crate::choice::run_eval($measure, &$model, &[$(std::ffi::OsStr::new(&$arg)),*])
    };
}
use eval;
