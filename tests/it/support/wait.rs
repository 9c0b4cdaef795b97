//! Waiting for what a program does, by looking for it again and again.

use std::time::{Duration, Instant};

/// How long anything may take: machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until `is_there`; fails when it never is.
#[track_caller]
pub fn wait_until(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `child` has computed for as long as `more` from now on, however
/// busy the machine is.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn wait_until_worked(child: &mut std::process::Child, more: Duration) {
    let pid = child.id();
    let start = worked(pid);
    wait_until("it has computed for a while", || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it had ended: {ended:?}");
        worked(pid) >= start + more
    });
}

/// How long a process has computed, all its threads together.
#[cfg(target_os = "linux")]
fn worked(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may have spaces in it: user and system time are
    // fields 14 and 15 of all, in ticks.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = (fields.split(' ').skip(11).take(2))
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
