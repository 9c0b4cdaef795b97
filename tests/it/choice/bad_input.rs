//! Bad input: each a clear error that names the file, the line and the field.

use headshare_testmodels::ModelSpec;

use super::{data, eval, refused};
use crate::support::{text, written};

#[test]
fn broken_task_files_name_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let good = "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":0}\n";
    for (name, content, part) in [
        (
            "empty",
            String::new(),
            "empty.jsonl: there are no items in it",
        ),
        (
            "broken",
            format!("{good}{{\"query\":"),
            "broken.jsonl:2: not valid JSON",
        ),
        (
            "fields",
            "{\"a\":1}".into(),
            "fields.jsonl:1: the fields are a (a number), which is no known",
        ),
        (
            "field",
            format!("{good}{{\"query\":\"a\",\"gold\":0}}"),
            "field.jsonl:2: field \"choices\" is missing",
        ),
        (
            "gold",
            "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":2}".into(),
            "gold.jsonl:1: field \"gold\" is 2, but there are 2 choices (0 to 1)",
        ),
        (
            "array",
            format!("[\n{}\n,\n{{\"query\":\"a\",\"gold\":0}}]", good.trim()),
            "array.jsonl:4: field \"choices\" is missing",
        ),
        (
            "cut",
            format!("[{}", good.trim()),
            "cut.jsonl:1: the list does not go on with a comma, nor end with ]",
        ),
        (
            "contexts",
            "{\"context_options\":[\"a\"],\"continuation\":\"b\",\"gold\":0}".into(),
            "contexts.jsonl:1: field \"context_options\" holds 1 choices, where 2 to 64 can be",
        ),
        (
            "race",
            "{\"article\":\"a\",\"questions\":[\"b\"],\"options\":[[\"c\",\" \"]],\"answers\":[\"A\"]}".into(),
            "race.jsonl:1: field \"options[0][1]\" is empty",
        ),
        (
            "zip",
            "PK\u{3}\u{4}nonsense".into(),
            "zip.jsonl: no zip file",
        ),
    ] {
        let path = folder.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, content).unwrap();
        refused(&eval!("choice", model, "--task", path), part);
    }
    refused(
        &eval!("choice", model, "--task", folder.path().join("none")),
        "cannot read",
    );
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(
        &eval!("choice", model, "--task", empty),
        "empty: no file in it",
    );
    let out = eval!(
        "choice",
        model,
        "--task",
        data("partial.jsonl"),
        "--kind",
        "letters"
    );
    refused(&out, "cannot be scored as letters; they can as partial");
}

#[test]
fn unknown_fields_have_a_hint_with_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let path = folder.path().join("t.jsonl");
    std::fs::write(&path, "{\"a\":1}").unwrap();
    let out = eval!("choice", model, "--task", path);
    assert!(text(&out.stderr).contains("\nhint: known forms: {query, choices, gold}"));
}

#[test]
fn a_continuation_longer_than_the_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-gqa");
    let out = eval!("choice", model, "--task", data("question.jsonl"), "-c", "8");
    refused(&out, "line 1: a continuation of");
    assert!(text(&out.stderr).contains("\nhint: a larger context: --ctx-size "));
}

#[test]
fn a_model_that_embeds_only_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = written(folder.path(), "tiny-bert");
    let out = eval!("choice", model, "--task", data("question.jsonl"));
    refused(&out, "bert models do not generate text");
    let out = eval!("generate", model, "--task", data("generate.jsonl"));
    refused(&out, "bert models do not generate text");
}

#[test]
fn weights_that_are_no_numbers_give_no_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.gguf");
    let spec = ModelSpec::preset("tiny-gqa").unwrap();
    spec.write(&path).unwrap();
    // The last tensors of the file, all of them F32.
    let mut bytes = std::fs::read(&path).unwrap();
    let from = bytes.len() / 2 / 4 * 4;
    for weight in bytes[from..].chunks_exact_mut(4) {
        weight.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let out = eval!("choice", path, "--task", data("question.jsonl"));
    refused(&out, "not numbers (NaN)");
    let out = eval!(
        "generate",
        path,
        "--task",
        data("generate.jsonl"),
        "-n",
        "2"
    );
    refused(&out, "the model's output is not a number");
}
