//! A run that is ended while it writes leaves nothing in the folder, and the
//! source as it was.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use headshare_testmodels::ModelSpec;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Folder, PROGRAM, preset, wait_until};

/// A model large enough that writing it takes a while: 340 MB.
fn large() -> ModelSpec {
    ModelSpec {
        n_layer: 10,
        n_embd: 1024,
        n_ff: 2048,
        ..preset("tiny-llama")
    }
}

/// Whether `child` has a file open in `folder` that it writes.
fn is_writing(child: &Child, folder: &Path) -> bool {
    let Ok(fds) = std::fs::read_dir(format!("/proc/{}/fd", child.id())) else {
        return false;
    };
    // Unnamed or not, the kernel shows the folder it is in.
    fds.flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .any(|target| target.starts_with(folder))
}

/// Starts `command`, sends `signal` once it writes to `folder`; says how it
/// ended. `None` when it was done before.
fn interrupt(command: &mut Command, folder: &Path, signal: Signal) -> Option<ExitStatus> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = false;
    wait_until("it writes or has ended", || {
        ended = child.try_wait().unwrap().is_some();
        ended || is_writing(&child, folder)
    });
    if ended {
        return None;
    }
    let pid = Pid::from_child(&child);
    // Held, so that it does not finish before the signal is there.
    kill_process(pid, Signal::STOP).unwrap();
    kill_process(pid, signal).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    Some(child.wait().unwrap())
}

/// Ends runs of `args` that write to a folder of their own.
fn check(args: &[&std::ffi::OsStr], signal: Signal, ended: impl Fn(ExitStatus) -> bool) {
    let folder = Folder::new();
    let old = folder.write("old", "precious");
    for name in ["new", "old"] {
        let attempt = || {
            let mut command = Command::new(PROGRAM);
            command
                .args(args)
                .arg("--force")
                .arg("-o")
                .arg(folder.file(name));
            let status = interrupt(&mut command, folder.path(), signal)?;
            // A process that had all but ended when the signal came is no test.
            (!status.success()).then_some(status)
        };
        let status = (0..5).find_map(|_| {
            let status = attempt();
            if status.is_none() {
                let _ = std::fs::remove_file(folder.file("new"));
                std::fs::write(&old, "precious").unwrap();
            }
            status
        });
        let status = status.expect("one of five runs is interrupted");
        assert!(ended(status), "{signal:?}: {status:?}");
        assert_eq!(folder.names(), ["old"], "{signal:?}");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "precious");
    }
}

#[test]
fn ctrl_c_and_kill_leave_nothing_behind() {
    let folder = Folder::new();
    let (source, converted) = (folder.file("source.gguf"), folder.file("converted.gguf"));
    large().write(&source).unwrap();
    run!["convert", source, "--ratio", "0.3", "-o", converted].ok();
    let digests = || [&source, &converted].map(|path| blake3::hash(&std::fs::read(path).unwrap()));
    let before = digests();
    let os = std::ffi::OsStr::new;
    let convert = [os("convert"), source.as_os_str(), os("--lossless")];
    let expand = [os("expand"), converted.as_os_str()];
    for args in [&convert[..], &expand] {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            check(args, signal, |status| status.code() == Some(code));
        }
        check(args, Signal::KILL, |status| status.signal() == Some(9));
    }
    assert!(digests() == before, "the sources are as they were");
    assert_eq!(folder.names(), ["converted.gguf", "source.gguf"]);
}
