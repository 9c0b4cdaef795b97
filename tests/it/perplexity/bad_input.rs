//! Input that cannot be evaluated: an error each, with what to do about it.

use std::path::PathBuf;

use super::{eval, path};
use crate::support::{Folder, preset, valley};

struct Bad {
    folder: Folder,
    model: PathBuf,
    text: PathBuf,
}

impl Bad {
    fn new() -> Self {
        let folder = Folder::new();
        let model = folder.file("model.gguf");
        preset("tiny-llama").write(&model).unwrap();
        Self {
            folder,
            model,
            text: valley(),
        }
    }

    fn preset(&self, name: &str) -> PathBuf {
        let file = self.folder.file(&format!("{name}.gguf"));
        preset(name).write(&file).unwrap();
        file
    }
}

#[test]
fn texts() {
    let bad = Bad::new();
    let of = |name: &str, bytes: &[u8]| {
        let text = bad.folder.write(name, bytes);
        eval(&[path(&bad.model), "--text", path(&text)])
    };
    let short = of("short.txt", "the river ".repeat(40).as_bytes());
    let short = short.refused(3, &["short.txt", "tokens", "less than one window of 512"]);
    let hint = short.hint().to_owned();
    let ctx = hint.rsplit(' ').next().unwrap();
    assert!(
        hint.contains("--ctx ") && ctx.parse::<u32>().is_ok(),
        "{hint}"
    );
    let text = bad.folder.file("short.txt");
    // The hint is right.
    eval(&[path(&bad.model), "--text", path(&text), "--ctx", ctx]).ok();

    let tiny = of("tiny.txt", b"a").refused(3, &["tiny.txt", "less than one window"]);
    assert!(tiny.hint().contains("longer text"), "{tiny:#?}");
    for (name, bytes) in [("empty.txt", ""), ("line.txt", "\n")] {
        of(name, bytes.as_bytes()).refused(3, &[name, "the text is empty"]);
    }
    of("latin1.txt", b"na\xefve").refused(3, &["the text in", "latin1.txt is not UTF-8", "byte 2"]);
    let gone = bad.folder.file("gone.txt");
    eval(&[path(&bad.model), "--text", path(&gone)])
        .refused(3, &["cannot read the text", "gone.txt: No such file"]);
    eval(&[path(&bad.model), "--text", path(bad.folder.path())])
        .refused(3, &["cannot read the text", "directory"]);
}

#[test]
fn models() {
    let bad = Bad::new();
    let text = path(&bad.text);
    let bert = bad.preset("tiny-bert");
    eval(&[path(&bert), "--text", text, "--ctx", "64"])
        .refused(3, &["bert models do not generate text"]);
    eval(&[
        path(&bad.model),
        "--base",
        path(&bert),
        "--text",
        text,
        "--ctx",
        "64",
    ])
    .refused(3, &["bert models do not generate text"]);
    let gone = bad.folder.file("gone.gguf");
    eval(&[path(&gone), "--text", text]).refused(3, &["gone.gguf", "No such file"]);
    eval(&[path(&bad.model), "--base", path(&gone), "--text", text])
        .refused(3, &["gone.gguf", "No such file"]);
    eval(&[text, "--text", text]).refused(3, &["valley.txt"]);
}

#[test]
fn references_of_other_vocabularies() {
    let bad = Bad::new();
    let text = path(&bad.text);
    let refused = |base: &PathBuf, what: &str| {
        eval(&[
            path(&bad.model),
            "--base",
            path(base),
            "--text",
            text,
            "--ctx",
            "64",
        ])
        .refused(3, &["different vocabularies", what])
        .hint()
        .to_owned()
    };
    let hint = refused(&bad.preset("tiny-gpt2"), "token 0 is");
    assert!(hint.contains("the same model"), "{hint}");
    let fewer = bad.folder.file("fewer.gguf");
    let spec = headshare_testmodels::ModelSpec {
        n_vocab: 300,
        ..preset("tiny-llama")
    };
    spec.write(&fewer).unwrap();
    refused(&fewer, "and 300 in the reference");
}

#[test]
fn windows() {
    let bad = Bad::new();
    let text = path(&bad.text);
    for ctx in ["7", "-5", "much"] {
        let ran = eval(&[path(&bad.model), "--text", text, &format!("--ctx={ctx}")]).exits(2);
        assert!(ran.stderr.contains("--ctx"), "{ran:#?}");
        assert_eq!(ran.stdout, "");
    }
    for args in [["--chunks", "0"], ["-b", "0"], ["-t", "0"]] {
        eval(&[&[path(&bad.model), "--text", text], &args[..]].concat()).exits(2);
    }
    // Trained with 256, which 0 stands for.
    let own = eval(&[path(&bad.model), "--text", text, "-c", "0", "--json"]).json();
    assert_eq!(own["ctx"], 256);
    let beyond = eval(&[
        path(&bad.model),
        "--text",
        text,
        "--ctx",
        "301",
        "--chunks",
        "1",
    ])
    .ok();
    assert!(
        beyond.stderr.starts_with("warning: ") && beyond.stderr.contains("256"),
        "{beyond:#?}"
    );
    let gpt2 = bad.preset("tiny-gpt2");
    let refused = eval(&[path(&gpt2), "--text", text, "--ctx", "257"])
        .refused(2, &["gpt2 models have no positions beyond 256"]);
    assert!(refused.hint().contains("--ctx 256"), "{refused:#?}");
    eval(&[path(&gpt2), "--text", text, "--ctx", "256", "--chunks", "2"]).ok();
}
