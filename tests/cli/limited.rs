//! Where a limit leaves too little memory, every command says so in one line,
//! and ends as it says it does.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use headshare_testmodels::ModelSpec;

use crate::support::{Folder, Ran, preset};

/// Runs the program with at most `kib` KiB of addresses.
fn limited(kib: usize, args: &[&OsStr]) -> Ran {
    let output = Command::new("bash")
        .args(["-c", "ulimit -v $1 && shift && exec \"$@\"", "bash"])
        .arg(kib.to_string())
        .arg(env!("CARGO_BIN_EXE_headshare-gguf"))
        .args(args)
        // A debugger that looks at an abort would take its time.
        .env("GGML_NO_BACKTRACE", "1")
        .output()
        .expect("bash runs");
    Ran {
        args: format!("{args:?}, limited to {kib} KiB"),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs with less and less memory, until the program cannot even be loaded; at
/// some of the limits it must be refused.
#[track_caller]
fn with_less_and_less(args: &[&OsStr]) {
    const STEP: usize = 6 << 10;
    let mut kib = 640 << 10;
    let mut refused = 0;
    loop {
        let ran = limited(kib, args);
        match ran.code {
            Some(0) => {}
            // The system's loader, which runs before the program does.
            Some(127) if ran.stderr.contains("shared libraries") => break,
            Some(1 | 2) => {
                refused += 1;
                let said: Vec<&str> = (ran.stderr.lines())
                    .filter(|line| !line.starts_with("note: ") && !line.starts_with("warning: "))
                    .collect();
                assert!(said[0].starts_with("error: "), "{ran:#?}");
                let hint = |line: &&str| line.starts_with("hint: ");
                assert!(
                    said.len() == 1 || said.len() == 2 && hint(&said[1]),
                    "{ran:#?}"
                );
            }
            _ => panic!("{ran:#?}"),
        }
        // Far above what it takes, small steps tell nothing.
        kib -= if refused == 0 { 4 * STEP } else { STEP };
        if kib < STEP {
            break;
        }
    }
    assert!(refused > 0, "{args:?} is never refused");
}

struct Case {
    folder: Folder,
}

impl Case {
    /// A model with a context that takes something.
    fn new() -> Self {
        let folder = Folder::new();
        let model = folder.file("model.gguf");
        let spec = ModelSpec {
            n_embd: 256,
            n_ff: 1024,
            ..preset("tiny-gqa")
        };
        spec.write(&model).unwrap();
        let shared = folder.file("shared.gguf");
        run!["convert", model, "--ratio", "0.5", "-o", shared].ok();
        folder.write("text.txt", "Once upon a time, a llama. ".repeat(600));
        Self { folder }
    }

    #[track_caller]
    fn check(&self, args: &[&str]) {
        let is_file = |arg: &str| arg.ends_with(".gguf") || arg.ends_with(".txt");
        let path = |arg: &str| match is_file(arg) {
            true => self.folder.file(arg).into_os_string(),
            false => OsString::from(arg),
        };
        let args: Vec<OsString> = args.iter().map(|arg| path(arg)).collect();
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        with_less_and_less(&args);
    }
}

#[test]
fn files_are_written_or_it_is_said_why_not() {
    let case = Case::new();
    case.check(&["plan", "model.gguf"]);
    case.check(&[
        "convert",
        "model.gguf",
        "--lossless",
        "-o",
        "out.gguf",
        "--force",
    ]);
    case.check(&["expand", "shared.gguf", "-o", "out.gguf", "--force"]);
    case.check(&["verify", "shared.gguf", "--source", "model.gguf"]);
    case.check(&["inspect", "shared.gguf"]);
}

#[test]
fn models_are_run_or_it_is_said_why_not() {
    let case = Case::new();
    case.check(&["run", "shared.gguf", "-p", "x", "-n", "2"]);
    case.check(&[
        "eval",
        "perplexity",
        "shared.gguf",
        "--text",
        "text.txt",
        "--chunks",
        "1",
    ]);
    case.check(&["analyze", "attention", "shared.gguf", "--text", "text.txt"]);
    case.check(&["bench", "shared.gguf", "-p", "8", "-n", "2", "-r", "1"]);
}

#[test]
fn a_repair_is_done_or_it_is_said_why_not() {
    let case = Case::new();
    let repair = [
        "convert",
        "model.gguf",
        "--ratio",
        "0.5",
        "-o",
        "out.gguf",
        "--force",
        "--repair",
        "text.txt",
        "--windows",
        "8",
        "--window",
        "64",
    ];
    case.check(&repair);
    // A bound that the limit does not allow.
    case.check(&[&repair[..], &["--memory", "8G"]].concat());
}

#[test]
fn the_default_of_memory_stays_within_the_limit() {
    let case = Case::new();
    let [model, out, text] =
        ["model.gguf", "out.gguf", "text.txt"].map(|name| case.folder.file(name));
    let args = ["convert", "--ratio", "0.5", "--window", "2048", "--repair"].map(OsStr::new);
    let paths = [
        text.as_os_str(),
        model.as_os_str(),
        OsStr::new("-o"),
        out.as_os_str(),
    ];
    let ran = limited(200_000, &[&args[..], &paths].concat());
    let half = (200_000 << 10) / 2;
    ran.refused(2, &["--memory", &format!("{half} bytes are too few")]);
}
