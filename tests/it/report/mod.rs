//! `report` from end to end on tiny models: what it writes, that it goes on
//! where it was stopped, and what it refuses before any long work.

mod bad_input;
mod compared;
mod fitted;
mod output;
mod resumed;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{self, Folder, PROGRAM, Ran, preset, valley};
use headshare_testmodels::ModelSpec;

/// The same words in another order.
fn backwards(text: &str) -> String {
    text.split_whitespace().rev().collect::<Vec<_>>().join(" ")
}

/// A model whose layers are written twice, with whole pages of weights.
fn model(folder: &Folder) -> PathBuf {
    let path = folder.file("model.gguf");
    let spec = ModelSpec {
        n_embd: 128,
        ..preset("tiny-gqa")
    };
    spec.write(&path).unwrap();
    path
}

/// `report` with small measures, on one thread: tests run side by side.
fn arguments(model: &Path, folder: &Folder, more: &[&str]) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["report".into(), model.into()];
    all.extend(["--text".into(), valley().into()]);
    all.extend(["-o".into(), folder.file("out").into()]);
    let small = [
        "--ctx", "64", "--chunks", "2", "-t", "1", "-p", "8", "-n", "2", "-r", "1",
    ];
    all.extend(small.iter().chain(more).map(Into::into));
    all
}

fn report(model: &Path, folder: &Folder, more: &[&str]) -> Ran {
    let all = arguments(model, folder, more);
    let all: Vec<&OsStr> = all.iter().map(OsString::as_os_str).collect();
    support::run(&all)
}

/// The same, to be started.
fn command(model: &Path, folder: &Folder, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments(model, folder, more));
    command
}
