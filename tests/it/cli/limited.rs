//! Where a limit leaves too little memory, every command says so in one line,
//! and ends as it says it does.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use headshare_testmodels::ModelSpec;

use crate::support::{Folder, PROGRAM, Ran, preset};

/// Runs the program with at most `kib` KiB of addresses.
fn limited(kib: usize, args: &[&OsStr]) -> Ran {
    let output = Command::new("bash")
        .args(["-c", "ulimit -v $1 && shift && exec \"$@\"", "bash"])
        .arg(kib.to_string())
        .arg(PROGRAM)
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

/// Runs with less and less memory, from `mib` MiB on in steps of `step`, until
/// the program cannot even be loaded. Returns at how many limits it was refused.
#[track_caller]
fn with_less_and_less(mib: usize, step: usize, args: &[&OsStr]) -> usize {
    // Less than the program's own code takes, with what C++ allocates before `main`.
    let code = std::fs::metadata(PROGRAM).unwrap().len() as usize;
    let loaded = (code >> 20) + 2;
    let mut refused = 0;
    for mib in (1..=mib).rev().step_by(step) {
        let ran = limited(mib << 10, args);
        match ran.code {
            Some(0) => {}
            // The system's loader, which runs before the program does, or even
            // before that.
            Some(127) if ran.stderr.contains("shared libraries") => break,
            None if mib < loaded => break,
            // libgomp's constructor, which runs before `main`.
            Some(1) if mib < loaded && ran.stderr.contains("libgomp: Out of memory") => break,
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
    }
    refused
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

    /// At some limits it must be refused, and how is looked at.
    #[track_caller]
    fn check(&self, mib: usize, step: usize, args: &[&str]) {
        let refused = self.refusals(mib, step, args);
        assert!(refused > 0, "{args:?} is never refused");
    }

    #[track_caller]
    fn refusals(&self, mib: usize, step: usize, args: &[&str]) -> usize {
        let is_file = |arg: &str| arg.ends_with(".gguf") || arg.ends_with(".txt");
        let path = |arg: &str| match is_file(arg) {
            true => self.folder.file(arg).into_os_string(),
            false => OsString::from(arg),
        };
        let args: Vec<OsString> = args.iter().map(|arg| path(arg)).collect();
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        with_less_and_less(mib, step, &args)
    }
}

#[test]
fn files_are_written_or_it_is_said_why_not() {
    let case = Case::new();
    let lossless = [
        "convert",
        "model.gguf",
        "--lossless",
        "-o",
        "out.gguf",
        "--force",
    ];
    case.check(80, 3, &["plan", "model.gguf"]);
    case.check(80, 3, &lossless);
    case.check(
        80,
        3,
        &["expand", "shared.gguf", "-o", "out.gguf", "--force"],
    );
    case.check(80, 3, &["verify", "shared.gguf", "--source", "model.gguf"]);
    // What can be loaded can look at a file as small as this.
    case.refusals(60, 3, &["inspect", "shared.gguf"]);
}

#[test]
fn models_are_run_or_it_is_said_why_not() {
    let case = Case::new();
    let text = ["--text", "text.txt"];
    let perplexity = ["eval", "perplexity", "shared.gguf", "--chunks", "1"];
    let attention = ["analyze", "attention", "shared.gguf", "--windows", "1"];
    case.check(160, 5, &["run", "shared.gguf", "-p", "x", "-n", "2"]);
    case.check(200, 7, &[&perplexity[..], &text].concat());
    case.check(200, 7, &[&attention[..], &text].concat());
    let small = ["-p", "8", "-n", "2", "-r", "1"];
    case.check(160, 7, &[&["bench", "shared.gguf"][..], &small].concat());
}

#[test]
fn a_repair_is_done_or_it_is_said_why_not() {
    let case = Case::new();
    let text = ["--repair", "text.txt", "--windows", "8", "--window", "64"];
    let convert = [
        "convert",
        "model.gguf",
        "--ratio",
        "0.5",
        "-o",
        "out.gguf",
        "--force",
    ];
    let repair = [&convert[..], &text].concat();
    case.check(640, 41, &repair);
    // A bound that the limit does not allow.
    case.check(400, 9, &[&repair[..], &["--memory", "8G"]].concat());
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
    let ran = limited(300_000, &[&args[..], &paths].concat());
    let half = (300_000 << 10) / 2;
    ran.refused(2, &[&format!("{half} bytes of memory are too few")]);
}
