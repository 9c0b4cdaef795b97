//! How many threads evaluate by default, and what they took of the processor.

mod governor;
mod others;

pub use governor::ThreadUse;
pub(crate) use governor::{Governor, note_start};

/// Physical cores that this process may use: hyperthreads of one core share
/// the units that matrix products are bound by. Respects CPU affinity and
/// control groups.
pub fn physical_cores() -> u32 {
    let usable = std::thread::available_parallelism().map_or(4, |n| n.get());
    let usable = u32::try_from(usable).unwrap_or(u32::MAX);
    match cores_of_the_machine() {
        Some(cores) if cores > 0 => cores.min(usable),
        _ => usable,
    }
}

#[cfg(target_os = "linux")]
fn cores_of_the_machine() -> Option<u32> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let topology = entry.path().join("topology");
        let read = |name| std::fs::read_to_string(topology.join(name)).ok();
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            cores.insert((package, core));
        }
    }
    u32::try_from(cores.len()).ok()
}

#[cfg(not(target_os = "linux"))]
fn cores_of_the_machine() -> Option<u32> {
    None
}

/// Checks that this process can start as many threads as `n` besides the one
/// that asks: OpenMP ends the process where it cannot.
///
/// # Errors
/// The system's reason.
pub fn check_startable(n: u32) -> std::io::Result<()> {
    use std::sync::{Mutex, PoisonError, mpsc};

    // They live side by side until the sender is gone.
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    std::thread::scope(|scope| {
        let hold = hold;
        for _ in 0..n {
            std::thread::Builder::new()
                .stack_size(default_stack())
                .spawn_scoped(scope, || {
                    let _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv();
                })?;
        }
        drop(hold);
        Ok(())
    })
}

/// Bytes of stack that a thread gets of the system where nothing is asked for.
fn default_stack() -> usize {
    const USUAL: usize = 8 << 20;
    #[cfg(target_os = "linux")]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Stack).current;
    #[cfg(not(target_os = "linux"))]
    let limit = None::<u64>;
    limit
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(USUAL)
}

/// Processor time that all threads of this process have taken; `None` where the
/// system does not tell.
#[cfg(target_os = "linux")]
pub fn processor_time() -> Option<std::time::Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is ours to be written to.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0 {
        return None;
    }
    Some(std::time::Duration::new(
        u64::try_from(time.tv_sec).ok()?,
        u32::try_from(time.tv_nsec).ok()?,
    ))
}

/// Processor time that all threads of this process have taken; `None` where the
/// system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn processor_time() -> Option<std::time::Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_were_tried_are_gone_again() {
        let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        check_startable(64).unwrap();
        // Other tests have threads, too, but hardly as many.
        assert!(threads() < before + 64);
    }
}
