//! What `eval generate` gives and refuses.

use super::{data, eval, json, refused};
use crate::support::{SMOLLM2, needs, smollm2, text, written};

#[test]
fn continuations_are_compared_with_references() {
    needs!(SMOLLM2);
    let args = ["-n", "6"];
    let out = eval!(
        "generate",
        smollm2(),
        "--task",
        data("generate.jsonl"),
        args[0],
        args[1],
        "--json"
    );
    assert_eq!(text(&out.stderr), "");
    let found = json(&out);
    assert_eq!(
        (&found["n"], &found["task"]),
        (&2.into(), &"generate".into())
    );
    assert_eq!(found["bytes"], 98_362_432);
    let texts = found["texts"].as_array().unwrap();
    assert!(texts[0].as_str().unwrap().starts_with(" Paris."), "{found}");
    let bleu = found["bleu"].as_f64().unwrap();
    assert!(bleu > 0.0 && bleu < 100.0, "{found}");
    assert_eq!(found["precisions"].as_array().unwrap().len(), 4);
    let meteor = found["meteor"].as_f64().unwrap();
    assert!(meteor > 0.0 && meteor < 100.0, "{found}");
    // What ends a continuation is no part of it; now the first is the reference.
    let out = eval!(
        "generate",
        smollm2(),
        "--task",
        data("generate.jsonl"),
        args[0],
        args[1],
        "--json",
        "--limit",
        "1",
        "--until",
        ".",
        "--until",
        "\n"
    );
    let found = json(&out);
    assert_eq!(found["texts"][0], " Paris");
    assert_eq!(found["precisions"][0], 100.0);
    let out = eval!(
        "generate",
        smollm2(),
        "--task",
        data("generate.jsonl"),
        "-n",
        "2"
    );
    assert!(text(&out.stdout).contains("\nBLEU "), "{out:?}");
}

#[test]
fn bad_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let path = folder.path().join("t.jsonl");
    for (content, part) in [
        ("", "t.jsonl: the file holds no prompts"),
        (
            "{\"prompt\":\"a\",\"reference\":\"b\"}\n{",
            "t.jsonl:2: not valid JSON",
        ),
        (
            "{\"prompt\":\"a\"}",
            "t.jsonl:1: field \"reference\" is missing",
        ),
        (
            "{\"prompt\":3,\"reference\":\"b\"}",
            "t.jsonl:1: field \"prompt\" must be a text, not 3",
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        refused(&eval!("generate", model, "--task", path), part);
    }
}

#[test]
fn prompts_that_leave_no_room_lose_their_left_end() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let path = folder.path().join("t.jsonl");
    let prompt = "ab ".repeat(200);
    std::fs::write(
        &path,
        format!("{{\"prompt\":{prompt:?},\"reference\":\"b\"}}"),
    )
    .unwrap();
    let out = eval!("generate", model, "--task", path, "-n", "3", "--json");
    assert_eq!(json(&out)["truncated"], 1);
    assert!(
        text(&out.stderr).starts_with("warning: 1 prompts"),
        "{out:?}"
    );
    let out = eval!("generate", model, "--task", path, "-n", "9999");
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    let message = text(&out.stderr);
    assert!(
        message.contains("leave no room for a prompt in a context of 256 tokens")
            && message.contains("\nhint: generate less"),
        "{message}"
    );
}

#[test]
fn an_empty_prompt_begins_with_the_token_that_begins_texts() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    std::fs::write(&path, "{\"prompt\":\"\",\"reference\":\"b\"}").unwrap();
    for model in [smollm2(), written(folder.path(), "tiny-gqa")] {
        let out = eval!("generate", model, "--task", path, "-n", "2", "--json");
        assert_eq!(json(&out)["n"], 1);
    }
}
