//! The program, started with `run`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{PROGRAM, smollm2};

/// `run PATH`, on one thread: ggml's threads spin while they wait, which tests
/// side by side cannot afford.
pub fn run_on(path: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("run").arg(path).args(["-t", "1"]);
    command
}

/// `run` on SmolLM2, in the same way.
pub fn run() -> Command {
    run_on(&smollm2())
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
