//! Where the models are, and how the program is run on them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fetched(name: &str) -> PathBuf {
    let folder = std::env::var_os("HEADSHARE_MODELS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run scripts/fetch-models.sh, or name the folder that has it in HEADSHARE_MODELS",
        path.display()
    );
    path
}

/// SmolLM2-135M-Instruct: talks, in ChatML.
pub fn model() -> PathBuf {
    fetched("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma-3-270M, which was not trained to talk and has no chat template.
pub fn base_model() -> PathBuf {
    fetched("gemma-3-270m-q4_k_m.gguf")
}

/// `run PATH`, on one thread: ggml's threads spin while they wait, which tests
/// side by side cannot afford.
pub fn run_on(path: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("headshare-gguf"));
    command.arg("run").arg(path).args(["-t", "1"]);
    command
}

/// `run MODEL`, in the same way.
pub fn run() -> Command {
    run_on(&model())
}

pub fn output(args: &[&str]) -> Output {
    run().args(args).output().unwrap()
}

/// Runs `command` with `input` on its standard input.
pub fn fed(command: &mut Command, input: impl AsRef<[u8]>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that ends before it has read everything is no error here.
    let _ = stdin.write_all(input.as_ref());
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[track_caller]
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A grammar whose texts never end by themselves.
pub const ENDLESS: &str = "root ::= [a-z \\n]+ \"\u{1}\"";

#[cfg(unix)]
pub fn interrupt(pid: u32) {
    let status = Command::new("kill")
        .args(["-INT", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}
