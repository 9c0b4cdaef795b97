//! `verify` notices every changed byte, and names what it is in.

use std::path::PathBuf;

use headshare_format::Gguf;
use headshare_testmodels::{FileEnd, ModelSpec};
use serde_json::Value;

use super::oracle::Model;
use super::raw::{Raw, sealed};
use crate::support::{Folder, preset, read};

/// A model and what it converts to.
struct Case {
    folder: Folder,
    source: PathBuf,
    converted: Vec<u8>,
    gguf: Gguf,
}

impl Case {
    fn new(spec: &ModelSpec, how: &[&str]) -> Self {
        let folder = Folder::new();
        let (source, out) = (folder.file("source.gguf"), folder.file("out.gguf"));
        spec.write(&source).unwrap();
        run!["convert", source, "-o", out; how].ok();
        let converted = read(&out);
        let gguf = Gguf::parse(&converted).unwrap();
        Self {
            folder,
            source,
            converted,
            gguf,
        }
    }

    fn ratio() -> Self {
        Self::new(&preset("tiny-gqa"), &["--ratio", "0.3"])
    }

    fn lossless() -> Self {
        let spec = ModelSpec {
            repeat: 2,
            random_padding: true,
            end: FileEnd::Trailing(5),
            ..preset("tiny-gqa")
        };
        Self::new(&spec, &["--lossless"])
    }

    /// The findings about `bytes`, as subject and problem; none when it holds.
    #[track_caller]
    fn findings(&self, bytes: &[u8], with_source: bool) -> Vec<(String, String)> {
        let path = self.folder.write("changed.gguf", bytes);
        let ran = match with_source {
            true => run!["verify", path, "--source", self.source, "--json"],
            false => run!["verify", path, "--json"],
        };
        let report = ran.json();
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(report["ok"], findings.is_empty());
        assert_eq!(
            ran.code,
            Some(if findings.is_empty() { 0 } else { 4 }),
            "{ran:#?}"
        );
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        findings
            .iter()
            .map(|f| (text(&f["subject"]), text(&f["problem"])))
            .collect()
    }

    #[track_caller]
    fn flip(&self, at: u64) -> Vec<u8> {
        let mut bytes = self.converted.clone();
        bytes[at as usize] ^= 0x10;
        bytes
    }

    /// A flipped byte is found, and `subject` is one of the findings.
    #[track_caller]
    fn finds(&self, at: u64, subject: &str) {
        let findings = self.findings(&self.flip(at), false);
        assert!(
            findings.iter().any(|(s, _)| s == subject),
            "{subject}: {findings:?}"
        );
    }

    fn raw(&self) -> Raw {
        Raw::parse(&self.converted)
    }
}

#[test]
fn intact_files_hold() {
    for case in [Case::ratio(), Case::lossless()] {
        assert_eq!(case.findings(&case.converted, false), []);
        assert_eq!(case.findings(&case.converted, true), []);
    }
}

#[test]
fn a_byte_in_any_stored_tensor_is_found_and_the_tensor_named() {
    for case in [Case::ratio(), Case::lossless()] {
        let names: Vec<&str> = case
            .gguf
            .tensors()
            .iter()
            .map(|t| t.name.as_str())
            .collect();
        assert!(names.contains(&"headshare.pool") && names.contains(&"token_embd.weight"));
        for tensor in case.gguf.tensors() {
            let data = case.gguf.data_range(tensor);
            for at in [data.start, (data.start + data.end) / 2, data.end - 1] {
                case.finds(at, &tensor.name);
            }
        }
    }
    let case = Case::lossless();
    assert!(case.gguf.tensor("headshare.filler").is_some());
}

#[test]
fn a_changed_byte_of_a_lossless_file_is_no_longer_the_source() {
    let case = Case::lossless();
    let data = case.gguf.data_range(&case.gguf.tensors()[0]);
    case.finds(data.start, "expanded file");
}

#[test]
fn a_byte_in_the_value_of_any_key_is_found() {
    for case in [Case::ratio(), Case::lossless()] {
        for kv in case.gguf.kvs() {
            let at = case.gguf.value_range(kv).end as u64 - 1;
            let path = case.folder.write("changed.gguf", case.flip(at));
            let ran = run!["verify", path];
            assert!(matches!(ran.code, Some(3 | 4)), "{}: {ran:#?}", kv.key);
        }
        let name = case.gguf.kv("general.name").unwrap();
        case.finds(case.gguf.value_range(name).end as u64 - 1, "header");
    }
}

#[test]
fn a_byte_anywhere_is_found() {
    for case in [Case::ratio(), Case::lossless()] {
        let len = case.converted.len();
        let header = case.gguf.header_end() as usize;
        // All over the file, the header more closely.
        let places = (0..header)
            .step_by(header / 100)
            .chain((0..len).step_by(len / 100));
        for at in places {
            let path = case.folder.write("changed.gguf", case.flip(at as u64));
            let ran = run!["verify", path];
            assert!(matches!(ran.code, Some(3 | 4)), "byte {at}: {ran:#?}");
        }
    }
}

#[test]
fn padding_and_what_follows_are_looked_at() {
    let case = Case::new(
        &ModelSpec {
            n_embd: 96,
            ..preset("tiny-llama")
        },
        &["--ratio", "0.5"],
    );
    let ranges = case.gguf.filler_ranges();
    assert!(ranges.len() > 2);
    for range in &ranges {
        case.finds(range.start, "padding");
        case.finds(range.end - 1, "padding");
    }
    let mut longer = case.converted.clone();
    longer.push(0);
    assert_eq!(case.findings(&longer, false)[0].0, "end of file");
}

#[test]
fn padding_in_the_pool_is_looked_at_even_if_its_digest_fits() {
    let case = Case::new(
        &ModelSpec {
            n_embd: 96,
            ..preset("tiny-llama")
        },
        &["--ratio", "0.5"],
    );
    let mut raw = case.raw();
    // The longest run of zeros in the pool is padding.
    let pool = &mut raw.tensor("headshare.pool").data;
    let (mut longest, mut run) = ((0, 0), 0);
    for (i, byte) in pool.iter().enumerate() {
        run = if *byte == 0 { run + 1 } else { 0 };
        longest = longest.max((run, i));
    }
    assert!(longest.0 > 16, "no padding in the pool: {longest:?}");
    pool[longest.1] = 1;
    let findings = case.findings(&sealed(raw), false);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].0, "headshare.pool");
    assert!(findings[0].1.contains("not zero"), "{findings:?}");
}

#[test]
fn another_source_is_told() {
    for case in [Case::ratio(), Case::lossless()] {
        let spec = ModelSpec {
            seed: 2,
            ..preset("tiny-gqa")
        };
        let other = case.folder.file("other.gguf");
        spec.write(&other).unwrap();
        let path = case.folder.write("good.gguf", &case.converted);
        let report = run!["verify", path, "--source", other, "--json"]
            .exits(4)
            .json();
        assert_eq!(report["findings"][0]["subject"], other.to_str().unwrap());
        let ran = run!["verify", path, "--source", other].exits(4);
        assert!(ran.stdout.contains("NOT OK"), "{ran:#?}");
        // A source with one byte more is another one.
        let mut longer = read(&case.source);
        longer.push(0);
        let longer = case.folder.write("longer.gguf", longer);
        run!["verify", path, "--source", longer].exits(4);
        run!["verify", path, "--source", case.source].ok();
    }
}

#[test]
fn changed_rows_whose_digests_fit_are_found_by_the_source() {
    let case = Case::ratio();
    // An alias, its donor (both in one block of the pool) and a plain tensor.
    for name in ["headshare.pool", "blk.0.ffn_up.weight"] {
        let mut raw = case.raw();
        raw.tensor(name).data[100] ^= 1;
        let changed = sealed(raw);
        assert_eq!(case.findings(&changed, false), [], "{name}");
        let findings = case.findings(&changed, true);
        assert!(!findings.is_empty(), "{name}");
        if name != "headshare.pool" {
            assert_eq!(findings[0].0, name, "{findings:?}");
        }
    }
    // In a lossless file the source's digest gives it away.
    let case = Case::lossless();
    let mut raw = case.raw();
    raw.tensor("blk.0.ffn_up.weight").data[100] ^= 1;
    let changed = sealed(raw);
    assert_eq!(case.findings(&changed, false)[0].0, "expanded file");
    assert!(case.findings(&changed, true).len() >= 2);
}

#[test]
fn an_alias_that_uses_other_rows_than_its_donor_is_found() {
    let case = Case::ratio();
    let plan: Value = {
        let bytes = &case.raw().value("headshare.plan")[8..].to_vec();
        serde_json::from_slice(bytes).unwrap()
    };
    // Make the alias's v block a copy of its own, as in the source, by giving
    // the pool those rows and the alias's segment their place.
    let alias = &plan["edits"][0]["share"];
    let unit = (
        alias["layer"].as_u64().unwrap(),
        alias["unit"].as_u64().unwrap(),
    );
    let model = Model::new(read(&case.source));
    let rows = model.bytes[model.block(unit, "v")].to_vec();
    let name = format!("blk.{}.attn_v.weight", unit.0);
    let tensor = model.gguf.tensor_index(&name).unwrap() as u32;
    let offset = unit.1 * rows.len() as u64;

    let mut raw = case.raw();
    let pool = raw.tensor("headshare.pool");
    let place = pool.data.len().next_multiple_of(32);
    pool.data.resize(place, 0);
    pool.data.extend(&rows);
    pool.dims = vec![pool.data.len() as u64];
    let mut tensors = Vec::new();
    raw.edit_u32s("headshare.segment.tensors", |l| tensors.clone_from(l));
    let mut offsets = Vec::new();
    raw.edit_u64s("headshare.segment.offsets", |l| offsets.clone_from(l));
    let segment = (0..tensors.len())
        .find(|&i| (tensors[i], offsets[i]) == (tensor, offset))
        .expect("the alias has a segment of its own");
    raw.edit_u64s("headshare.segment.stored_offsets", |l| {
        l[segment] = place as u64
    });
    let changed = sealed(raw);
    for with_source in [false, true] {
        let findings = case.findings(&changed, with_source);
        assert_eq!(findings[0].0, name, "{findings:?}");
        assert!(
            findings[0].1.contains("are not stored where"),
            "{findings:?}"
        );
    }
}

#[test]
fn the_report_says_what_was_checked() {
    let case = Case::ratio();
    let path = case.folder.write("good.gguf", &case.converted);
    let report = run!["verify", path, "--source", case.source, "--json"]
        .ok()
        .json();
    let bytes: u64 = Gguf::parse(&read(&case.source))
        .unwrap()
        .tensors()
        .iter()
        .map(|t| t.byte_len())
        .sum();
    assert_eq!(report["compared_bytes"], bytes);
    assert_eq!(report["stored_tensors"], case.gguf.tensors().len());
    assert_eq!(report["lossless"], false);
    let ran = run!["verify", path].ok();
    assert!(ran.stdout.contains("ok"), "{ran:#?}");
    assert_eq!(ran.stderr, "");
}
