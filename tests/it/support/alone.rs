//! Tests that measure a whole process, its memory or its mappings, which others
//! beside them would change.

use std::any::type_name;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tells the process that a test starts for itself what it is.
const HERE: &str = "HEADSHARE_TEST_ALONE";

/// Only one test at a time has what this returns: those that need much memory,
/// or whose measure is of pages that several processes may share.
pub fn take_turns() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body`, the whole of a test, in a process that runs nothing else: this
/// binary once more, which is told to run only the test that this is.
#[track_caller]
pub fn alone<F: FnOnce()>(body: F) {
    if std::env::var_os(HERE).is_some() {
        return body();
    }
    let _turn = take_turns();
    // `it::module::test::{{closure}}`; a name that is none runs no test, and
    // then there is no `1 passed`.
    let closure = type_name::<F>();
    let name = (closure.split_once("::"))
        .and_then(|(_, name)| name.strip_suffix("::{{closure}}"))
        .expect("`alone` is given a closure of the test itself");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(HERE, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{name}, in a process of its own: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
