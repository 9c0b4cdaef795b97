//! Sizes that can be reached, and what they are filled with.

use std::path::Path;

use headshare_testmodels::self_merge;

use super::fit::{fitting, refused};
use super::quantizing;
use crate::support::{Ran, json, read, written};

/// The smallest size that the refusal of `bytes` names, if they are refused.
fn smallest(source: &Path, bytes: u64, more: &[&str]) -> Option<u64> {
    let out = source.with_extension("no");
    let ran = fitting(source, bytes, &out, &[more, &["--dry-run"]].concat());
    let ran = { ran }.output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    if ran.status.success() {
        return None;
    }
    assert_eq!(ran.status.code(), Some(2), "{stderr}");
    let said = stderr.split_once("the moves reach: at least ").unwrap().1;
    Some(said.split_once(" bytes").unwrap().0.parse().unwrap())
}

/// Every size from the smallest on is reached and filled, and more bytes never cost more. A
/// self-merge has padding that depends on what stays equal.
#[test]
fn the_smallest_is_reached_and_more_bytes_cost_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plain = written(folder.path(), "tiny-gqa");
    let (twice, partly) = (at("twice"), at("partly"));
    self_merge(&plain, &[0, 1, 2, 3, 0, 1, 2, 3], &twice).unwrap();
    self_merge(&plain, &[0, 1, 2, 3, 2, 3], &partly).unwrap();
    for source in [&plain, &twice, &partly] {
        let name = source.file_name().unwrap().to_str().unwrap();
        let stats = at(&format!("{name}.json"));
        let stats = stats.to_str().unwrap();
        let half = read(source).len() as u64 / 2;
        let save = ["--json", "--dry-run", "--save-stats", stats];
        json(&mut fitting(source, half, &at("dry"), &save));
        // Before anything is measured, it is not known which channels would go.
        let load = ["--stats", stats];
        let first = smallest(source, 1, &load).unwrap();
        let least = smallest(source, first, &load).unwrap_or(first);
        assert!(
            least >= first && least < first + first / 20,
            "{first} {least}"
        );
        let say = format!("reach: at least {least} bytes");
        refused(source, least - 1, &load, 2, &[&say]);
        let out = at(&format!("{name}.fit"));
        let more = ["--json", "--stats", stats];
        json(&mut fitting(source, least, &out, &more));
        assert_eq!(read(&out).len() as u64, least, "{name}");
        let dry = json(&mut fitting(
            source,
            least,
            &out,
            &[&more[..], &["--dry-run"]].concat(),
        ));
        let all = dry["fit"]["frontier"].as_array().unwrap();
        let bytes = |i: usize| all[i]["bytes"].as_u64().unwrap();
        assert_eq!(bytes(all.len() - 1), least, "{name}");
        let mut last = f64::INFINITY;
        for eighths in [8, 9, 10, 12, 16, 20] {
            let wanted = least * eighths / 8;
            let more = ["--json", "--dry-run", "--stats", stats];
            let dry = json(&mut fitting(source, wanted, &at("dry"), &more));
            let bytes = dry["output"]["bytes"].as_u64().unwrap();
            let cost = dry["fit"]["predicted"].as_f64().unwrap();
            assert!(bytes <= wanted, "{name}: {bytes} of {wanted}");
            // A step can be as large as the largest tensor's.
            let filled = bytes + least / 8 >= wanted || cost == 0.0;
            assert!(filled, "{name}: {bytes} of {wanted}, {cost}");
            assert!(cost <= last, "{name} at {wanted}: {cost} after {last}");
            last = cost;
        }
    }
}

/// What a user may get wrong of types and other options.
#[test]
fn names_are_trimmed_and_options_that_do_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let bytes = read(&source).len() as u64 / 2;
    let out = folder.path().join("out");
    let spaced = ["--json", "--dry-run", "--types", "q8_0, q4_0"];
    json(&mut fitting(&source, bytes, &out, &spaced));
    refused(&source, bytes, &["--silence"], 2, &["--baseline"]);
}

/// All tensors have the smallest of the types already, and there are no heads to go.
#[test]
fn a_model_that_no_move_applies_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plain = written(folder.path(), "tiny-mamba");
    let source = folder.path().join("small.gguf");
    json(quantizing(&plain, "q8_0", &source, &["--pure"]).arg("--json"));
    let bytes = read(&source).len() as u64 / 2;
    let says = ["small.gguf: no tensor has rows that are whole blocks of a smaller type"];
    refused(&source, bytes, &["--types", "q8_0"], 3, &says);
}

/// llama.cpp has one size for all layers of this architecture.
#[test]
fn what_cannot_go_is_said_and_the_frontier_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-qwen2");
    let bytes = read(&source).len() as u64 / 2;
    let picture = folder.path().join("frontier.svg");
    let mut command = fitting(&source, bytes, &picture, &["--dry-run"]);
    let ran = Ran::of(&mut command, "convert".to_owned()).ok();
    for note in [
        "note: no units go: llama.cpp has no numbers of heads by layer",
        "note: no feed-forward channels go: llama.cpp has one number of them",
    ] {
        assert!(ran.stderr.contains(note), "{}", ran.stderr);
    }
    let picture = String::from_utf8(read(&picture)).unwrap();
    assert!(picture.starts_with("<svg "));
    assert!(picture.contains("tiny-qwen2.gguf in fewer bytes"));
    assert!(picture.contains("<polyline"));
}

/// Fewer windows are read where all of them do not fit; what is too little for any is refused.
#[test]
fn little_memory_is_enough_for_few_windows() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let bytes = read(&source).len() as u64 / 2;
    let out = folder.path().join("out");
    let says = ["1024 bytes of memory are too few; this model needs at least "];
    let no = source.with_extension("no");
    let mut command = fitting(&source, bytes, &no, &["--memory", "1K"]);
    let ran = Ran::of(&mut command, "convert".to_owned()).refused(2, &says);
    let least = ran.stderr.split_once(says[0]).unwrap().1;
    let least = least.lines().next().unwrap();
    let mut command = fitting(&source, bytes, &out, &["--memory", least]);
    let ran = Ran::of(&mut command, "convert".to_owned()).ok();
    let note = format!("windows of 64 tokens instead of 6, to stay within {least} bytes");
    assert!(ran.stderr.contains(&note), "{}", ran.stderr);
    assert!(read(&out).len() as u64 <= bytes);
}
