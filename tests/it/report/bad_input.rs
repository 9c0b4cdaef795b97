//! Mistakes: found before any long work, nothing written.

use std::path::{Path, PathBuf};

use super::{model, report};
use crate::support::{Folder, Ran, preset, questions, valley};

/// Refused, and the report's folder not even begun.
#[track_caller]
fn refused(folder: &Folder, ran: Ran, code: i32, parts: &[&str]) -> Ran {
    let ran = ran.refused(code, parts);
    assert!(!folder.file("out").exists(), "{ran:#?}");
    ran
}

/// `report` with these arguments and nothing else but the folder.
fn bare(folder: &Folder, model: &Path, text: &Path, more: &[&str]) -> Ran {
    let out = folder.file("out");
    let mut args: Vec<&std::ffi::OsStr> = vec!["report".as_ref(), model.as_ref()];
    args.extend::<[&std::ffi::OsStr; 4]>([
        "--text".as_ref(),
        text.as_ref(),
        "-o".as_ref(),
        out.as_ref(),
    ]);
    args.extend(more.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    crate::support::run(&args)
}

#[test]
fn ratios() {
    let folder = Folder::new();
    let model = model(&folder);
    for ratios in ["", "1.5", "-0.1", "0.1,,0.2", "0.1,x", "nan"] {
        let ran = report(&model, &folder, &["--ratios", ratios]).exits(2);
        assert!(ran.stderr.contains("--ratios"), "{ran:#?}");
        assert!(!folder.file("out").exists());
    }
    let ran = report(&model, &folder, &[]).exits(2);
    assert!(ran.stderr.contains("--ratios"), "{ran:#?}");
}

#[test]
fn texts_and_tasks() {
    let folder = Folder::new();
    let model = model(&folder);
    let ratios = ["--ratios", "0.5"];
    let short = folder.write("short.txt", "the river ".repeat(40));
    let ran = bare(&folder, &model, &short, &ratios);
    let ran = refused(
        &folder,
        ran,
        3,
        &["short.txt", "less than one window of 512"],
    );
    assert!(ran.hint().contains("--ctx "), "{ran:#?}");
    let gone = folder.file("gone.txt");
    let ran = bare(&folder, &model, &gone, &ratios);
    refused(&folder, ran, 3, &["the text", "gone.txt"]);
    let latin = folder.write("latin1.txt", b"na\xefve");
    let ran = bare(&folder, &model, &latin, &ratios);
    refused(&folder, ran, 3, &["the text", "latin1.txt", "is not UTF-8"]);

    let broken = folder.write("broken.jsonl", "{\"query\":\"a\",");
    let unknown = folder.write("unknown.jsonl", "{\"prompt\":\"a\"}\n");
    let gone = folder.file("gone.jsonl");
    for (task, part) in [
        (&broken, "broken.jsonl:1"),
        (&unknown, "no known form"),
        (&gone, "gone.jsonl"),
    ] {
        let more = ["--ratios", "0.5", "--task", task.to_str().unwrap()];
        let ran = report(&model, &folder, &more);
        refused(&folder, ran, 3, &[part]);
    }

    // Repair needs some text, too, and memory.
    let few = folder.write("few.txt", "a few words");
    let text = valley();
    let with = |text: &PathBuf, more: &[&str]| {
        let repair = ["--ratios", "0.5", "--repair", text.to_str().unwrap()];
        report(&model, &folder, &[&repair, more].concat())
    };
    refused(
        &folder,
        with(&few, &[]),
        3,
        &["the calibration text", "tokens"],
    );
    refused(&folder, with(&gone, &[]), 3, &["gone.jsonl"]);
    let window = ["--window", "64", "--memory", "1000"];
    let ran = with(&text, &window).exits(2);
    assert!(
        ran.stderr
            .contains("error: 1000 bytes of memory are too few"),
        "{ran:#?}"
    );
    assert!(!folder.file("out").exists());
}

#[test]
fn what_the_model_writes_is_no_text_of_a_report() {
    let folder = Folder::new();
    let model = model(&folder);
    let ran = report(&model, &folder, &["--ratios", "0.5", "--repair", "self"]);
    let ran = refused(&folder, ran, 2, &["self: a report makes all its files"]);
    assert!(ran.hint().contains("./self"), "{ran:#?}");
}

#[test]
fn a_speed_test_beyond_the_models_positions() {
    let folder = Folder::new();
    let model = folder.file("gpt2.gguf");
    preset("tiny-gpt2").write(&model).unwrap();
    let more = ["--ratios", "0.5", "--ctx", "64", "-p", "512", "-n", "0"];
    let ran = bare(&folder, &model, &valley(), &more);
    let ran = refused(&folder, ran, 2, &["512 tokens", "positions"]);
    assert!(ran.hint().contains("-p "), "{ran:#?}");
}

#[test]
fn sizes() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = valley();
    let text = text.to_str().unwrap();
    let calibrate = ["--calibrate", text, "--windows", "4", "--window", "32"];
    let with = |fit: &[&str]| report(&model, &folder, &[fit, &calibrate].concat());
    for (fit, part) in [
        (&["--fit", "9X"][..], "--fit"),
        (&["--fit", "1M,"], "--fit"),
        (&["--fit", "1M", "--ratios", "0.5"], "'--ratios <A,...>'"),
        (&["--fit", "1M", "--repair", text], "'--repair <TEXT>'"),
        (
            &["--fit", "1M", "--match", "qk"],
            "'--match <FUNCTION,...>'",
        ),
        (&["--ratios", "0.5", "--types", "q8_0"], "--fit"),
    ] {
        let ran = with(fit).exits(2);
        assert!(ran.stderr.contains(part), "{ran:#?}");
        assert!(!folder.file("out").exists());
    }
    let ran = report(&model, &folder, &["--fit", "1M"]).exits(2);
    assert!(ran.stderr.contains("--calibrate <TEXT>"), "{ran:#?}");
    let whole = std::fs::metadata(&model).unwrap().len().to_string();
    for (fit, parts) in [
        (&["--fit", &whole][..], &["fits into", "as it is"][..]),
        (
            &["--fit", "100000,1000"],
            &["1000 bytes are less than", "smallest"],
        ),
        (
            &["--fit", "100000", "--types", "x9"],
            &["\"x9\" is no type", "q8_0"],
        ),
    ] {
        refused(&folder, with(fit), 2, parts);
    }
    let few = folder.write("few.txt", "a few words");
    let more = ["--fit", "100000", "--calibrate", few.to_str().unwrap()];
    let ran = report(&model, &folder, &more);
    refused(&folder, ran, 3, &["the calibration text", "tokens"]);
}

#[test]
fn match_functions() {
    let folder = Folder::new();
    let model = model(&folder);
    let ratios = ["--ratios", "0.5"];
    for functions in ["qk,x", "", "qk,,v"] {
        let ran = report(
            &model,
            &folder,
            &[&ratios[..], &["--match", functions]].concat(),
        );
        let ran = ran.exits(2);
        assert!(
            ran.stderr
                .contains("[possible values: qk, q, k, v, qkv, separate]"),
            "{ran:#?}"
        );
        assert!(!folder.file("out").exists());
    }
    // Units that are chosen by measuring are not chosen by a function.
    let text = valley();
    let repair = ["--match", "q,k", "--repair", text.to_str().unwrap()];
    for (more, part) in [
        (
            &["--choose", "calibrated"][..],
            "--match is for --choose match",
        ),
        (
            &["--units", "drop"],
            "--units needs --choose calibrated, without --match",
        ),
        (
            &["--save-stats", "s.json"],
            "--save-stats needs --choose calibrated",
        ),
    ] {
        let ran = report(&model, &folder, &[&ratios[..], &repair, more].concat());
        refused(&folder, ran, 2, &[part]);
    }
}

#[test]
fn subjects() {
    let folder = Folder::new();
    let model = model(&folder);
    let ran = report(&model, &folder, &["--ratios", "0.5", "--subjects"]).exits(2);
    assert!(ran.stderr.contains("--task <FILE>"), "{ran:#?}");
    let task = questions();
    let more = [
        "--ratios",
        "0.5",
        "--subjects",
        "--task",
        task.to_str().unwrap(),
    ];
    let ran = report(&model, &folder, &more);
    let ran = refused(&folder, ran, 3, &["question.jsonl has no subjects"]);
    assert!(ran.hint().contains("MMLU"), "{ran:#?}");
}

#[test]
fn nothing_to_measure() {
    let folder = Folder::new();
    let model = model(&folder);
    let more = ["--ratios", "0.5", "--ctx", "64", "-p", "0", "-n", "0"];
    let ran = bare(&folder, &model, &valley(), &more);
    let ran = refused(&folder, ran, 2, &["-p 0 -n 0"]);
    assert!(ran.hint().contains("-p 512"), "{ran:#?}");
    // A task that cannot be scored so.
    let task = questions();
    let more = ["--ratios", "0.5", "--kind", "partial", "--task"];
    let ran = report(
        &model,
        &folder,
        &[&more[..], &[task.to_str().unwrap()]].concat(),
    );
    refused(
        &folder,
        ran,
        3,
        &["question.jsonl", "cannot be scored as partial"],
    );
}

#[test]
fn a_text_that_the_model_is_fitted_to_is_warned_of() {
    let folder = Folder::new();
    let model = model(&folder);
    let all = String::from_utf8(crate::support::read(&valley())).unwrap();
    let more = |text: &Path| {
        let text = text.to_str().unwrap();
        let repair = ["--repair", text, "--window", "64", "--ctx", "64", "-q"];
        let test = ["-p", "8", "-n", "2", "-r", "1", "--windows", "2"];
        let ran = bare(
            &folder,
            &model,
            &valley(),
            &[
                &["--ratios", "0", "--chunks", "2", "-t", "1"],
                &repair[..],
                &test,
            ]
            .concat(),
        );
        ran.ok().stderr
    };
    let part = folder.write("part.txt", &all[all.len() / 2..]);
    let warning = more(&part);
    assert!(warning.starts_with("warning: "), "{warning}");
    assert!(
        warning.contains("% of the text is in what the repair"),
        "{warning}"
    );
    let other = folder.write("other.txt", super::backwards(&all));
    let warnings = more(&other);
    assert!(!warnings.contains("repair"), "{warnings}");
}

#[test]
fn models() {
    let folder = Folder::new();
    let ratios = ["--ratios", "0.5", "--ctx", "64"];
    let ran = bare(&folder, &folder.file("gone.gguf"), &valley(), &ratios);
    refused(&folder, ran, 3, &["gone.gguf"]);

    let bert = folder.file("bert.gguf");
    preset("tiny-bert").write(&bert).unwrap();
    let ran = bare(&folder, &bert, &valley(), &ratios);
    refused(&folder, ran, 3, &["bert.gguf", "encoders"]);

    // Recurrent: no heads at all.
    let mamba = folder.file("mamba.gguf");
    headshare_testmodels::ModelSpec {
        arch: "mamba".into(),
        ..preset("tiny-llama")
    }
    .write(&mamba)
    .unwrap();
    let ran = bare(&folder, &mamba, &valley(), &ratios);
    refused(&folder, ran, 1, &["mamba.gguf", "mamba"]);

    let plain = model(&folder);
    let shared = folder.file("shared.gguf");
    run!("convert", plain, "-o", shared, "--ratio", "0.5", "-q").ok();
    let ran = bare(&folder, &shared, &valley(), &ratios);
    let ran = refused(&folder, ran, 3, &["shared.gguf", "converted already"]);
    assert!(ran.hint().contains("expand"), "{ran:#?}");
}

#[test]
fn folders() {
    let folder = Folder::new();
    let model = model(&folder);
    std::fs::create_dir(folder.file("out")).unwrap();
    let notes = folder.write("out/notes.txt", "mine");
    let ran = report(&model, &folder, &["--ratios", "0.5"])
        .refused(2, &["is no report's folder", "notes.txt"]);
    assert!(ran.hint().contains("-o DIR"), "{ran:#?}");
    assert_eq!(std::fs::read(&notes).unwrap(), b"mine");
    std::fs::remove_file(&notes).unwrap();
    // A report that is somebody else's.
    folder.write("out/report.md", "mine");
    report(&model, &folder, &["--ratios", "0.5"])
        .refused(2, &["is no report's folder", "report.md"]);
    std::fs::remove_file(folder.file("out/report.md")).unwrap();
    std::fs::remove_dir(folder.file("out")).unwrap();
    folder.write("out", "a file");
    let ran = report(&model, &folder, &["--ratios", "0.5"]).refused(2, &["out: "]);
    assert!(ran.hint().contains("it is a file"), "{ran:#?}");
}

/// What llama.cpp would end the process over, a worker finds and tells.
#[test]
fn models_that_llama_cpp_gives_up_on() {
    let folder = Folder::new();
    let path = model(&folder);
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    // After the name: the number of dimensions, the one, and the type.
    let ggml_type = at + name.len() + 4 + 8;
    assert_eq!(bytes[ggml_type..][..4], 0u32.to_le_bytes(), "F32");
    bytes[ggml_type..][..4].copy_from_slice(&26u32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let ran = report(&path, &folder, &["-q", "--ratios", "0.5"]).exits(3);
    let errors: Vec<_> = (ran.stderr.lines())
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{ran:#?}");
    for part in ["model.gguf: llama.cpp cannot use it: ", "binary_op"] {
        assert!(errors[0].contains(part), "{ran:#?}");
    }
}
