//! `run` as scripts see it: what goes to stdout, the JSON, the exit status.
//! Needs the models that `scripts/fetch-models.sh` fetches.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn model() -> PathBuf {
    let folder = std::env::var_os("HEADSHARE_MODELS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models"),
        PathBuf::from,
    );
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.is_file(),
        "{} is missing: run scripts/fetch-models.sh, or name the folder that has it in HEADSHARE_MODELS",
        path.display()
    );
    path
}

/// `run MODEL`, on one thread: ggml's threads spin while they wait, which tests
/// side by side cannot afford.
fn run() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("headshare-gguf"));
    command.arg("run").arg(model()).args(["-t", "1"]);
    command
}

fn output(args: &[&str]) -> Output {
    run().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn text_goes_to_stdout_and_nothing_to_stderr() {
    let out = output(&["-p", "The capital of France is", "-n", "8", "--temp", "0"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(text(&out.stdout).starts_with(" Paris."), "{out:?}");
    assert!(text(&out.stdout).ends_with('\n'));
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn json_is_one_object_as_the_contract_says() {
    // PSS divides a file's pages among the processes that map it: a copy of our
    // own is ours alone.
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(model(), copy.path()).unwrap();
    let run_json = || {
        Command::new(assert_cmd::cargo::cargo_bin!("headshare-gguf"))
            .arg("run")
            .arg(copy.path())
            .args(["-t", "1", "-p", "The capital of France is", "-n", "8"])
            .args(["--temp", "0", "--json"])
            .output()
            .unwrap()
    };
    let out = run_json();
    assert_eq!(out.status.code(), Some(0));
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json["text"].as_str().unwrap().starts_with(" Paris."));
    assert_eq!(json["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(json["resolve"], "none");
    assert_eq!(json["stop"], "limit");
    for number in ["load_ms", "prefill_tps", "decode_tps"] {
        assert!(json[number].as_f64().unwrap() > 0.0, "{number}");
    }
    let memory = |name: &str| json["memory"][name].as_u64().unwrap();
    assert_eq!(memory("logical_weight_bytes"), 96_576_768);
    assert_eq!(memory("unique_weight_bytes"), 96_576_768);
    assert_eq!(memory("shared_bytes"), 0);
    assert!(memory("vmas") > 10);
    // All of this model's weights are touched, and the process has more.
    assert!(memory("weights_pss_bytes") > 90_000_000);
    assert!(memory("pss_bytes") > memory("weights_pss_bytes"));

    let again: Value = serde_json::from_slice(&run_json().stdout).unwrap();
    assert_eq!(json["tokens"], again["tokens"]);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let sample = |seed| output(&["-p", "Once upon a time", "-n", "16", "--seed", seed]).stdout;
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let plain = output(&["-p", "The capital of France is", "-n", "8", "--temp", "0"]).stdout;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"The capital of France is\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(
        output(&["-f", path, "-n", "8", "--temp", "0"]).stdout,
        plain
    );
    let mut child = run()
        .args(["-f", "-", "-n", "8", "--temp", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"The capital of France is").unwrap();
    drop(stdin);
    assert_eq!(child.wait_with_output().unwrap().stdout, plain);
}

#[test]
fn a_grammar_shapes_the_text() {
    let grammar = r#"root ::= " " [0-9] [0-9] "!""#;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(grammar.as_bytes()).unwrap();
    for args in [
        ["--grammar", grammar],
        ["--grammar-file", file.path().to_str().unwrap()],
    ] {
        let mut all = vec!["-p", "How old are you? I am", "--json"];
        all.extend(args);
        let json: Value = serde_json::from_slice(&output(&all).stdout).unwrap();
        let text = json["text"].as_str().unwrap();
        assert!(text.len() == 4 && text.ends_with('!'), "{text:?}");
        assert_eq!(json["stop"], "eog");
    }
}

#[test]
fn mistakes_have_their_exit_status_and_say_what_to_do() {
    let cases: [(&[&str], &str); 13] = [
        (&[], "--prompt"),
        (&["-p", "x", "-f", "y"], "cannot be used with"),
        (&["-p", ""], "hint: "),
        (&["-p", "x", "-n", "-2"], "-2"),
        (&["-p", "x", "-c", "0"], "-c"),
        (&["-p", "x", "-t", "0"], "-t"),
        (&["-p", "x", "--seed", "-2"], "--seed"),
        (&["-p", "x", "--seed", "4294967296"], "--seed"),
        (
            &["-p", "x", "--top-p", "2"],
            "--top-p must be between 0 and 1",
        ),
        (&["-p", "x", "--min-p", "nan"], "--min-p must be"),
        (&["-p", "x", "--temp", "inf"], "--temp must be"),
        (&["-p", "x", "--grammar", "root ::= ("], "grammar"),
        (&["-p", "x", "--resolve", "magic"], "fold"),
    ];
    for (args, message) in cases {
        let out = output(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {out:?}");
        assert!(text(&out.stderr).contains(message), "{args:?}: {out:?}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }
    let long = "word ".repeat(600);
    let out = output(&["-p", &long, "-c", "512"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("-c TOKENS"), "{out:?}");

    let out = output(&["-f", "no/such/prompt.txt"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no/such/prompt.txt"), "{out:?}");
}

#[test]
fn bad_files_are_exit_status_3_and_one_message() {
    let mut garbage = tempfile::NamedTempFile::new().unwrap();
    garbage.write_all(&[7; 4096]).unwrap();
    for path in [garbage.path().to_str().unwrap(), "no/such/model.gguf", "/"] {
        let out = Command::new(assert_cmd::cargo::cargo_bin!("headshare-gguf"))
            .args(["run", path, "-p", "x"])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        let stderr = text(&out.stderr);
        assert!(
            stderr.starts_with("error: ") && stderr.contains(path),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_reader_that_has_enough_is_success() {
    let mut child = run()
        .args(["-p", "One, two, three,", "-n", "2000", "--temp", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(text(&out.stderr), "");
}

/// Never ends by itself.
const ENDLESS: &str = "root ::= [a-z \\n]+ \"\u{1}\"";

#[cfg(unix)]
#[test]
fn the_first_ctrl_c_shows_what_there_is() {
    let mut child = run()
        .args(["-p", "A story:", "-n", "-1", "--grammar", ENDLESS])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut shown = vec![0; 1];
    stdout.read_exact(&mut shown).unwrap();
    interrupt(child.id());
    stdout.read_to_end(&mut shown).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert!(shown.ends_with(b"\n"));

    let mut child = run()
        .args(["-p", "A story:", "-n", "-1", "--grammar", ENDLESS])
        .args(["--json", "--verbose"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // llama.cpp's log says when the context is there; then tokens come.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("compute buffer size") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "no context");
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    interrupt(child.id());
    let drain = std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
    let out = child.wait_with_output().unwrap();
    drain.join().unwrap().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["stop"], "interrupted");
}

#[cfg(unix)]
fn interrupt(pid: u32) {
    let status = Command::new("kill")
        .args(["-INT", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}
