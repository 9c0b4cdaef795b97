//! Outputs: never half there, never in the place of an input, never over a
//! file that the user did not give up.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use headshare_testmodels::ModelSpec;

use crate::support::{Folder, PROGRAM, Ran, assert_bytes, preset, program, read, small};

/// A folder with a model, its plan, and it converted.
struct Case {
    folder: Folder,
    model: PathBuf,
    plan: PathBuf,
    converted: PathBuf,
}

impl Case {
    fn new() -> Self {
        let folder = Folder::new();
        let model = folder.file("model.gguf");
        small("tiny-llama").write(&model).unwrap();
        let (plan, converted) = (folder.file("plan.json"), folder.file("converted.gguf"));
        run!["plan", model, "--ratio", "0.5", "-o", plan].ok();
        run!["convert", model, "--plan", plan, "-o", converted].ok();
        Self {
            folder,
            model,
            plan,
            converted,
        }
    }

    /// Every run that writes to `out`, with `more` arguments.
    fn runs(&self, out: &Path, more: &[&str]) -> Vec<Ran> {
        let with = |args: &[&std::ffi::OsStr]| {
            let mut command = program();
            command.args(args).arg("-o").arg(out).args(more);
            Ran::of(&mut command, format!("{args:?} -o {out:?} {more:?}"))
        };
        let os = std::ffi::OsStr::new;
        let (model, plan) = (self.model.as_os_str(), self.plan.as_os_str());
        vec![
            with(&[os("plan"), model]),
            with(&[os("convert"), model, os("--ratio"), os("0.5")]),
            with(&[os("convert"), model, os("--lossless")]),
            with(&[os("convert"), model, os("--plan"), plan]),
            with(&[os("expand"), self.converted.as_os_str()]),
        ]
    }
}

/// What identifies a file's content and that nobody wrote to it.
fn state(path: &Path) -> (u64, i64, i64, Vec<u8>) {
    let m = path.metadata().unwrap();
    (m.ino(), m.mtime(), m.mtime_nsec(), read(path))
}

#[test]
fn an_existing_output_is_kept_without_force() {
    let case = Case::new();
    let out = case.folder.write("out", "precious");
    let (before, names) = (state(&out), case.folder.names());
    for ran in case.runs(&out, &[]) {
        let ran = ran.refused(2, &["out: exists already"]);
        assert!(ran.hint().contains("--force"), "{ran:#?}");
    }
    assert!(state(&out) == before);
    assert_eq!(case.folder.names(), names);
}

#[test]
fn force_replaces_the_output_by_a_new_file() {
    let case = Case::new();
    let names = case.folder.names();
    for i in 0..5 {
        let out = case.folder.write("out", "precious");
        // Someone who has the old file open keeps it.
        let open = std::fs::File::open(&out).unwrap();
        let before = out.metadata().unwrap().ino();
        let runs = case.runs(&out, &["--force"]);
        assert!(runs.iter().all(|ran| ran.code == Some(0)), "{i} {runs:#?}");
        assert_ne!(out.metadata().unwrap().ino(), before);
        assert_eq!(std::io::read_to_string(open).unwrap(), "precious");
        std::fs::remove_file(&out).unwrap();
    }
    assert_eq!(case.folder.names(), names);
}

#[test]
fn a_failed_run_with_force_keeps_the_old_output() {
    let case = Case::new();
    let out = case.folder.write("out", "precious");
    let before = state(&out);
    let bad = case.folder.write("bad.gguf", "GGUF");
    run!["convert", bad, "--lossless", "-o", out, "--force"].refused(3, &["bad.gguf"]);
    run!["expand", bad, "-o", out, "--force"].refused(3, &["bad.gguf"]);
    // A plan for another file shows only once everything is written.
    let other = case.folder.file("other.gguf");
    ModelSpec {
        seed: 7,
        ..small("tiny-llama")
    }
    .write(&other)
    .unwrap();
    run!["convert", other, "--plan", case.plan, "-o", out, "--force"].refused(3, &["other.gguf"]);
    assert!(state(&out) == before);
}

#[test]
fn an_input_is_never_the_output_whatever_it_is_called() {
    let case = Case::new();
    let folder = &case.folder;
    let subfolder = folder.file("sub");
    std::fs::create_dir(&subfolder).unwrap();
    for (i, input) in [&case.model, &case.converted, &case.plan]
        .into_iter()
        .enumerate()
    {
        let (soft, hard, twice) = (
            folder.file(&format!("soft{i}")),
            folder.file(&format!("hard{i}")),
            folder.file(&format!("twice{i}")),
        );
        symlink(input, &soft).unwrap();
        std::fs::hard_link(input, &hard).unwrap();
        symlink(&soft, &twice).unwrap();
        let name = input.file_name().unwrap();
        let around = subfolder.join("..").join(".").join(name);
        let (before, names) = (state(input), folder.names());
        for out in [input, &soft, &hard, &twice, &around] {
            for force in [&[][..], &["--force"]] {
                let mut command = program();
                match i {
                    0 => command.arg("convert").arg(input).arg("--lossless"),
                    1 => command.arg("expand").arg(input),
                    _ => command
                        .arg("convert")
                        .arg(&case.model)
                        .arg("--plan")
                        .arg(input),
                };
                command.arg("-o").arg(out).args(force);
                let ran = Ran::of(&mut command, format!("{out:?} {force:?}"));
                ran.refused(2, &["is the input itself"]);
            }
        }
        assert!(state(input) == before);
        assert_eq!(folder.names(), names);
    }
    // The plan of a model is not written over it either.
    let before = state(&case.model);
    run!["plan", case.model, "-o", case.model, "--force"].refused(2, &["is the input itself"]);
    assert!(state(&case.model) == before);
}

#[test]
fn relative_paths_are_the_same_files() {
    let case = Case::new();
    let before = state(&case.model);
    for out in ["model.gguf", "./model.gguf", ".//model.gguf"] {
        let mut command = program();
        command.current_dir(case.folder.path());
        command.args([
            "convert",
            "./model.gguf",
            "--lossless",
            "--force",
            "-o",
            out,
        ]);
        Ran::of(&mut command, out.to_owned()).refused(2, &["is the input itself"]);
    }
    let mut command = program();
    command.current_dir(case.folder.path());
    command.args(["convert", "model.gguf", "--lossless", "-o", "out.gguf"]);
    Ran::of(&mut command, "relative".to_owned()).ok();
    assert!(case.folder.file("out.gguf").is_file());
    assert!(state(&case.model) == before);
}

#[test]
fn an_output_behind_a_link_is_replaced_where_it_is() {
    let case = Case::new();
    let folder = Folder::new();
    let real = folder.write("real", "old");
    let link = case.folder.file("link");
    symlink(&real, &link).unwrap();
    run!["convert", case.model, "--plan", case.plan, "-o", link].refused(2, &["exists already"]);
    run![
        "convert", case.model, "--plan", case.plan, "-o", link, "--force"
    ]
    .ok();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_bytes(
        &read(&real),
        &read(&case.converted),
        "the real file and the converted one",
    );
    assert_eq!(folder.names(), ["real"]);
}

#[test]
fn folders_that_cannot_take_the_output_are_named() {
    let case = Case::new();
    let missing = case.folder.file("no/such/out");
    let below_a_file = case.model.join("out");
    for (out, says) in [
        (missing.as_path(), "No such file"),
        (&below_a_file, "Not a directory"),
        // No permission in the world writes here.
        (Path::new("/proc/out"), "cannot create"),
        (Path::new("/sys/out"), "cannot create"),
    ] {
        for ran in case.runs(out, &[]) {
            ran.refused(1, &[out.to_str().unwrap(), says]);
        }
    }
    for out in [
        case.folder.path(),
        Path::new("/dev/null"),
        Path::new("/dev/full"),
    ] {
        for ran in case.runs(out, &["--force"]) {
            ran.refused(1, &["not a regular file"]);
        }
    }
}

#[test]
fn a_file_size_limit_is_no_space_and_not_a_silent_death() {
    let case = Case::new();
    let names = case.folder.names();
    let size = case.model.metadata().unwrap().len() / 1024;
    let script = "ulimit -f $1 && shift && exec \"$@\"";
    for limit in [0, 1, 8, size] {
        let out = case.folder.file("out");
        let output = Command::new("bash")
            .args(["-c", script, "bash", &limit.to_string()])
            .arg(PROGRAM)
            .args(["expand".as_ref(), case.converted.as_os_str()])
            .args(["-o".as_ref(), out.as_os_str()])
            .output()
            .expect("bash runs");
        let ran = Ran {
            args: format!("expand, limited to {limit} KiB"),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        let ran = ran.refused(1, &["out: no space for", "File too large"]);
        assert!(ran.hint().contains("write to another folder"), "{ran:#?}");
        assert_eq!(case.folder.names(), names);
    }
}

/// Nor for a file that is there meanwhile only.
#[test]
fn a_file_size_limit_is_told_for_scratch_files_too() {
    let case = Case::new();
    let script = "ulimit -f 1 && exec \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash", PROGRAM, "run"])
        .arg(&case.converted)
        .args(["--resolve", "expand", "-p", "x", "-n", "1"])
        .output()
        .expect("bash runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("File too large"), "{stderr}");
}

#[test]
fn a_full_file_system_is_no_space() {
    let case = Case::new();
    let folder = Folder::new();
    // A mount of its own, gone with the process; needs root.
    let script = "mount -t tmpfs -o size=256k none \"$1\" || exit 99
        \"$2\" expand \"$3\" -o \"$1/out\"; code=$?; ls -A \"$1\"; exit $code";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .arg(PROGRAM)
        .arg(&case.converted)
        .output();
    let Some(output) = output
        .ok()
        .filter(|o| o.status.code() == Some(1) && !o.stderr.starts_with(b"unshare"))
    else {
        eprintln!("skipped: this user cannot mount");
        return;
    };
    let ran = Ran {
        args: "expand to a full file system".to_owned(),
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    // Nothing in the folder either: stdout is its listing.
    ran.refused(1, &["out: no space for"]);
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_the_real_run_says() {
    let case = Case::new();
    let names = case.folder.names();
    let out = case.folder.file("out");
    for how in [
        ["--ratio", "0.5"],
        ["--ratio", "0"],
        ["--page-size", "16384"],
    ] {
        let [flag, value] = how;
        let lossless: &[&str] = if flag == "--ratio" {
            &[]
        } else {
            &["--lossless"]
        };
        let run = |more: &[&str]| {
            let mut command = program();
            command.arg("convert").arg(&case.model).args(lossless);
            command
                .args([flag, value, "--json", "-o"])
                .arg(&out)
                .args(more);
            Ran::of(&mut command, format!("{how:?} {more:?}"))
                .ok()
                .json()
        };
        let mut dry = run(&["--dry-run"]);
        assert_eq!(case.folder.names(), names);
        let real = run(&[]);
        assert_eq!(real["output"]["bytes"], out.metadata().unwrap().len());
        assert_eq!(
            (&dry["dry_run"], &real["dry_run"]),
            (&true.into(), &false.into())
        );
        dry["dry_run"] = false.into();
        assert_eq!(dry, real);
        std::fs::remove_file(&out).unwrap();
    }
    // Over a file that is there, too.
    let before = state(&case.model);
    run![
        "convert",
        case.model,
        "--lossless",
        "--dry-run",
        "--force",
        "-o",
        case.model
    ]
    .ok();
    assert!(state(&case.model) == before);
}

#[test]
fn outputs_get_the_permissions_of_new_files() {
    let case = Case::new();
    let fresh = case.folder.write("fresh", "");
    let expected = fresh.metadata().unwrap().mode();
    for ran in case.runs(&case.folder.file("out"), &["--force"]) {
        ran.ok();
        assert_eq!(case.folder.file("out").metadata().unwrap().mode(), expected);
    }
}

#[test]
fn names_that_are_not_utf_8_or_begin_with_a_dash_work() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    let model = folder
        .path()
        .join(std::ffi::OsStr::from_bytes(b"mod\xffel"));
    preset("tiny-gpt2").write(&model).unwrap();
    let mut command = program();
    command
        .current_dir(folder.path())
        .arg("convert")
        .arg(&model);
    command.args(["--lossless", "--output=-out", "--json"]);
    let result = Ran::of(&mut command, "convert".to_owned()).ok().json();
    assert_eq!(result["output"]["path"], "-out");
    let mut command = program();
    command
        .current_dir(folder.path())
        .args(["verify", "--source"])
        .arg(&model)
        .args(["--", "-out"]);
    Ran::of(&mut command, "verify".to_owned()).ok();
}
