//! What can go wrong while a converted file is loaded or in use.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use headshare_format::{LogicalLayout, PageSize, VirtualGguf};
use headshare_gguf::input::ModelFile;
use headshare_stitch::{HugePages, StitchedMapping};

use super::{How, convert_and_expand, source};

use crate::support::{PROGRAM, root, take_turns};

fn run(file: &Path, n: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["-q", "run", "--temp", "0", "-t", "1", "-c", "4096"])
        .args(["-p", "abc", "-n", n])
        .arg(file);
    command
}

/// A program that has begun to print what it generates.
fn generating(file: &Path) -> Child {
    let mut child = run(file, "400")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    child
}

#[test]
fn a_file_truncated_while_in_use_is_named_and_the_program_ends() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let (converted, _) = convert_and_expand(&source(folder.path(), "f16", 2), &How::Lossless);
    let child = generating(&converted);
    let file = std::fs::File::options().write(true).open(&converted);
    file.unwrap().set_len(4096).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let name = converted.display().to_string();
    assert!(
        stderr.contains(&name) && stderr.contains("truncated"),
        "{stderr}"
    );
}

#[test]
fn a_file_replaced_while_in_use_lives_on() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let (converted, _) = convert_and_expand(&source(folder.path(), "f16", 2), &How::Lossless);
    let expected = run(&converted, "400").output().unwrap();
    let mut child = generating(&converted);
    let other = folder.path().join("other");
    std::fs::write(&other, b"something else").unwrap();
    std::fs::rename(&other, &converted).unwrap();
    let mut rest = Vec::new();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_to_end(&mut rest)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(rest, expected.stdout[1..]);
}

#[test]
fn without_address_space_there_is_an_error_and_no_abort() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let (converted, _) = convert_and_expand(&source(folder.path(), "q4_0", 2), &How::Lossless);
    // From too little for the mapping to too little for what comes after it.
    for kib in [60_000, 100_000, 120_000] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -v $1; shift; exec \"$@\"", "sh"])
            .arg(kib.to_string())
            .arg(PROGRAM)
            .args(["-q", "run", "-t", "1", "-p", "abc", "-n", "2"])
            .arg(&converted)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{kib} KiB: {:?} {stderr}",
            output.status
        );
        if output.status.code() == Some(1) {
            assert!(stderr.starts_with("error: "), "{kib} KiB: {stderr}");
        }
    }
}

#[test]
fn without_memfd_shared_blocks_are_copied_with_a_warning() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let (converted, _) = convert_and_expand(&source(folder.path(), "q4_0", 2), &How::Lossless);
    let without_memfd = |resolve: &str| {
        Command::new("python3")
            .arg(root().join("tests/it/without_memfd.py"))
            .args([
                PROGRAM, "run", "--temp", "0", "-t", "1", "-p", "abc", "-n", "8",
            ])
            .args(["--resolve", resolve])
            .arg(&converted)
            .output()
            .unwrap()
    };
    let expected = run(&converted, "8").output().unwrap();
    let output = without_memfd("auto");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(output.stdout, expected.stdout);
    assert!(
        stderr.contains("warning: some shared blocks are in memory twice"),
        "{stderr}"
    );
    // Asked for in so many words, it is an error.
    let output = without_memfd("fold");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot be folded"), "{stderr}");
}

#[test]
fn with_few_mappings_left_the_smallest_runs_are_copied() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), "f16", 1);
    let (converted, expanded) = convert_and_expand(&path, &How::Ratio(0.3));
    let (file, table) = ModelFile::open_converted(&converted).unwrap();
    let view = VirtualGguf::new(&file.gguf, &table, LogicalLayout::Pages(PageSize::KIB_4)).unwrap();
    let all = StitchedMapping::new(&view, &file.file, 10_000, HugePages::Any).unwrap();
    let few = StitchedMapping::new(&view, &file.file, 9, HugePages::Any).unwrap();
    assert_eq!(all.given_up_bytes(), 0);
    assert!(few.given_up_bytes() > 0);
    assert!(few.mapped().len() + few.copied().len() <= 9);
    assert!(all[..] == few[..], "the bytes are the same");
    // And they are the expanded file's, tensor by tensor.
    let expanded = ModelFile::open(&expanded).unwrap();
    for (tensor, plain) in view.tensors().iter().zip(expanded.gguf.tensors()) {
        let range = view.data_range(tensor);
        let bytes = &all[range.start as usize..range.end as usize];
        assert!(
            bytes == expanded.bytes(expanded.gguf.data_range(plain)),
            "{}",
            tensor.name
        );
    }
}

#[test]
fn weights_that_lie_askew_are_found_in_the_plain_file_beside() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), "f16", 2);
    let (converted, _) = convert_and_expand(&path, &How::Lossless);
    let (file, table) = ModelFile::open_converted(&converted).unwrap();
    let view = VirtualGguf::new(&file.gguf, &table, LogicalLayout::Pages(PageSize::KIB_4)).unwrap();
    let mapping = StitchedMapping::new(&view, &file.file, 10_000, HugePages::Aligned).unwrap();
    let beside = mapping
        .own_mapping()
        .expect("tensors lie elsewhere in the file");
    let mut found = 0;
    for tensor in view.tensors() {
        let range = view.data_range(tensor);
        let physical = view.physical(range.clone()).expect("whole tensors repeat");
        let here = mapping.as_ptr() as u64 + range.start;
        let Some(at) = mapping.in_own_mapping(range.start, physical) else {
            assert_eq!(here % (2 << 20), physical % (2 << 20), "{}", tensor.name);
            continue;
        };
        found += 1;
        let at = at as u64;
        assert_eq!(at % (2 << 20), physical % (2 << 20), "{}", tensor.name);
        assert!(beside.contains(&at) && at + tensor.byte_len() <= beside.end);
        // SAFETY: within the plain mapping, as just checked, which lives.
        let there =
            unsafe { std::slice::from_raw_parts(at as *const u8, tensor.byte_len() as usize) };
        let bytes = &mapping[range.start as usize..range.end as usize];
        assert!(there == bytes, "{}", tensor.name);
    }
    assert!(found > 0);
    let small = StitchedMapping::new(&view, &file.file, 10_000, HugePages::Any).unwrap();
    assert!(small.own_mapping().is_none());
}
