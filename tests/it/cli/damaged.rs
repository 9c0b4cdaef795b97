//! `expand` says what a file is only after it has compared: a damaged file gives
//! nothing, and the message names what differs.

use std::path::PathBuf;
use std::process::Stdio;

use headshare_format::Gguf;
use headshare_testmodels::{FileEnd, ModelSpec};

use super::raw::{self, Raw, sealed};
use crate::support::{Folder, PROGRAM, Ran, assert_bytes, preset, read};

struct Case {
    folder: Folder,
    source: Vec<u8>,
    converted: Vec<u8>,
    gguf: Gguf,
}

impl Case {
    fn new(how: &[&str]) -> Self {
        let folder = Folder::new();
        let (source, out) = (folder.file("source.gguf"), folder.file("out.gguf"));
        let spec = ModelSpec {
            repeat: 2,
            random_padding: true,
            end: FileEnd::Trailing(5),
            ..preset("tiny-gqa")
        };
        spec.write(&source).unwrap();
        run!["convert", source, "-o", out; how].ok();
        let converted = read(&out);
        std::fs::remove_file(out).unwrap();
        Self {
            source: read(&source),
            gguf: Gguf::parse(&converted).unwrap(),
            folder,
            converted,
        }
    }

    fn lossless() -> Self {
        Self::new(&["--lossless"])
    }

    fn shared() -> Self {
        Self::new(&["--ratio", "0.3"])
    }

    fn flip(&self, at: u64) -> Vec<u8> {
        let mut bytes = self.converted.clone();
        bytes[at as usize] ^= 0x10;
        bytes
    }

    /// `expand` of `bytes`, over a file that is there.
    fn expand(&self, bytes: &[u8]) -> (Ran, PathBuf) {
        let path = self.folder.write("changed.gguf", bytes);
        let out = self.folder.write("out.gguf", "precious");
        (run!["expand", path, "-o", out, "--force"], out)
    }

    /// A damaged file gives neither a file nor a stream, and what was there
    /// stays.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], code: i32, says: &[&str]) -> Ran {
        let names = || {
            let mut names = self.folder.names();
            names.retain(|name| name != "changed.gguf" && name != "out.gguf");
            names
        };
        let before = names();
        let (ran, out) = self.expand(bytes);
        let ran = ran.refused(code, &[&["changed.gguf"], says].concat());
        assert_eq!(read(&out), b"precious");
        assert_eq!(names(), before);
        let path = self.folder.file("changed.gguf");
        run!["expand", path, "-o", "-"].refused(code, says);
        ran
    }

    fn value_end(&self, key: &str) -> u64 {
        self.gguf.value_range(self.gguf.kv(key).unwrap()).end as u64
    }

    fn raw(&self) -> Raw {
        Raw::parse(&self.converted)
    }
}

#[test]
fn a_byte_of_any_stored_tensor_is_noticed_and_the_tensor_named() {
    for case in [Case::lossless(), Case::shared()] {
        let names: Vec<&str> = case
            .gguf
            .tensors()
            .iter()
            .map(|t| t.name.as_str())
            .collect();
        assert!(names.contains(&"headshare.pool") && names.contains(&"headshare.filler"));
        for tensor in case.gguf.tensors() {
            let data = case.gguf.data_range(tensor);
            // The pool begins with a block; behind its blocks may be padding,
            // which only verify looks at.
            for at in [data.start, data.end - 1] {
                let bytes = case.flip(at);
                let ran = case.refuses(&bytes, 4, &[&tensor.name, "its data differs"]);
                assert!(ran.hint().contains("headshare-gguf verify"), "{ran:#?}");
            }
        }
    }
}

#[test]
fn several_damaged_tensors_are_one_line() {
    let case = Case::lossless();
    let mut bytes = case.converted.clone();
    for tensor in case.gguf.tensors() {
        bytes[case.gguf.data_range(tensor).start as usize] ^= 1;
    }
    let more = format!("and {} more tensors", case.gguf.tensors().len() - 3);
    case.refuses(&bytes, 4, &[&case.gguf.tensors()[0].name, &more]);
}

#[test]
fn an_intact_file_says_what_it_is_by_its_digests() {
    let case = Case::lossless();
    let (ran, out) = case.expand(&case.converted);
    let said = ran.ok().stdout;
    assert!(said.contains("the source byte for byte"), "{said}");
    assert_bytes(&read(&out), &case.source, "expanded and source");
    let case = Case::shared();
    let (ran, out) = case.expand(&case.converted);
    let said = ran.ok().stdout;
    assert!(said.contains("as it was written"), "{said}");
    assert!(!said.contains("byte for byte"), "{said}");
    assert_eq!(read(&out).len(), case.source.len());
}

#[test]
fn a_changed_value_that_breaks_no_rule_is_a_changed_header() {
    for case in [Case::lossless(), Case::shared()] {
        let bytes = case.flip(case.value_end("general.name") - 1);
        let ran = case.refuses(&bytes, 4, &["its header was changed after it was written"]);
        assert!(ran.hint().contains("convert it again"), "{ran:#?}");
        let path = case.folder.file("changed.gguf");
        let seen = run!["inspect", path].ok().stdout;
        assert!(seen.contains("the header was changed"), "{seen}");
        let seen = run!["inspect", path, "--json"].ok().json();
        assert_eq!(seen["sharing"]["header_intact"], false);
        let path = case.folder.write("good.gguf", &case.converted);
        let seen = run!["inspect", path, "--json"].ok().json();
        assert_eq!(seen["sharing"]["header_intact"], true);
    }
}

#[test]
fn a_header_and_a_tensor_are_both_named() {
    for case in [Case::lossless(), Case::shared()] {
        let mut bytes = case.flip(case.value_end("general.name") - 1);
        let tensor = &case.gguf.tensors()[0];
        bytes[case.gguf.data_range(tensor).start as usize] ^= 1;
        let ran = case.refuses(&bytes, 4, &["its header was changed", &tensor.name]);
        assert!(ran.hint().contains("verify"), "{ran:#?}");
    }
}

#[test]
fn what_the_source_does_not_depend_on_does_not_count_if_the_digest_is_its_own() {
    // The result was compared with the source's digest: it is the source.
    let case = Case::lossless();
    let bytes = case.flip(case.value_end("headshare.tool") - 1);
    let (ran, out) = case.expand(&bytes);
    ran.ok();
    assert_bytes(&read(&out), &case.source, "expanded and source");
    // Where only the parts can be compared, the header is one of them.
    let case = Case::shared();
    let bytes = case.flip(case.value_end("headshare.tool") - 1);
    case.refuses(&bytes, 4, &["its header was changed"]);
}

#[test]
fn parts_that_fit_do_not_make_a_whole_that_does() {
    let case = Case::lossless();
    let mut raw = case.raw();
    raw.tensor("blk.0.ffn_up.weight").data[100] ^= 1;
    case.refuses(&sealed(raw), 4, &["does not have the source's digest"]);
}

#[test]
fn another_tools_metadata_is_what_is_told_by_every_command() {
    for case in [Case::lossless(), Case::shared()] {
        let mut raw = case.raw();
        let name = "a name that is so much longer than it was".repeat(9);
        raw.set("general.name", raw::string("general.name", &name));
        let mut added = case.raw();
        added
            .kvs
            .push(raw::string("general.license", &"x".repeat(999)));
        for bytes in [raw.bytes(), added.bytes()] {
            let says = "its header was changed after it was written";
            let ran = case.refuses(&bytes, 3, &[says]);
            assert!(ran.hint().contains("convert it again"), "{ran:#?}");
            let path = case.folder.file("changed.gguf");
            let text = case
                .folder
                .write("text.txt", "Once upon a time ".repeat(99));
            for ran in [
                run!["verify", path],
                run!["inspect", path],
                run!["run", path, "-p", "x", "-n", "1"],
                run!["bench", path],
                run!["plan", path],
                run!["analyze", "weights", path],
                run!["analyze", "ratios", path],
                run!["eval", "perplexity", path, "--text", text],
                run!["exec", "--model", path, "--", "true"],
            ] {
                ran.refused(3, &[says]);
            }
        }
    }
}

#[test]
fn a_rule_that_the_writer_broke_is_still_the_rule() {
    let case = Case::lossless();
    let mut raw = case.raw();
    const SIZE: &str = "headshare.source.size";
    raw.set(SIZE, raw::u64(SIZE, 7));
    case.refuses(&sealed(raw), 3, &[SIZE]);
}

#[test]
fn verify_looks_at_the_bytes_around_tensors_too() {
    let case = Case::shared();
    let mut raw = case.raw();
    raw.tensor("headshare.filler").data[3] ^= 1;
    let path = case.folder.write("changed.gguf", sealed(raw));
    run!["verify", path].ok();
    let source = case.folder.file("source.gguf");
    let report = run!["verify", path, "--source", source, "--json"].exits(4);
    let findings = &report.json()["findings"];
    assert_eq!(findings[0]["subject"], "expanded file", "{findings}");
}

#[test]
fn a_stream_is_the_file() {
    for case in [Case::lossless(), Case::shared()] {
        let (ran, out) = case.expand(&case.converted);
        ran.ok();
        let streamed = crate::support::program()
            .arg("expand")
            .arg(case.folder.file("changed.gguf"))
            .args(["-o", "-"])
            .output()
            .unwrap();
        assert!(streamed.status.success());
        assert_bytes(&streamed.stdout, &read(&out), "the stream and the file");
        let said = String::from_utf8(streamed.stderr).unwrap();
        assert!(said.contains("bytes, "), "{said}");
    }
}

#[test]
fn a_reader_that_is_gone_had_enough() {
    let case = Case::lossless();
    let path = case.folder.write("good.gguf", &case.converted);
    let mut child = std::process::Command::new(PROGRAM)
        .arg("expand")
        .arg(&path)
        .args(["-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}
