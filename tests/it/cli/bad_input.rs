//! Every malformed file is refused by every subcommand that reads such a file:
//! exit status 3, one message, and nothing written.

use std::path::Path;

use super::bad_files::{self, BadFile};
use super::bad_tables;
use super::raw::{self, Raw, tensor};
use crate::support::{Folder, small};

/// What every refusal is tried with.
struct Subcommands {
    folder: Folder,
    /// Holds a good model, its plan, and it converted.
    good: Folder,
}

impl Subcommands {
    fn new() -> Self {
        let good = Folder::new();
        let model = good.file("model.gguf");
        small("tiny-llama").write(&model).unwrap();
        run![
            "plan",
            model,
            "--ratio",
            "0.5",
            "-o",
            good.file("plan.json")
        ]
        .ok();
        run![
            "convert",
            model,
            "--ratio",
            "0.5",
            "-o",
            good.file("converted.gguf")
        ]
        .ok();
        Self {
            folder: Folder::new(),
            good,
        }
    }

    /// Every subcommand that reads a model refuses `path`.
    #[track_caller]
    fn refuse(&self, path: &Path, says: &str) {
        let shown = path.display().to_string();
        let says = [shown.as_str(), says];
        let before = self.folder.names();
        let (out, plan) = (self.folder.file("out"), self.good.file("plan.json"));
        let converted = self.good.file("converted.gguf");
        for ran in [
            run!["plan", path],
            run!["plan", path, "--json", "-o", out],
            run!["convert", path, "--ratio", "0.5", "-o", out],
            run!["convert", path, "--lossless", "-o", out, "--json"],
            run!["convert", path, "--lossless", "-o", out, "--dry-run"],
            run!["convert", path, "--plan", plan, "-o", out],
            run!["expand", path, "-o", out, "--json"],
            run!["verify", path],
            run!["verify", path, "--json"],
            run!["verify", converted, "--source", path],
            run!["run", path, "-p", "x", "-n", "1"],
            run!["run", path, "-p", "x", "-n", "1", "--json"],
            run!["inspect", path],
            run!["-q", "inspect", path, "--json"],
        ] {
            ran.refused(3, &says);
        }
        assert_eq!(self.folder.names(), before);
    }

    #[track_caller]
    fn refuse_all(&self, files: &[BadFile]) {
        for file in files {
            println!("{}", file.name);
            let path = self.folder.write("bad.gguf", &file.bytes);
            self.refuse(&path, file.says);
            // As it is, and under no other name.
            assert_eq!(self.folder.names(), ["bad.gguf"]);
        }
    }
}

#[test]
fn malformed_files_are_refused_by_every_subcommand() {
    Subcommands::new().refuse_all(&bad_files::all());
}

#[test]
fn malformed_alias_tables_are_refused_by_every_subcommand() {
    Subcommands::new().refuse_all(&bad_tables::all());
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let subcommands = Subcommands::new();
    let folder = Folder::new();
    let pipe = folder.file("pipe");
    let mkfifo = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(mkfifo.expect("mkfifo runs").success());
    let socket = folder.file("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let link = folder.file("link");
    std::os::unix::fs::symlink(folder.file("nowhere"), &link).unwrap();
    subcommands.refuse(&pipe, "is a pipe");
    subcommands.refuse(&socket, "is a socket");
    subcommands.refuse(folder.path(), "is a folder");
    subcommands.refuse(Path::new("/dev/zero"), "is a device");
    subcommands.refuse(Path::new("/dev/null"), "is a device");
    subcommands.refuse(&folder.file("missing.gguf"), "cannot open: No such file");
    subcommands.refuse(&link, "cannot open: No such file");
    subcommands.refuse(&folder.file("a/b"), "cannot open: No such file");
    subcommands.refuse(Path::new("/proc/self/environ"), "");
}

#[test]
fn a_path_with_a_line_break_keeps_the_message_on_one_line() {
    let folder = Folder::new();
    let path = folder.write("a\nb\u{1b}[31m.gguf", "x");
    let ran = run!["inspect", path].refused(3, &["a\\nb\\u{1b}[31m.gguf"]);
    assert_eq!(ran.hint(), "");
}

#[test]
fn hints_say_what_helps() {
    let folder = Folder::new();
    for file in bad_files::all() {
        let expected = match file.name {
            "version 1" => "convert the model again",
            "big-endian" => "gguf_convert_endian.py",
            "split file" => "llama-gguf-split --merge",
            "Git LFS pointer" => "git lfs pull",
            "safetensors" | "PyTorch zip" | "pickle" => "convert_hf_to_gguf.py",
            "old ggml" | "old ggmf" | "old ggjt" => "convert_llama_ggml_to_gguf.py",
            "old ggla" => "convert_lora_to_gguf.py",
            "compressed" => "unpack",
            "web page" => "/resolve/",
            _ => continue,
        };
        let path = folder.write("bad.gguf", &file.bytes);
        let ran = run!["plan", path].refused(3, &[]);
        assert!(ran.hint().contains(expected), "{ran:#?}");
    }
}

#[test]
fn a_vocabulary_without_its_model_is_refused_and_can_be_inspected() {
    let folder = Folder::new();
    let mut raw = Raw::parse(&small("tiny-llama").to_bytes().unwrap());
    raw.tensors.clear();
    let path = folder.write("vocabulary.gguf", raw.bytes());
    let text = folder.write("text.txt", "Once upon a time ".repeat(99));
    let good = folder.file("good.gguf");
    small("tiny-llama").write(&good).unwrap();
    let converted = folder.file("converted.gguf");
    run!["convert", good, "--lossless", "-o", converted].ok();
    let names = folder.names();
    let out = folder.file("out");
    for ran in [
        run!["plan", path],
        run!["convert", path, "--ratio", "0.5", "-o", out],
        run!["convert", path, "--lossless", "-o", out],
        run!["verify", converted, "--source", path],
        run!["run", path, "-p", "x", "-n", "1"],
        run!["run", path, "--chat"],
        run!["bench", path],
        run!["bench", "--stock", path],
        run!["eval", "perplexity", path, "--text", text],
        run![
            "eval",
            "perplexity",
            good,
            "--base",
            path,
            "--text",
            text,
            "--ctx",
            "16"
        ],
        run!["analyze", "weights", path],
        run!["analyze", "attention", path, "--text", text],
        run!["report", path, "--ratios", "0.5", "--text", text, "-o", out],
    ] {
        let ran = ran.refused(3, &["vocabulary.gguf", "is a vocabulary only"]);
        assert!(ran.hint().contains("whole model"), "{ran:#?}");
    }
    assert_eq!(folder.names(), names);
    let seen = run!["inspect", path].ok().stdout;
    assert!(seen.contains("0 tensors"), "{seen}");
}

#[test]
fn what_belongs_to_a_model_is_not_run_as_one() {
    let folder = Folder::new();
    let text = folder.write("text.txt", "Once upon a time ".repeat(99));
    for (kind, says) in [
        ("adapter", "is a LoRA adapter, not a model"),
        ("mmproj", "is a multimodal projector, not a model"),
        ("imatrix", "is an importance matrix, not a model"),
    ] {
        let mut raw = Raw::parse(&small("tiny-llama").to_bytes().unwrap());
        raw.set("general.type", raw::string("general.type", kind));
        let path = folder.write("part.gguf", raw.bytes());
        for ran in [
            run!["run", path, "-p", "x", "-n", "1"],
            run!["bench", path],
            run!["bench", "--stock", path],
            run!["eval", "perplexity", path, "--text", text],
            run!["analyze", "weights", path],
        ] {
            let ran = ran.refused(3, &["part.gguf", says]);
            assert_ne!(ran.hint(), "", "{ran:#?}");
        }
    }
}

#[test]
fn converted_files_are_to_be_expanded_first() {
    let folder = Folder::new();
    let path = folder.write("converted.gguf", bad_tables::converted());
    let out = folder.file("out");
    for ran in [
        run!["plan", path],
        run!["convert", path, "--ratio", "0.5", "-o", out],
        run!["convert", path, "--lossless", "-o", out],
        run!["verify", path, "--source", path],
    ] {
        let ran = ran.refused(3, &["converted.gguf", "is converted already"]);
        assert!(ran.hint().contains("headshare-gguf expand"), "{ran:#?}");
    }
    assert_eq!(folder.names(), ["converted.gguf"]);
}

#[test]
fn plain_files_are_neither_expanded_nor_verified() {
    let folder = Folder::new();
    let path = folder.file("plain.gguf");
    small("tiny-llama").write(&path).unwrap();
    run!["expand", path, "-o", folder.file("out")].refused(3, &["plain.gguf", "plain GGUF"]);
    run!["verify", path].refused(3, &["plain.gguf", "plain GGUF"]);
    assert_eq!(folder.names(), ["plain.gguf"]);
}

#[test]
fn names_that_the_format_reserves_are_not_converted() {
    let folder = Folder::new();
    let good = Raw::parse(&small("tiny-llama").to_bytes().unwrap());
    let mut key = good.clone();
    key.kvs.push(raw::string("headshare.version", "mine"));
    let mut tensors = good;
    tensors
        .tensors
        .push(tensor("headshare.pool", 24, &[32], vec![1; 32]));
    for (raw, says) in [
        (key, "\"headshare.version\""),
        (tensors, "\"headshare.pool\""),
    ] {
        let path = folder.write("bad.gguf", raw.bytes());
        let out = folder.file("out");
        let says = ["bad.gguf", says, "reserved"];
        run!["plan", path].refused(3, &says);
        run!["convert", path, "--ratio", "0.5", "-o", out].refused(3, &says);
        run!["convert", path, "--lossless", "-o", out].refused(3, &says);
        run!["inspect", path].ok();
        assert_eq!(folder.names(), ["bad.gguf"]);
    }
}

#[test]
fn a_bad_plan_inside_a_converted_file_is_a_bad_file() {
    let folder = Folder::new();
    let good = Raw::parse(&bad_tables::converted());
    const PLAN: &str = "headshare.plan";
    let plan: serde_json::Value = serde_json::from_slice(&good.value(PLAN)[8..]).unwrap();
    let with = |plan: &str| {
        let mut raw = good.clone();
        raw.set(PLAN, raw::string(PLAN, plan));
        raw::sealed(raw)
    };
    let mut unknown = plan.clone();
    unknown["edits"][0]["share"]["layer"] = 99.into();
    let mut version = plan;
    version["version"] = 3.into();
    for (plan, says) in [
        ("{", "not a plan file"),
        (&unknown.to_string(), "edits[0].share.unit"),
        (&version.to_string(), "version"),
    ] {
        let path = folder.write("bad.gguf", with(plan));
        run!["verify", path].refused(3, &["bad.gguf", PLAN, says]);
    }
}
