//! Programs that have nothing to do with models, and programs that `exec`
//! cannot help.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::models::{Models, assert_quiet_success, client_script, exec, exec_with, stderr, stdout};
use crate::support::PROGRAM;

fn which(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap()
}

/// The command on its own and through exec.
fn both(options: &[&str], command: &[&str]) -> (Output, Output) {
    let alone = Command::new(command[0]).args(&command[1..]).output();
    let through = exec_with(options, command).output();
    (alone.unwrap(), through.unwrap())
}

#[test]
fn programs_do_what_they_do_without_exec() {
    let models = Models::small();
    let file = models.converted.to_str().unwrap();
    let python = "import os, sys, threading, subprocess, mmap, tempfile\n\
        t = threading.Thread(target=lambda: print(sum(range(1000)))); t.start(); t.join()\n\
        print(open(sys.argv[1], 'rb').read()[:4], flush=True)\n\
        with tempfile.TemporaryFile() as f:\n\
        \x20   f.write(b'x' * 10000); f.flush()\n\
        \x20   m = mmap.mmap(f.fileno(), 0); m[5000] = 7; f.seek(5000); print(f.read(1))\n\
        subprocess.run(['sh', '-c', 'echo child; exit 3'])\n\
        print('to stderr', file=sys.stderr)\n\
        sys.exit(7)";
    let commands: [&[&str]; 6] = [
        &["ls", "-l", file],
        &["ls", "/no/such/folder", file],
        &["cat", file],
        &["python3", "-c", python, file],
        &["bash", "-c", "kill -TERM $$", file],
        &[
            "bash",
            "-c",
            "read line; echo got \"$line\"; ls -l \"$0\" | wc -l",
            file,
        ],
    ];
    for command in commands {
        let (alone, through) = both(&[], command);
        assert!(alone.stdout == through.stdout, "{command:?}");
        assert_eq!(stderr(&alone), stderr(&through), "{command:?}");
        assert_eq!(alone.status, through.status, "{command:?}");
    }
}

#[test]
fn without_a_converted_file_the_program_runs_unchanged_with_a_remark() {
    let models = Models::small();
    let plain = models.plain.to_str().unwrap();
    let code = "import os; print(os.environ.get('LD_PRELOAD'), 'HEADSHARE_EXEC' in os.environ)";
    let out = exec(&["python3", "-c", code, plain, "no-such.gguf"])
        .output()
        .unwrap();
    assert!(out.status.success());
    assert_eq!(stdout(&out), "None False\n");
    assert!(stderr(&out).contains("none of the arguments is a converted file"));

    let out = exec_with(&["--model", plain], &["true"]).output().unwrap();
    assert!(out.status.success());
    assert!(stderr(&out).contains("plain.gguf: a plain GGUF"));
    let out = exec_with(&["-q"], &["true"]).output().unwrap();
    assert_quiet_success(&out);
}

#[test]
fn a_library_that_is_preloaded_already_stays() {
    let models = Models::small();
    let code = "import os; print(os.environ['LD_PRELOAD'])";
    // Any library will do; libc is loaded anyway.
    let out = exec(&["python3", "-c", code])
        .arg(&models.converted)
        .env("LD_PRELOAD", "libc.so.6")
        .output()
        .unwrap();
    assert_quiet_success(&out);
    let preload = stdout(&out);
    assert!(preload.trim_end().ends_with(":libc.so.6"), "{preload}");
}

#[test]
fn the_library_is_private_and_the_same_for_every_run() {
    let models = Models::small();
    let code = "import os; print(os.environ['LD_PRELOAD'])";
    let place = tempfile::tempdir().unwrap();
    let run = |runtime: &Path| {
        let out = exec(&["python3", "-c", code])
            .arg(&models.converted)
            .env("XDG_RUNTIME_DIR", runtime)
            .output()
            .unwrap();
        assert_quiet_success(&out);
        stdout(&out).trim_end().to_owned()
    };
    let first = run(place.path());
    assert!(first.starts_with(place.path().to_str().unwrap()), "{first}");
    assert_eq!(first, run(place.path()));
    let folder = place.path().join("headshare-gguf");
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    // Damaged, it is written again.
    fs::write(&first, "damaged").unwrap();
    assert_eq!(first, run(place.path()));
    assert!(fs::read(&first).unwrap().starts_with(b"\x7fELF"));
    // A folder that others can write to, or whose name the loader would split,
    // is not used.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!run(place.path()).starts_with(place.path().to_str().unwrap()));
    let odd = place.path().join("a b");
    fs::create_dir(&odd).unwrap();
    assert!(!run(&odd).starts_with(odd.to_str().unwrap()));
}

#[test]
fn scripts_run_and_their_children_read_the_file() {
    let models = Models::small();
    let script = models.folder.path().join("script");
    fs::write(&script, "#!/usr/bin/env sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let out = exec(&[script.to_str().unwrap(), "python3"])
        .arg(client_script())
        .arg("length")
        .arg(&models.converted)
        .output()
        .unwrap();
    assert_quiet_success(&out);
    assert_eq!(stdout(&out).trim(), models.logical().len().to_string());
}

#[track_caller]
fn refused(out: &Output, code: i32, message: &str) {
    assert_eq!(out.status.code(), Some(code), "{out:#?}");
    assert!(out.stdout.is_empty(), "{out:#?}");
    assert!(stderr(out).starts_with("error: "), "{out:#?}");
    assert!(stderr(out).contains(message), "{out:#?}");
}

/// A copy of `ls` that is not quite `ls`.
fn altered(models: &Models, name: &str, alter: impl FnOnce(&mut Vec<u8>)) -> std::path::PathBuf {
    let mut bytes = fs::read(which("ls")).unwrap();
    alter(&mut bytes);
    let path = models.folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn programs_that_cannot_be_helped_are_refused_with_the_reason() {
    let models = Models::small();
    let linked = altered(&models, "static", |ls| ls[56..58].fill(0)); // no segments
    let musl = altered(&models, "musl", |ls| {
        let at = ls.windows(8).position(|w| w == b"ld-linux").unwrap();
        ls[at..at + 8].copy_from_slice(b"ld-musl-");
    });
    let small = altered(&models, "small", |ls| ls[4] = 1);
    for (program, reason) in [
        (linked, "it is statically linked"),
        (musl, "it uses musl"),
        (small, "another kind of machine"),
    ] {
        let program = program.to_str().unwrap();
        let out = exec(&[program]).arg(&models.converted).output().unwrap();
        refused(&out, 1, reason);
        assert!(stderr(&out).contains("cannot read converted files"));
        assert!(stderr(&out).contains("hint: give it the plain file: headshare-gguf expand"));
    }
}

#[test]
fn a_setuid_program_is_refused() {
    let models = Models::small();
    let program = altered(&models, "setuid", |_| {});
    // Only root can make one that is another user's.
    if std::os::unix::fs::chown(&program, Some(65534), None).is_err() {
        let line = b"skipped: a_setuid_program_is_refused: only root can make one\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line);
        return;
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let program = program.to_str().unwrap();
    let out = exec(&[program]).arg(&models.converted).output().unwrap();
    refused(&out, 1, "setuid or setgid");
    // Without a converted file it is none of our business.
    assert!(exec(&[program]).output().unwrap().status.success());
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_does_not_run_126() {
    let models = Models::small();
    for name in ["no-such-program", "/no/such/program"] {
        let out = exec(&[name]).arg(&models.converted).output().unwrap();
        refused(&out, 127, &format!("{name}: program not found"));
    }
    let no_interpreter = models.folder.path().join("script");
    fs::write(&no_interpreter, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&no_interpreter, fs::Permissions::from_mode(0o755)).unwrap();
    for file in [&models.plain, &no_interpreter] {
        let mut command = exec(&[file.to_str().unwrap()]);
        let out = command.arg(&models.converted).output().unwrap();
        refused(&out, 126, "cannot run it");
    }
    let out = Command::new(PROGRAM).arg("exec").output();
    assert_eq!(out.unwrap().status.code(), Some(2));
}

/// What a shell says of a program that a signal ended, and nohup's wish.
#[test]
fn signals_end_what_exec_runs_as_they_end_it_alone() {
    let models = Models::small();
    let file = models.converted.to_str().unwrap();
    let status = |signal: &str, wrapper: &str| {
        let script = format!(
            "{wrapper} \"$0\" -q exec -- sh -c 'kill -{signal} $$; exit 7' \"$1\"; echo $?"
        );
        let out = Command::new("sh")
            .args(["-c", &script, PROGRAM, file])
            .output()
            .unwrap();
        stdout(&out).trim().to_owned()
    };
    assert_eq!(status("TERM", "env"), "143");
    assert_eq!(status("HUP", "env"), "129");
    assert_eq!(status("HUP", "nohup"), "7");
}

#[test]
fn bad_files_are_bad_input() {
    let models = Models::small();
    let stored = fs::read(&models.converted).unwrap();
    let file = models.folder.path().join("bad.gguf");
    let path = file.to_str().unwrap();

    // Named as a model it has to be one.
    fs::write(&file, &stored[..stored.len() / 2]).unwrap();
    refused(
        &exec_with(&["--model", path], &["true"]).output().unwrap(),
        3,
        "bad.gguf",
    );
    let missing = exec_with(&["--model", "/no/such.gguf"], &["true"])
        .output()
        .unwrap();
    refused(&missing, 3, "/no/such.gguf");
    // As an argument it is the program's, if it is no GGUF at all.
    let out = exec(&["true", path]).output().unwrap();
    assert!(out.status.success());
    assert!(
        stderr(&out).contains("bad.gguf: left to the program"),
        "{out:#?}"
    );

    // A bad alias table is never handed to a program.
    let key = b"headshare.architecture";
    let at = stored.windows(key.len()).position(|w| w == key).unwrap();
    let mut bad = stored.clone();
    bad[at + key.len() - 1] = b'x';
    fs::write(&file, bad).unwrap();
    refused(&exec(&["true", path]).output().unwrap(), 3, "bad.gguf");
}
