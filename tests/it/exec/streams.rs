//! What a program sees of a converted file, call by call.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use super::models::{Models, assert_quiet_success, client_script, exec_with, stderr, stdout};

#[test]
fn a_stream_reads_the_logical_file() {
    let models = Models::small();
    let copy = models.folder.path().join("copy");
    assert_quiet_success(&models.client("read", &[&copy]));
    assert!(fs::read(copy).unwrap() == models.logical());
}

#[test]
fn a_mapping_is_the_logical_file_until_its_last_part_is_unmapped() {
    let models = Models::small();
    let copy = models.folder.path().join("copy");
    assert_quiet_success(&models.client("map", &[&copy]));
    assert!(fs::read(copy).unwrap() == models.logical());
}

#[test]
fn with_few_mappings_left_runs_are_copied_with_a_warning() {
    let models = Models::small();
    let copy = models.folder.path().join("copy");
    for (limit, all) in [("1", true), ("400", false)] {
        let mut command = exec_with(&["--perf", "--max-mappings", limit], &["python3"]);
        let out = command
            .arg(client_script())
            .arg("map")
            .args([&models.converted, &copy])
            .output()
            .unwrap();
        let stderr = stderr(&out);
        assert!(out.status.success(), "{out:#?}");
        assert_eq!(
            stderr.contains("are copied instead of mapped") && stderr.contains("vm.max_map_count"),
            all,
            "{stderr}"
        );
        assert_eq!(stderr.contains(": 0 bytes mapped"), all, "{stderr}");
        assert!(fs::read(&copy).unwrap() == models.logical());
    }
}

#[test]
fn fifty_loads_leave_nothing_behind() {
    assert_quiet_success(&Models::small().client("cycles", &[]));
}

#[test]
fn equal_pages_of_a_programs_buffers_become_one() {
    let out = Models::small().client("fold", &[]);
    assert_quiet_success(&out);
    print!("{}", stdout(&out));
}

#[test]
fn without_memfd_create_buffers_stay_as_they_are() {
    let out = Models::small().client("unfolded", &[]);
    assert!(out.status.success(), "{out:#?}");
    assert!(stderr(&out).contains("is not shared: memfd_create: Operation not permitted"));
}

#[test]
fn buffers_that_are_freed_while_loading_are_left_alone() {
    assert_quiet_success(&Models::small().client("freed", &[]));
}

#[test]
fn a_process_that_may_not_write_files_loads() {
    assert_quiet_success(&Models::small().client("no_files", &[]));
}

#[test]
fn threads_load_side_by_side() {
    assert_quiet_success(&Models::small().client("threads", &[]));
}

#[test]
fn every_other_way_to_open_it_sees_the_stored_file() {
    assert_quiet_success(&Models::small().client("stored", &[]));
}

#[test]
fn other_files_are_untouched() {
    assert_quiet_success(&Models::small().client("others", &[]));
}

#[test]
fn children_can_read_the_file_too() {
    let models = Models::small();
    let out = models.client("children", &[&client_script()]);
    assert_quiet_success(&out);
    let len = models.logical().len().to_string();
    assert_eq!(stdout(&out).lines().collect::<Vec<_>>(), [&len, &len]);
}

#[test]
fn a_file_is_found_by_any_name() {
    let models = Models::small();
    let expected = models.logical().len().to_string();
    let link = models.folder.path().join("link.gguf");
    std::os::unix::fs::symlink("converted.gguf", &link).unwrap();
    let hard = models.folder.path().join("hard.gguf");
    fs::hard_link(&models.converted, &hard).unwrap();
    let script = client_script();
    let length = |arguments: &[&str], named: &[&str], environment: Option<&Path>| {
        let mut command = exec_with(named, &["python3"]);
        command.args([script.as_os_str(), "length".as_ref()]);
        command.args(arguments).current_dir(models.folder.path());
        if let Some(model) = environment {
            command.env("LLAMA_ARG_MODEL", model);
        }
        let out = command.output().unwrap();
        assert!(out.status.success(), "{out:#?}");
        stdout(&out).trim().to_owned()
    };
    assert_eq!(length(&["link.gguf"], &[], None), expected);
    // Named by another path than the one it is opened by.
    for named in ["converted.gguf", "link.gguf", "hard.gguf"] {
        assert_eq!(
            length(&["./hard.gguf"], &["--model", named], None),
            expected
        );
    }
    // Where a file named in a variable is opened by a relative path.
    assert_eq!(
        length(&["./link.gguf"], &[], Some(&models.converted)),
        expected
    );
    // As part of an argument.
    let argument = format!("--model={}", models.converted.display());
    assert_eq!(length(&[&argument], &[], None), expected);
}

#[test]
fn a_file_that_changed_is_left_as_it_is_with_a_warning() {
    let models = Models::small();
    let out = models.client("changed", &[]);
    assert!(out.status.success(), "{out:#?}");
    assert!(stderr(&out).contains("converted.gguf has changed since the program was started"));
}

#[test]
fn a_file_that_is_replaced_lives_on_in_its_mapping() {
    assert_quiet_success(&Models::small().client("replaced", &[]));
}

#[test]
fn a_file_that_is_truncated_is_named_before_the_program_dies() {
    let models = Models::small();
    let out = models.client("truncated", &[]);
    const SIGBUS: i32 = 7;
    assert_eq!(out.status.signal(), Some(SIGBUS), "{out:#?}");
    let path = models.converted.canonicalize().unwrap();
    let expected = format!("{} was truncated while it was in use", path.display());
    assert!(stderr(&out).contains(&expected), "{out:#?}");
}

#[test]
fn without_address_space_mapping_fails_and_nothing_else() {
    assert_quiet_success(&Models::small().client("limited", &[]));
}
