//! What `eval choice` prints.

use super::{data, eval, json, refused};
use crate::support::{PROGRAM, SMOLLM2, archive, needs, smollm2, text, written};

#[test]
fn json_is_one_object_as_the_contract_says() {
    needs!(SMOLLM2);
    let out = eval!(
        "choice",
        smollm2(),
        "--task",
        data("question.jsonl"),
        "--json"
    );
    assert_eq!(text(&out.stderr), "");
    let found = json(&out);
    assert_eq!(found["bytes"], 98_362_432);
    assert_eq!(found["resolve"], "none");
    assert_eq!(found["task"], "question");
    assert_eq!(found["kind"], "question");
    assert_eq!(found["n"], 5);
    assert_eq!(found["truncated"], 0);
    assert!(found["accuracy"].as_f64().unwrap() >= 0.6, "{found}");
    for name in ["accuracy", "accuracy_norm", "stderr", "stderr_norm", "ms"] {
        assert!(found[name].is_number(), "{name} in {found}");
    }
    assert!(found.get("perplexity").is_none() && found.get("subjects").is_none());
    // A kind that is forced, and unlike the usual one.
    let out = eval!(
        "choice",
        smollm2(),
        "--task",
        data("question.jsonl"),
        "--json",
        "--kind",
        "letters",
        "--limit",
        "1"
    );
    let found = json(&out);
    assert_eq!(
        (&found["kind"], &found["n"]),
        (&"letters".into(), &1.into())
    );
    assert!(found["stderr"].is_null());
}

#[test]
fn several_tasks_have_a_mean() {
    needs!(SMOLLM2);
    let out = eval!(
        "choice",
        smollm2(),
        "--task",
        data("partial.jsonl"),
        "--task",
        data("last-word.jsonl"),
        "--json"
    );
    let found = json(&out);
    let tasks = found["tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &found["n"]), (2, &6.into()));
    assert_eq!(tasks[0]["kind"], "partial");
    assert_eq!(tasks[0]["accuracy"], tasks[0]["accuracy_norm"]);
    // Paris and five, and no rhinoceros.
    assert_eq!(tasks[1]["kind"], "last-word");
    assert!((tasks[1]["accuracy"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9);
    assert!(tasks[1]["perplexity"].as_f64().unwrap() > 1.0);
    let mean = tasks
        .iter()
        .map(|t| t["accuracy"].as_f64().unwrap())
        .sum::<f64>()
        / 2.0;
    assert!((found["accuracy"].as_f64().unwrap() - mean).abs() < 1e-12);
}

#[test]
fn text_has_the_figures_and_their_errors() {
    needs!(SMOLLM2);
    let out = eval!(
        "choice",
        smollm2(),
        "--task",
        data("last-word.jsonl"),
        "--unbatched"
    );
    let lines: Vec<_> = text(&out.stdout).lines().collect();
    assert!(
        lines[0].ends_with("Q4_1.gguf: 98,362,432 bytes"),
        "{lines:?}"
    );
    assert_eq!(lines[2], "last-word: 3 questions, scored as last-word");
    assert_eq!(lines[3], "accuracy       0.6667 ± 0.3333");
    assert!(lines[5].starts_with("perplexity     "), "{lines:?}");
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn an_archive_has_one_table_of_a_subject() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let path = folder.path().join("twice.zip");
    let rows = "Grass is,red,green,blue,brown,B\n";
    archive(
        &path,
        &[("a/test/x_test.csv", rows), ("b/test/x_test.csv", rows)],
    );
    let says = "a/test/x_test.csv and b/test/x_test.csv are tables of one subject";
    refused(&eval!("choice", model, "--task", path), says);
}

#[test]
fn the_accuracy_that_the_harness_reports_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let metric = |rows: &str| {
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows).unwrap();
        json(&eval!("choice", model, "--task", path, "--json"))["metric"].clone()
    };
    let row = |choices: &str| format!("{{\"query\":\"a\",\"choices\":[{choices}],\"gold\":0}}\n");
    let labels = row("\"no\",\"yes\"").repeat(3);
    assert_eq!(metric(&labels), "accuracy");
    let sentences = row("\"so\",\"it is\"");
    assert_eq!(metric(&(labels + &sentences)), "accuracy_norm");
    // One question does not tell.
    assert_eq!(metric(&sentences), "accuracy_norm");
    let bool_q = "{\"passage\":\"a\",\"question\":\"b\",\"answer\":true}";
    assert_eq!(metric(bool_q), "accuracy");
}

#[test]
fn an_archive_is_counted_by_subjects() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mmlu.zip");
    let files = [
        (
            "data/dev/colours_dev.csv",
            "The sky is,red,green,blue,brown,C\n",
        ),
        (
            "data/test/colours_test.csv",
            "Grass is,red,green,blue,brown,B\nBlood is,red,green,blue,brown,A\n",
        ),
        ("data/test/numbers_test.csv", "1 + 1 is,1,2,3,4,B\n"),
    ];
    archive(&path, &files);
    let out = eval!("choice", smollm2(), "--task", path, "--json");
    let found = json(&out);
    assert_eq!((&found["form"], &found["n"]), (&"mmlu".into(), &3.into()));
    // Fewer examples than there should be.
    let warnings: Vec<_> = text(&out.stderr).lines().collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, (shots, subject)) in warnings.iter().zip([(0, "numbers"), (1, "colours")]) {
        assert!(warning.starts_with("warning: "), "{warning}");
        let says = format!("{shots} solved examples instead of 5");
        assert!(
            warning.contains(&says) && warning.ends_with(subject),
            "{warning}"
        );
    }
    assert!(found.get("shots").is_none(), "{found}");
    let subjects = found["subjects"].as_array().unwrap();
    assert_eq!(subjects[0]["subject"], "colours");
    assert_eq!(
        (&subjects[0]["n"], &subjects[0]["shots"]),
        (&2.into(), &1.into())
    );
    assert_eq!(subjects[1]["shots"], 0);
    assert!(found["mean_of_subjects"].is_number());
    assert_eq!(found["accuracy"], found["accuracy_norm"]);
    let out = eval!("choice", smollm2(), "--task", path);
    assert!(text(&out.stdout).contains("\n  numbers  "), "{out:?}");
}

#[test]
fn items_longer_than_the_context_lose_their_left_end() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gpt2");
    let out = eval!(
        "choice",
        model,
        "--task",
        data("question.jsonl"),
        "-c",
        "130",
        "--json"
    );
    assert!(json(&out)["truncated"].as_u64().unwrap() > 0);
    let warning = text(&out.stderr);
    assert!(warning.starts_with("warning: ") && warning.contains("longer than 130 tokens"));
}

#[test]
fn help_explains_what_the_figures_are() {
    for (measure, part) in [
        ("perplexity", "Kullback-Leibler divergence"),
        (
            "choice",
            "`accuracy` takes the sum over the choice's tokens",
        ),
        ("choice", "has the fields of ARC: it needs --kind choices"),
        ("generate", "corpus BLEU from 0 to 100, as sacreBLEU"),
    ] {
        let out = std::process::Command::new(PROGRAM)
            .args(["eval", measure, "--help"])
            .output()
            .unwrap();
        let help = text(&out.stdout)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(help.contains(part), "{help}");
    }
}

/// The forms in which people have the same questions: lines, a JSON array as
/// `datasets` writes it, with a byte-order mark as editors do.
#[test]
fn lines_and_arrays_give_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    for (measure, name) in [("choice", "question.jsonl"), ("generate", "generate.jsonl")] {
        let lines = std::fs::read_to_string(data(name)).unwrap();
        let rows: Vec<&str> = lines.lines().filter(|line| !line.is_empty()).collect();
        let array = folder.path().join("array").join(name);
        std::fs::create_dir_all(array.parent().unwrap()).unwrap();
        std::fs::write(&array, format!("\u{feff}[\n{}\n]\n", rows.join(",\n"))).unwrap();
        let figures = |path: &std::path::Path| {
            let mut found = json(&eval!(measure, model, "--task", path, "--json"));
            found["ms"].take();
            found
        };
        assert_eq!(figures(&array), figures(&data(name)), "{measure}");
    }
}

#[test]
fn rows_of_mmlu_are_scored_by_subject() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mmlu.json");
    let row = |subject: &str, question: &str, answer: u32| {
        serde_json::json!({
            "question": question, "subject": subject,
            "choices": ["Paris", "Berlin", "Rome", "Madrid"], "answer": answer,
        })
    };
    let rows = [
        row("geography", "What is the capital of France?", 0),
        row(
            "world_history",
            "Which city was divided by a wall until 1989?",
            1,
        ),
        row("geography", "What is the capital of Italy?", 2),
    ];
    std::fs::write(&path, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    let out = eval!("choice", smollm2(), "--task", path, "--json");
    let stderr = text(&out.stderr);
    assert!(
        stderr.contains("0 solved examples instead of 5") && stderr.contains("world_history"),
        "{stderr}"
    );
    let found = json(&out);
    assert_eq!(
        (&found["kind"], &found["n"]),
        (&"letters".into(), &3.into())
    );
    let subjects = found["subjects"].as_array().unwrap();
    let names: Vec<_> = subjects.iter().map(|subject| &subject["subject"]).collect();
    assert_eq!(names, ["geography", "world_history"]);
    assert_eq!(subjects[0]["n"], 2);
}

#[test]
fn models_are_named_as_llama_cpp_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let run = |args: &[&std::ffi::OsStr]| {
        std::process::Command::new(PROGRAM)
            .args(["eval", "choice"])
            .args(args)
            .arg("--task")
            .arg(data("question.jsonl"))
            .args(["-t", "1", "-c", "0", "-ngl", "99"])
            .output()
            .unwrap()
    };
    let out = run(&["-m".as_ref(), model.as_os_str()]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(
        text(&out.stderr),
        "note: -ngl has no effect: this build runs on the CPU\n"
    );
    let both = run(&["-m".as_ref(), model.as_os_str(), model.as_os_str()]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
    assert_eq!(run(&[]).status.code(), Some(2));
}
