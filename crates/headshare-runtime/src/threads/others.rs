//! How much of the processors other programs take.

use std::time::{Duration, Instant};

use super::processor::processor_time;

/// What the processors that this process may use had done at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at: Instant,
    /// Time that all programs had taken of them.
    all: Duration,
    /// Time that this process had taken.
    own: Duration,
}

impl Sample {
    /// Looks now; `None` where the system does not tell.
    pub(crate) fn now() -> Option<Self> {
        Some(Self {
            at: Instant::now(),
            all: platform::busy_time()?,
            own: processor_time()?,
        })
    }

    /// How long ago this was.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Puts it into the future.
    #[cfg(test)]
    pub(crate) fn postpone(&mut self, by: Duration) {
        self.at += by;
    }

    /// Processors that other programs kept busy between `earlier` and this, on
    /// average.
    pub(crate) fn others_since(&self, earlier: &Self) -> f64 {
        let took = |later: Duration, sooner: Duration| later.saturating_sub(sooner).as_secs_f64();
        let wall = (self.at - earlier.at).as_secs_f64().max(f64::MIN_POSITIVE);
        ((took(self.all, earlier.all) - took(self.own, earlier.own)) / wall).max(0.0)
    }
}

/// Processors that this process may use, hyperthreads counted.
pub(crate) fn processors() -> u32 {
    platform::processors()
}

#[cfg(target_os = "linux")]
mod platform {
    use std::sync::OnceLock;
    use std::time::Duration;

    /// The processors that this process may use, by number.
    fn allowed() -> &'static [usize] {
        static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
        ALLOWED.get_or_init(|| {
            // SAFETY: a plain set of bits, for which zeros are a value.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: `set` is ours to be written to, and as large as is said.
            let status =
                unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
            if status != 0 {
                return Vec::new();
            }
            (0..libc::CPU_SETSIZE as usize)
                // SAFETY: the number is one that the set has room for.
                .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
                .collect()
        })
    }

    pub(super) fn processors() -> u32 {
        u32::try_from(allowed().len()).unwrap_or(u32::MAX)
    }

    pub(super) fn busy_time() -> Option<Duration> {
        // SAFETY: asks for numbers only.
        let (ticks, nice) = unsafe {
            (
                libc::sysconf(libc::_SC_CLK_TCK),
                libc::getpriority(libc::PRIO_PROCESS, 0),
            )
        };
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let ticks_a_second = u32::try_from(ticks).ok().filter(|&ticks| ticks > 0)?;
        let busy = super::busy_ticks(&stat, allowed(), nice > 0)?;
        Some(Duration::from_secs_f64(
            busy as f64 / f64::from(ticks_a_second),
        ))
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    pub(super) fn processors() -> u32 {
        0
    }

    pub(super) fn busy_time() -> Option<std::time::Duration> {
        None
    }
}

/// Clock ticks that programs took of the processors `allowed`, by the text of
/// /proc/stat. Programs that were told to be nice step aside for us and do not
/// count, unless we were told so, too (`nice`). What a hypervisor takes does not
/// count: it takes as much from one thread as from many.
#[cfg(any(target_os = "linux", test))]
fn busy_ticks(stat: &str, allowed: &[usize], nice: bool) -> Option<u64> {
    let mut busy = 0u64;
    let mut seen = 0;
    for line in stat.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(cpu) = fields.next().and_then(|name| name.strip_prefix("cpu")) else {
            continue;
        };
        let Ok(cpu) = cpu.parse::<usize>() else {
            continue;
        };
        if allowed.binary_search(&cpu).is_err() {
            continue;
        }
        // user nice system idle iowait irq softirq steal ...
        let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let &[user, niced, system, _, _, irq, softirq, ..] = fields.as_slice() else {
            return None;
        };
        busy += user + system + irq + softirq + if nice { niced } else { 0 };
        seen += 1;
    }
    (seen > 0 && seen == allowed.len()).then_some(busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  6 60 600 6000 0 0 0 0 0 0\n\
                        cpu0 1 10 100 1000 5 1 2 9 0 0\n\
                        cpu1 2 20 200 2000 5 0 0 9 0 0\n\
                        cpu2 3 30 300 3000 5 0 0 9 0 0\n\
                        intr 1 2 3\n";

    #[test]
    fn ticks_are_those_of_allowed_processors() {
        assert_eq!(busy_ticks(STAT, &[0, 2], false), Some(104 + 303));
        assert_eq!(busy_ticks(STAT, &[0, 2], true), Some(104 + 303 + 40));
    }

    #[test]
    fn what_the_text_does_not_tell_is_not_guessed() {
        assert_eq!(busy_ticks(STAT, &[0, 3], false), None);
        assert_eq!(busy_ticks(STAT, &[], false), None);
        assert_eq!(busy_ticks("cpu0 1 2 x\n", &[0], false), None);
        assert_eq!(busy_ticks("", &[0], false), None);
    }

    #[test]
    fn others_are_all_without_us() {
        let start = Sample {
            at: Instant::now(),
            all: Duration::from_secs(100),
            own: Duration::from_secs(10),
        };
        let later = Sample {
            at: start.at + Duration::from_secs(2),
            all: Duration::from_secs(104),
            own: Duration::from_secs(13),
        };
        assert!((later.others_since(&start) - 0.5).abs() < 1e-9);
        // Ticks are coarse: we may seem to have taken more than there was.
        let more = Sample {
            own: Duration::from_secs(15),
            ..later
        };
        assert_eq!(more.others_since(&start), 0.0);
    }
}
