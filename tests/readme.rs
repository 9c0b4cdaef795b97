//! Every command in the README is run, as it stands there.
//!
//! A binary of its own, since no other test may run beside it: the demo builds the
//! program that they all use, and what it builds is another file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use headshare_testmodels::fetched::{self, SMOLLM2};
use headshare_testmodels::needs;

/// The tests here do not run beside each other either.
fn take_turns() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks marked as shell, in order.
fn shell_blocks(text: &str) -> Vec<String> {
    text.split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// The folder of the programs: of this one and of `make-test-model`, which
/// test.sh builds before.
fn programs() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_headshare-gguf"))
        .parent()
        .unwrap()
        .to_owned();
    assert!(
        folder.join("make-test-model").exists(),
        "make-test-model is missing: cargo build --release --workspace"
    );
    folder
}

#[test]
fn the_two_commands_are_there_and_the_rest_runs() {
    needs!(SMOLLM2);
    let _turn = take_turns();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = shell_blocks(&readme);
    let (first, rest) = blocks.split_first().unwrap();
    let scripts: Vec<&str> = first
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(scripts, ["./scripts/demo.sh", "./scripts/test.sh"]);
    let (build, rest) = rest.split_last().unwrap();
    let test_script = std::fs::read_to_string(root().join("scripts/test.sh")).unwrap();
    assert!(test_script.contains(build.trim()), "test.sh runs {build:?}");

    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(fetched::folder(), folder.path().join("models")).unwrap();
    std::os::unix::fs::symlink(root().join("tests"), folder.path().join("tests")).unwrap();
    let python = root().join("target/tools/xllamacpp/bin");
    assert!(
        python.join("python3").exists(),
        "xllamacpp is missing: run scripts/test.sh"
    );
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{}:{path}", programs().display(), python.display());
    assert!(rest.len() >= 5, "the README shows how to convert and run");
    for block in rest {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{block}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_demo_runs() {
    needs!(SMOLLM2);
    let _turn = take_turns();
    let output = Command::new(root().join("scripts/demo.sh"))
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // A line a file, which ends with the text. The plain model knows the capital,
    // and the lossless merge says what the merge says.
    let texts: Vec<&str> = stdout
        .lines()
        .skip_while(|line| !line.starts_with("file "))
        .filter(|line| line.contains(".gguf  "))
        .filter_map(|line| Some(line.rsplit_once("  ")?.1))
        .collect();
    assert_eq!(texts.len(), 5, "{stdout}");
    assert!(texts[0].contains("Paris"), "{stdout}");
    assert_eq!(texts[3], texts[4], "{stdout}");
}
