//! One text, as scripts see it: what goes to stdout, the JSON, the exit status.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::started::{ENDLESS, fed, interrupt, output, run};
use crate::support::{PROGRAM, SMOLLM2, needs, smollm2, text, wait_until_worked};

#[test]
fn text_goes_to_stdout_and_nothing_to_stderr() {
    needs!(SMOLLM2);
    let out = output(&["-p", "The capital of France is", "-n", "8", "--temp", "0"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(text(&out.stdout).starts_with(" Paris."), "{out:?}");
    assert!(text(&out.stdout).ends_with('\n'));
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn json_is_one_object_as_the_contract_says() {
    needs!(SMOLLM2);
    // PSS divides a file's pages among the processes that map it: a copy of our
    // own is ours alone.
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(smollm2(), copy.path()).unwrap();
    let run_json = || {
        Command::new(PROGRAM)
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
    needs!(SMOLLM2);
    let sample = |seed| output(&["-p", "Once upon a time", "-n", "16", "--seed", seed]).stdout;
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    needs!(SMOLLM2);
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
fn stop_strings_end_the_text_and_are_not_shown() {
    needs!(SMOLLM2);
    let prompt = ["-p", "The capital of France is", "-n", "24", "--temp", "0"];
    let whole = output(&prompt).stdout;
    let whole = text(&whole).trim_end();
    let stop = "ited Sta";
    let before = &whole[..whole.find(stop).unwrap_or_else(|| panic!("{whole}"))];
    for flags in [["--stop", stop], ["-r", stop], ["--reverse-prompt", stop]] {
        let out = output(&[&prompt[..], &["-r", "not there"], &flags].concat());
        assert_eq!(text(&out.stdout), format!("{before}\n"), "{flags:?}");
    }
    let out = output(&[&prompt[..], &["--json", "--stop", "\\n"]].concat());
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["text"], whole[..whole.find('\n').unwrap()]);
    assert_eq!(json["stop"], "string");
}

#[test]
fn escapes_are_carried_out_unless_told_not_to() {
    needs!(SMOLLM2);
    let tokens = |args: &[&str]| {
        let out = output(&[args, &["-n", "1", "--json"]].concat());
        let json: Value = serde_json::from_slice(&out.stdout).unwrap();
        json["prompt_tokens"].as_u64().unwrap()
    };
    let real = tokens(&["-p", "a\n\n\n\nb"]);
    assert_eq!(tokens(&["-p", r"a\n\n\x0a\nb"]), real);
    assert_eq!(tokens(&["-e", "-p", r"a\n\n\n\nb"]), real);
    let plain = tokens(&["--no-escape", "-p", r"a\n\n\n\nb"]);
    assert!(plain > real);
    // A file is taken as it is.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(br"a\n\n\n\nb").unwrap();
    assert_eq!(tokens(&["-f", file.path().to_str().unwrap()]), plain);
    let out = output(&["-p", r"\xff"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(text(&out.stderr).contains("hint: --no-escape"), "{out:?}");
}

#[test]
fn what_works_for_llama_cli_works_here() {
    needs!(SMOLLM2);
    let args = "-p -1 -c 256 -b 64 -ub 32 -t 1 -tb 1 -s 5 --temperature 0.9 --top-k 20 \
                --top-p 0.9 --min-p 0.1 --typical-p 0.9 --repeat-penalty 1.1 --repeat-last-n -1 \
                --presence-penalty 0.1 --frequency-penalty -0.1 --ignore-eos --predict 9 --perf";
    let args: Vec<&str> = args.split_whitespace().collect();
    let sample = || {
        Command::new(PROGRAM)
            .arg("run")
            .arg(smollm2())
            .args(&args)
            .output()
            .unwrap()
    };
    let out = sample();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert!(text(&out.stderr).contains("seed 5"), "{out:?}");
    assert_eq!(sample().stdout, out.stdout);

    // The model by its option, its own context, and a GPU that is not there.
    let program = || Command::new(PROGRAM);
    for name in ["-m", "--model"] {
        let out = program()
            .args(["run", name])
            .arg(smollm2())
            .args([
                "-t", "1", "-p", "Hello", "-n", "2", "-c", "0", "-ngl", "99", "--color",
            ])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        let stderr = text(&out.stderr);
        assert_eq!(
            stderr,
            "note: -ngl has no effect: this build runs on the CPU\n"
        );
    }
    for quiet in [&["-ngl", "0"][..], &["-q", "-ngl", "all"]] {
        let out = output(&[quiet, &["-p", "Hello", "-n", "2"]].concat());
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""));
    }
    // More than the 4096 tokens that there are when nothing is said.
    for (size, n_ctx) in [(&[][..], "4096"), (&["-c", "0"], "8192")] {
        let out = output(&[size, &["-p", "Hello", "-n", "1", "--verbose"]].concat());
        let log = text(&out.stderr);
        let line = log
            .lines()
            .find(|line| line.contains("llama_context: n_ctx "));
        assert!(line.is_some_and(|line| line.ends_with(n_ctx)), "{line:?}");
    }
}

#[test]
fn a_grammar_shapes_the_text() {
    needs!(SMOLLM2);
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
    needs!(SMOLLM2);
    let cases: [(&[&str], &str); 20] = [
        (&[], "--prompt"),
        (&["-p", "x", "-f", "y"], "cannot be used with"),
        (&["-p", ""], "hint: "),
        (&["-p", "x", "-n", "-2"], "-2"),
        (&["-p", "x", "-c", "-1"], "-c"),
        (&["-p", "x", "-rea"], "unexpected argument '-rea'"),
        (&["-hf", "a/b", "-p", "x"], "unexpected argument '-hf'"),
        (&["-p", "x", "-m", "other.gguf"], "'--model <FILE>'"),
        (&["-p", "x", "-ngl", "many"], "--n-gpu-layers"),
        (&["-p", "x", "-t", "0"], "-t"),
        (&["-p", "x", "--seed", "-2"], "--seed"),
        (&["-p", "x", "--seed", "4294967296"], "--seed"),
        (
            &["-p", "x", "--top-p", "2"],
            "--top-p must be between 0 and 1",
        ),
        (&["-p", "x", "--min-p", "nan"], "--min-p must be"),
        (&["-p", "x", "--temp", "inf"], "--temp must be"),
        (&["-p", "x", "--typical", "-1"], "--typical must be"),
        (
            &["-p", "x", "--presence-penalty", "nan"],
            "--presence-penalty must be",
        ),
        (&["-p", "x", "--repeat-last-n", "-2"], "-2"),
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
}

#[test]
fn files_that_cannot_be_read_are_bad_input() {
    needs!(SMOLLM2);
    let mut latin1 = tempfile::NamedTempFile::new().unwrap();
    latin1.write_all(b"na\xefve").unwrap();
    let latin1 = latin1.path().to_str().unwrap();
    for path in ["no/such/file", latin1, "/"] {
        for flags in [
            &["-f", path][..],
            &["-p", "x", "--grammar-file", path],
            &["--chat", "--chat-template-file", path],
            &["--chat", "-sysf", path],
        ] {
            let out = output(flags);
            assert_eq!(out.status.code(), Some(3), "{flags:?}: {out:?}");
            let stderr = text(&out.stderr);
            assert!(
                stderr.starts_with("error: ") && stderr.contains(path),
                "{flags:?}: {stderr}"
            );
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    let out = fed(run().args(["-f", "-"]), b"na\xefve");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let out = fed(run().arg("--chat"), b"na\xefve");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
}

#[test]
fn a_byte_order_mark_is_not_part_of_a_prompt_or_a_grammar() {
    needs!(SMOLLM2);
    let file = |content: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\xef\xbb\xbf").unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    };
    let prompt = "The capital of France is";
    let greedy = ["-n", "8", "--temp", "0"];
    let plain = output(&[&["-p", prompt][..], &greedy].concat()).stdout;
    let (marked, text) = (format!("\u{feff}{prompt}"), file(prompt));
    let from_file = ["-f", text.path().to_str().unwrap()];
    for args in [&["-p", &marked][..], &from_file] {
        assert_eq!(output(&[args, &greedy].concat()).stdout, plain, "{args:?}");
    }
    assert_eq!(
        fed(run().args(["-f", "-"]).args(greedy), &marked).stdout,
        plain
    );

    let (grammar, marked) = (file(r#"root ::= "yes""#), "\u{feff}root ::= \"yes\"");
    let from_file = ["--grammar-file", grammar.path().to_str().unwrap()];
    for args in [&["--grammar", marked][..], &from_file] {
        let out = output(&[args, &["-p", prompt]].concat());
        assert_eq!(out.stdout, b"yes\n", "{args:?}: {out:?}");
    }
}

#[test]
fn bad_files_are_exit_status_3_and_one_message() {
    let mut garbage = tempfile::NamedTempFile::new().unwrap();
    garbage.write_all(&[7; 4096]).unwrap();
    for path in [garbage.path().to_str().unwrap(), "no/such/model.gguf", "/"] {
        let out = Command::new(PROGRAM)
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
    needs!(SMOLLM2);
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

#[cfg(target_os = "linux")]
#[test]
fn the_first_ctrl_c_shows_what_there_is() {
    needs!(SMOLLM2);
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
    let drain = std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
    wait_until_worked(&mut child, Duration::from_millis(300));
    interrupt(child.id());
    let out = child.wait_with_output().unwrap();
    drain.join().unwrap().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["stop"], "interrupted");
}
