//! `-`: standard input where a file is read, standard output where one is
//! written, and refused by name where neither can be.

use std::path::Path;

use crate::support::{Folder, Ran, assert_same, data, preset, program, questions, read, small};

/// Runs the program with this on standard input.
fn fed(input: impl Into<Vec<u8>>, args: &[&std::ffi::OsStr]) -> Ran {
    let mut command = program();
    command.args(args).write_stdin(input);
    Ran::of(&mut command, format!("{args:?}"))
}

macro_rules! fed {
    ($input:expr; $($arg:expr),* $(,)?) => {
        fed($input, &[$(std::ffi::OsStr::new(&$arg)),*])
    };
}

#[test]
fn a_plan_goes_through_a_pipe() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    small("tiny-llama").write(&model).unwrap();
    let [plan, by_file, by_pipe] = ["plan.json", "a.gguf", "b.gguf"].map(|name| folder.file(name));
    let in_words = run!["plan", model, "--ratio", "0.5", "-o", plan].ok();
    let ran = run!["plan", model, "--ratio", "0.5", "-o", "-"].ok();
    assert_eq!(ran.stdout.as_bytes(), read(&plan));
    // What is said of it goes beside it.
    assert!(ran.stderr.contains(in_words.stdout.trim_end()), "{ran:#?}");
    let quiet = run!["-q", "plan", model, "--ratio", "0.5", "-o", "-"].ok();
    assert_eq!(
        (quiet.stdout, quiet.stderr),
        (ran.stdout.clone(), String::new())
    );

    run!["convert", model, "--plan", plan, "-o", by_file].ok();
    fed![ran.stdout; "convert", model, "--plan", "-", "-o", by_pipe].ok();
    assert_same(&by_file, &by_pipe);
    fed!["{"; "convert", model, "--plan", "-", "-o", folder.file("c")]
        .refused(3, &["standard input"]);
    assert_eq!(
        folder.names(),
        ["a.gguf", "b.gguf", "model.gguf", "plan.json"]
    );
}

#[test]
fn pictures_and_arrays_go_to_standard_output() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    small("tiny-llama").write(&model).unwrap();
    let converted = folder.file("converted.gguf");
    run!["convert", model, "--ratio", "0.5", "-o", converted].ok();
    let [svg, npy] = ["a.svg", "a.npy"].map(|name| folder.file(name));
    let run = |args: &[&std::ffi::OsStr]| {
        let out = program().args(args).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        (out.stdout, String::from_utf8(out.stderr).unwrap())
    };
    macro_rules! output {
        ($($arg:expr),*) => { run(&[$(std::ffi::OsStr::new(&$arg)),*]) };
    }
    run!["analyze", "weights", model, "-o", svg, "--npy", npy].ok();
    let (picture, said) = output!["analyze", "weights", model, "-o", "-"];
    assert_eq!(picture, read(&svg));
    assert!(said.contains("cosine of"), "{said}");
    assert_eq!(
        output!["analyze", "weights", model, "--npy", "-"].0,
        read(&npy)
    );
    run!["analyze", "ratios", converted, "-o", svg, "--force"].ok();
    assert_eq!(
        output!["analyze", "ratios", converted, "-o", "-"].0,
        read(&svg)
    );

    let text = folder.write("text.txt", "Once upon a time ".repeat(20));
    let attention = ["analyze", "attention", "--ctx", "16", "--windows", "1"];
    let attention: Vec<&std::ffi::OsStr> = attention.iter().map(AsRef::as_ref).collect();
    let with = |more: &[&std::ffi::OsStr]| {
        let mut command = program();
        command.args(&attention).arg(&model).args(more);
        command.write_stdin(read(&text));
        Ran::of(&mut command, format!("{more:?}")).ok().stdout
    };
    let os = std::ffi::OsStr::new;
    let by_file = with(&[os("--text"), text.as_os_str(), os("-o"), os("-")]);
    assert!(by_file.contains("<svg"), "{by_file}");
    assert_eq!(with(&[os("--text"), os("-"), os("-o"), os("-")]), by_file);
}

#[test]
fn two_results_are_not_mixed() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    small("tiny-llama").write(&model).unwrap();
    let converted = folder.file("converted.gguf");
    run!["convert", model, "--lossless", "-o", converted].ok();
    for ran in [
        run!["plan", model, "-o", "-", "--json"],
        run!["expand", converted, "-o", "-", "--json"],
        run!["analyze", "ratios", converted, "-o", "-", "--json"],
        run!["analyze", "weights", model, "-o", "-", "--json"],
        run!["analyze", "weights", model, "--npy", "-", "--json"],
        run!["analyze", "weights", model, "-o", "-", "--npy", "-"],
    ] {
        ran.refused(2, &["cannot both write to standard output"]);
    }
}

#[test]
fn what_is_no_stream_refuses_by_name() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    small("tiny-llama").write(&model).unwrap();
    let text = folder.write("text.txt", "Once upon a time ".repeat(20));
    let here = |args: &[&std::ffi::OsStr]| {
        let mut command = program();
        command.current_dir(folder.path()).args(args);
        Ran::of(&mut command, format!("{args:?}"))
    };
    macro_rules! here {
        ($($arg:expr),* $(,)?) => { here(&[$(std::ffi::OsStr::new(&$arg)),*]) };
    }
    for (ran, says) in [
        (here!["convert", model, "--lossless", "-o", "-"], "-o -: "),
        (
            here!["convert", model, "--ratio", "0.5", "-o", "-", "--dry-run"],
            "-o -: ",
        ),
        (
            here![
                "report", model, "--ratios", "0.5", "--text", text, "-o", "-"
            ],
            "-o -: a report is a folder",
        ),
        (
            here![
                "convert",
                model,
                "--ratio",
                "0.5",
                "--repair",
                text,
                "--save-stats",
                "-",
                "-o",
                "out"
            ],
            "--save-stats -: ",
        ),
        (
            here![
                "report",
                model,
                "--ratios",
                "0.5",
                "--text",
                text,
                "--repair",
                text,
                "--save-stats",
                "-",
                "-o",
                "out"
            ],
            "--save-stats -: ",
        ),
    ] {
        ran.refused(2, &[says, "./-"]);
    }
    assert_eq!(folder.names(), ["model.gguf", "text.txt"]);
    // A file of that name can still be had.
    here!["convert", model, "--lossless", "-o", "./-"].ok();
    assert!(folder.file("-").is_file());
}

#[test]
fn standard_input_is_read_for_one_thing() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    preset("tiny-llama").write(&model).unwrap();
    let out = folder.file("out");
    for (ran, a, b) in [
        (
            fed!["x"; "eval", "choice", model, "--task", "-", "--task", "-"],
            "--task",
            "--task",
        ),
        (
            fed!["x"; "convert", model, "--plan", "-", "--repair", "-", "-o", out],
            "--plan",
            "--repair",
        ),
        (
            fed!["x"; "convert", model, "--ratio", "0.5", "--stats", "-", "--repair", "-", "-o", out],
            "--repair",
            "--stats",
        ),
        (
            fed!["x"; "run", model, "-f", "-", "--grammar-file", "-"],
            "--file",
            "--grammar-file",
        ),
        (
            fed!["x"; "run", model, "--chat", "--chat-template-file", "-"],
            "--chat-template-file",
            "--chat",
        ),
        (
            fed!["x"; "report", model, "--ratios", "0.5", "--text", "-", "--repair", "-", "-o", out],
            "--text",
            "--repair",
        ),
    ] {
        ran.refused(2, &[a, b, "cannot both read standard input"]);
    }
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// Two runs print the same but for times and what the input is called.
#[track_caller]
fn same_figures(a: &Ran, b: &Ran, but: &[&str]) {
    let figures = |ran: &Ran| {
        let mut json = ran.json();
        for field in but {
            json.as_object_mut().unwrap().remove(*field);
        }
        json
    };
    assert_eq!(a.code, Some(0), "{a:#?}");
    assert_eq!(figures(a), figures(b));
}

#[test]
fn texts_and_tasks_come_through_a_pipe() {
    let folder = Folder::new();
    let model = folder.file("model.gguf");
    small("tiny-llama").write(&model).unwrap();
    let text = folder.write("text.txt", "Once upon a time, a llama. ".repeat(30));
    let perplexity = |path: &Path| {
        fed![
            read(&text);
            "eval", "perplexity", model, "--text", path, "--ctx", "16", "--chunks", "2", "--json"
        ]
    };
    let piped = perplexity(Path::new("-"));
    same_figures(&perplexity(&text), &piped, &["text"]);

    let task = questions();
    let choice = |path: &Path| fed![read(&task); "eval", "choice", model, "--task", path, "--limit", "2", "--json"];
    let piped = choice(Path::new("-"));
    same_figures(&choice(&task), &piped, &["task", "ms"]);
    assert_eq!(piped.json()["task"], "stdin");

    let prompts = data("choice/generate.jsonl");
    let generate = |path: &Path| {
        fed![
            read(&prompts);
            "eval", "generate", model, "--task", path, "--limit", "2", "-n", "4", "--json"
        ]
    };
    let piped = generate(Path::new("-"));
    same_figures(&generate(&prompts), &piped, &["task", "ms"]);

    let grammar = folder.write("grammar.gbnf", "root ::= \"yes\" | \"no\"\n");
    let constrained = |path: &Path| {
        fed![
            read(&grammar);
            "run", model, "-p", "x", "--temp", "0", "-n", "8", "--grammar-file", path
        ]
        .ok()
        .stdout
    };
    assert_eq!(constrained(Path::new("-")), constrained(&grammar));

    // What is wrong is said of what it is.
    for ran in [
        fed![b"\xff"; "eval", "perplexity", model, "--text", "-"],
        fed!["{"; "eval", "choice", model, "--task", "-"],
        fed!["{"; "eval", "generate", model, "--task", "-"],
        fed![b"\xff"; "convert", model, "--ratio", "0.5", "--repair", "-", "-o", folder.file("o")],
    ] {
        ran.refused(3, &["standard input"]);
    }
}
