//! Wrong usage, and what goes to which stream.

use std::process::{Command, Stdio};

use headshare_testmodels::{ModelSpec, type_named};

use crate::support::{Folder, PROGRAM, Ran, preset, program, small};

#[track_caller]
fn wrong(ran: Ran, says: &str) {
    let ran = ran.exits(2);
    assert_eq!(ran.stdout, "", "{ran:#?}");
    assert!(ran.stderr.starts_with("error: "), "{ran:#?}");
    assert!(ran.stderr.contains(says), "no {says:?} in {ran:#?}");
}

#[test]
fn wrong_usage_exits_2_and_names_the_flag() {
    let folder = Folder::new();
    let m = folder.file("model.gguf");
    small("tiny-llama").write(&m).unwrap();
    wrong(run!["convert", m, "--lossless"], "--output");
    wrong(run!["convert", m, "-o", "x"], "--ratio");
    wrong(
        run!["convert", m, "-o", "x", "--ratio", "0.3", "--lossless"],
        "--lossless",
    );
    wrong(
        run!["convert", m, "-o", "x", "--ratio", "0.3", "--plan", "p"],
        "--plan",
    );
    wrong(
        run!["convert", m, "-o", "x", "--lossless", "--plan", "p"],
        "--plan",
    );
    wrong(
        run!["convert", m, "-o", "x", "--lossless", "--match", "qk"],
        "--match",
    );
    wrong(
        run!["convert", m, "-o", "x", "--plan", "p", "--match", "qk"],
        "--match",
    );
    wrong(run!["convert", "-o", "x", "--lossless"], "<SRC>");
    for ratio in ["1.5", "-0.1", "NaN", "inf", "30%", "", "1e9", "0,3"] {
        let argument = format!("--ratio={ratio}");
        wrong(run!["plan", m, argument], "must be a number from 0 to 1");
        wrong(
            run!["plan", m, "--ratio", ratio],
            "must be a number from 0 to 1",
        );
        wrong(
            run!["convert", m, "-o", "x", argument],
            "must be a number from 0 to 1",
        );
    }
    wrong(run!["plan", m, "--match", "cosine"], "--match");
    wrong(run!["plan", m, "--match", "QK"], "--match");
    for page_size in ["0", "8192", "-4096", "4k", "4096.0"] {
        let argument = format!("--page-size={page_size}");
        wrong(
            run!["convert", m, "-o", "x", "--lossless", argument],
            "--page-size",
        );
    }
    wrong(run!["expand", m], "--output");
    wrong(run!["expand", m, "-o", ""], "--output");
    wrong(run!["verify"], "<FILE>");
    wrong(run!["inspect", m, "more"], "more");
    wrong(run!["plan", m, "--surprise"], "--surprise");
    wrong(run!["frobnicate"], "frobnicate");
    let ran = program().output().unwrap();
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(2), 0));
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// clap would read them as clusters of letters, or as a letter and its value.
#[test]
fn words_after_one_dash_are_refused_by_name() {
    let commands: [&[&str]; 13] = [
        &["plan"],
        &["convert"],
        &["expand"],
        &["verify"],
        &["inspect"],
        &["run"],
        &["bench"],
        &["eval", "perplexity"],
        &["eval", "choice"],
        &["eval", "generate"],
        &["report"],
        &["analyze", "weights"],
        &["exec"],
    ];
    for command in commands {
        for word in ["-hf", "-qh", "-rea", "-oout", "-tb4", "-chat"] {
            let output = program().args(command).arg(word).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?} {word}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            let first = format!("error: unexpected argument '{word}' found");
            assert_eq!(stderr.lines().next(), Some(&*first), "{command:?}");
            assert!(
                stderr.contains(&format!("Usage: headshare-gguf {}", command.join(" "))),
                "{stderr}"
            );
        }
    }
    wrong(run!["-qV"], "'-qV'");
}

#[test]
fn help_and_version_are_results() {
    for args in [
        &["--help"][..],
        &["convert", "--help"],
        &["help", "plan"],
        &["-V"],
    ] {
        let output = program().args(args).output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{args:?}"
        );
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
    let version = run!["--version"].ok().stdout;
    assert!(
        version.starts_with("headshare-gguf ") && version.contains("llama.cpp"),
        "{version}"
    );
}

#[test]
fn completions_know_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run!["completions", shell].ok().stdout;
        for word in ["convert", "perplexity", "page-size"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("bench-worker"), "{shell}");
    }
    // The shell itself takes it.
    let bash = std::process::Command::new("bash")
        .args(["-n", "/dev/stdin"])
        .stdin(std::process::Stdio::piped())
        .spawn();
    let mut bash = bash.unwrap();
    let script = run!["completions", "bash"].ok().stdout;
    let mut stdin = bash.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, script.as_bytes()).unwrap();
    drop(stdin);
    assert!(bash.wait().unwrap().success());
}

#[test]
fn memory_sizes_have_suffixes() {
    let wrong = |memory: &str| {
        let ran = run![
            "convert", "x.gguf", "-o", "y", "--ratio", "0.1", "--repair", "t", "--memory", memory
        ];
        wrong(ran, "--memory");
    };
    for memory in ["8X", "G", "8.5G", "99999999999G", "", "8Gé"] {
        wrong(memory);
    }
}

#[test]
fn json_is_one_object_and_nothing_else() {
    let folder = Folder::new();
    let [m, c, e] = ["m", "c", "e"].map(|name| folder.file(name));
    small("tiny-gqa").write(&m).unwrap();
    let keys = |ran: Ran| -> Vec<String> {
        ran.ok()
            .json()
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(
        keys(run!["plan", m, "--json"]),
        ["version", "source", "choice", "edits", "expected"]
    );
    let converted = [
        "source",
        "output",
        "page_size",
        "dry_run",
        "plan",
        "duplicates",
        "saved",
        "types",
        "retyped",
    ];
    assert_eq!(
        keys(run!["convert", m, "--ratio", "0.5", "-o", c, "--json"]),
        converted
    );
    assert_eq!(
        keys(run![
            "convert",
            m,
            "--lossless",
            "-o",
            c,
            "--json",
            "--dry-run"
        ]),
        converted
    );
    assert_eq!(
        keys(run!["expand", c, "-o", e, "--json"]),
        ["path", "bytes", "lossless"]
    );
    assert_eq!(
        keys(run!["verify", c, "--source", m, "--json"]),
        [
            "ok",
            "lossless",
            "stored_tensors",
            "compared_bytes",
            "findings"
        ]
    );
    for file in [&m, &c] {
        let found = keys(run!["inspect", file, "--json"]);
        assert_eq!(found.first().map(String::as_str), Some("path"));
        assert_eq!(found.last().map(String::as_str), Some("sharing"));
    }
}

#[test]
fn quiet_silences_remarks_and_only_those() {
    let folder = Folder::new();
    let m = folder.file("m");
    ModelSpec {
        n_layer: 1,
        ..preset("tiny-llama")
    }
    .write(&m)
    .unwrap();
    let loud = run!["plan", m].ok();
    assert!(loud.stderr.contains("note: "), "{loud:#?}");
    for quiet in [run!["-q", "plan", m], run!["plan", m, "--quiet"]] {
        let quiet = quiet.ok();
        assert_eq!(quiet.stderr, "");
        assert_eq!(quiet.stdout, loud.stdout);
    }
    run!["-q", "inspect", folder.file("missing")].refused(3, &["missing"]);
}

#[test]
fn a_larger_output_is_said() {
    let folder = Folder::new();
    let m = folder.file("m");
    small("tiny-llama").write(&m).unwrap();
    let args = ["--lossless", "--page-size", "65536", "--json", "-o"];
    let [a, b, c, d, e] = args;
    let ran = run!["convert", m, a, b, c, d, e, folder.file("out")].ok();
    let saved = ran.json()["saved"]["file_bytes"].as_i64().unwrap();
    assert!(saved < 0, "{saved}");
    assert!(ran.stderr.starts_with("warning: "), "{ran:#?}");
    assert!(
        ran.stderr.contains(&format!("{} bytes larger", -saved)),
        "{ran:#?}"
    );
    // So does a plain one.
    let [half, plain] = ["half", "plain"].map(|name| folder.file(name));
    let spec = ModelSpec {
        weight_type: type_named("f16").unwrap(),
        ..small("tiny-llama")
    };
    spec.write(&half).unwrap();
    let ran = run!["convert", half, "--quantize", "f32", "-o", plain].ok();
    assert!(
        ran.stderr.starts_with("warning: the output is "),
        "{ran:#?}"
    );
    assert!(ran.stdout.contains("%) larger\n"), "{ran:#?}");
}

#[test]
fn the_last_line_says_what_the_file_is() {
    let folder = Folder::new();
    let m = folder.file("m");
    small("tiny-llama").write(&m).unwrap();
    let out = folder.file("out");
    let last = |args: &[&str], written: bool| {
        let mut command = program();
        command.arg("convert").arg(&m).args(args);
        let names = folder.names();
        if written {
            command.arg("-o").arg(&out).arg("--force");
        }
        let ran = Ran::of(&mut command, format!("{args:?}")).ok();
        if !written {
            assert_eq!(folder.names(), names);
        }
        ran.stdout.trim_end().lines().last().unwrap().to_owned()
    };
    let shared = "a headshare file: `headshare-gguf run` runs it";
    let plain = "a plain GGUF of the architecture llama: llama.cpp runs it";
    for (args, what) in [
        (&["--lossless"][..], shared),
        (&["--ratio", "0.5"], shared),
        (&["--quantize", "q8_0"], plain),
        (
            &["--quantize", "q2_0", "--pure"],
            " in a version that knows q2_0",
        ),
    ] {
        let named = last(args, true);
        assert!(
            named.starts_with(&format!("{}: a ", out.display())),
            "{named}"
        );
        assert!(named.contains(what), "{named}");
        // A dry run needs no name.
        let dry = last(&[args, &["--dry-run"]].concat(), false);
        assert!(
            dry.starts_with("dry run: nothing is written; it would be a "),
            "{dry}"
        );
        assert!(dry.contains(what), "{dry}");
    }
}

/// Runs the program with a stdout that nobody reads.
fn into_closed_pipe(args: &[&std::ffi::OsStr]) -> (Option<i32>, String) {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_reader_that_is_gone_is_no_error() {
    let folder = Folder::new();
    let [m, c, out] = ["m", "c", "out"].map(|name| folder.file(name));
    small("tiny-llama").write(&m).unwrap();
    run!["convert", m, "--ratio", "0.5", "-o", c].ok();
    let os = std::ffi::OsStr::new;
    let done = (Some(0), String::new());
    assert_eq!(into_closed_pipe(&[os("plan"), m.as_os_str()]), done);
    assert_eq!(
        into_closed_pipe(&[os("inspect"), m.as_os_str(), os("--json")]),
        done
    );
    assert_eq!(into_closed_pipe(&[os("--help")]), done);
    assert_eq!(into_closed_pipe(&[os("verify"), c.as_os_str()]), done);
    let args = [
        os("convert"),
        m.as_os_str(),
        os("--ratio"),
        os("0.5"),
        os("-o"),
        out.as_os_str(),
    ];
    assert_eq!(into_closed_pipe(&args), done);
    crate::support::assert_same(&c, &out);
    // What was found out stays found out.
    let mut changed = crate::support::read(&c);
    *changed.last_mut().unwrap() ^= 1;
    let changed = folder.write("changed", changed);
    let (code, stderr) = into_closed_pipe(&[os("verify"), changed.as_os_str()]);
    assert_eq!((code, stderr.as_str()), (Some(4), ""));
}

#[test]
fn a_stdout_that_cannot_be_written_is_an_error() {
    let folder = Folder::new();
    let m = folder.file("m");
    small("tiny-llama").write(&m).unwrap();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = Command::new(PROGRAM)
        .arg("inspect")
        .arg(&m)
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: standard output: cannot write"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
}
