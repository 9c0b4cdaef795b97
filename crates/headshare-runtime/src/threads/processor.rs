//! The processor: its cores, and what this process takes of it.

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

/// The processor's name; empty where the system does not tell.
pub fn processor_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_default()
}
