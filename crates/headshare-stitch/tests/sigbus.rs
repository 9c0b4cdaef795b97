//! Faults in mapped files: ours are named, all others go where they went before.
//!
//! A signal's handler is the whole process's, and most of these processes die of
//! it: each case runs in a process of its own, which is this test once more, told
//! by a variable what to do.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::ptr;

use headshare_stitch::MappedFile;

const CASE: &str = "HEADSHARE_TEST_SIGBUS";
const FOLDER: &str = "HEADSHARE_TEST_FOLDER";
/// Exit statuses of the handlers below.
const WITH_INFO: i32 = 70;
const WITHOUT: i32 = 71;
/// Lived on.
const ALIVE: i32 = 72;

extern "C" fn with_info(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a handler may look at its siginfo, and end the process.
    unsafe {
        let complete = !context.is_null() && (*info).si_signo == libc::SIGBUS;
        libc::_exit(if complete { WITH_INFO } else { 1 });
    }
}

extern "C" fn without(signal: libc::c_int) {
    // SAFETY: a handler may end the process.
    unsafe { libc::_exit(if signal == libc::SIGBUS { WITHOUT } else { 1 }) }
}

fn handle(handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: a zeroed sigaction is a valid one, and the handlers are as above.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()), 0);
    }
}

/// Touches `bytes` where the file that they are mapped from is shorter by now.
fn touch(bytes: &[u8]) -> ! {
    // SAFETY: inside the slice; that nothing is there is the point.
    let byte = unsafe { ptr::read_volatile(bytes.as_ptr()) };
    panic!("read {byte} from a file without bytes");
}

fn truncated(path: &Path) {
    std::fs::write(path, b"").unwrap();
}

/// What the process of its own does.
fn act(case: &str, folder: &Path) -> ! {
    let (what, before) = case.split_once(" after ").unwrap();
    let info: extern "C" fn(_, _, _) = with_info;
    let plain: extern "C" fn(_) = without;
    match before {
        "info" => handle(info as libc::sighandler_t, libc::SA_SIGINFO),
        "plain" => handle(plain as libc::sighandler_t, 0),
        "ignored" => handle(libc::SIG_IGN, 0),
        "default" => handle(libc::SIG_DFL, 0),
        other => panic!("{other}"),
    }
    let (ours, theirs) = (folder.join("ours"), folder.join("theirs"));
    for path in [&ours, &theirs] {
        std::fs::write(path, [1; 100]).unwrap();
    }
    let mapped = MappedFile::open(&ours).unwrap();
    match what {
        "ours" => {
            truncated(&ours);
            touch(&mapped)
        }
        "theirs" => {
            let file = std::fs::File::open(&theirs).unwrap();
            // SAFETY: none; the file is truncated next.
            let other = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            truncated(&theirs);
            touch(&other)
        }
        // SAFETY: sends this thread a signal.
        "sent" => unsafe { libc::raise(libc::SIGBUS) },
        other => panic!("{other}"),
    };
    // SAFETY: ends the process.
    unsafe { libc::_exit(ALIVE) }
}

/// Runs a case in a process of its own.
fn run(case: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "each_fault_goes_where_it_belongs", "--nocapture"])
        .env(CASE, case)
        .env(FOLDER, folder.path())
        .output()
        .unwrap()
}

#[test]
fn each_fault_goes_where_it_belongs() {
    if let (Ok(case), Some(folder)) = (std::env::var(CASE), std::env::var_os(FOLDER)) {
        act(&case, Path::new(&folder));
    }
    for before in ["info", "plain", "ignored", "default"] {
        let out = run(&format!("ours after {before}"));
        assert_eq!(out.status.code(), Some(1), "{out:#?}");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            said.contains("/ours: was truncated, or could not be read"),
            "{said}"
        );
    }
    for what in ["theirs", "sent"] {
        let ends = |before: &str| {
            let out = run(&format!("{what} after {before}"));
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(!said.contains("truncated"), "{said}");
            (out.status.code(), out.status.signal())
        };
        assert_eq!(ends("info"), (Some(WITH_INFO), None), "{what}");
        assert_eq!(ends("plain"), (Some(WITHOUT), None), "{what}");
        assert_eq!(ends("default"), (None, Some(libc::SIGBUS)), "{what}");
    }
    let ignored = |what: &str| run(&format!("{what} after ignored")).status;
    assert_eq!(ignored("sent").code(), Some(ALIVE));
    // The kernel lets no one ignore a fault.
    assert_eq!(ignored("theirs").signal(), Some(libc::SIGBUS));
}
