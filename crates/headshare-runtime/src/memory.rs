//! What this process and its weights take of physical memory.
//!
//! Resident size counts a page that is mapped twice two times, which is just
//! what sharing saves; so everything here is PSS, the proportional set size,
//! as the kernel reports it. Other systems than Linux report nothing.

#[cfg(target_os = "linux")]
mod limit;
mod shortage;

pub use shortage::{Allocator, Shortage, is_short, on_shortage, tell_if_short};

use std::ops::Range;

/// Memory of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Proportional set size, in bytes.
    pub pss_bytes: u64,
    /// Mappings (VMAs) that the process has; the kernel limits them to
    /// vm.max_map_count.
    pub vmas: u64,
}

/// Address ranges that hold weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightRegions {
    ranges: Vec<Range<u64>>,
}

impl WeightRegions {
    /// The ranges themselves, ascending and apart.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Adds a range of addresses; it may overlap others.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.ranges.push(range);
        self.ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        self.ranges = merged;
    }

    /// Physical memory behind the ranges now, in bytes of PSS; `None` where
    /// the kernel does not tell.
    pub fn pss_bytes(&self) -> Option<u64> {
        platform::pss_of(&self.ranges)
    }
}

/// Bytes of memory that this process may use: what the machine has, or less
/// where a control group or a limit of the process says so. `None` where the
/// system does not tell.
pub fn usable_memory() -> Option<u64> {
    platform::usable_memory()
}

/// Memory of this process now; `None` where the kernel does not tell.
pub fn process_memory() -> Option<ProcessMemory> {
    platform::process_memory()
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::File;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    use procfs::process::{MemoryMap, Process};

    use super::ProcessMemory;

    pub(super) fn usable_memory() -> Option<u64> {
        super::limit::usable(physical_memory())
    }

    fn physical_memory() -> Option<u64> {
        // SAFETY: asks for a number.
        let (pages, size) = unsafe {
            (
                libc::sysconf(libc::_SC_PHYS_PAGES),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        u64::try_from(pages)
            .ok()?
            .checked_mul(u64::try_from(size).ok()?)
    }

    pub(super) fn process_memory() -> Option<ProcessMemory> {
        let process = Process::myself().ok()?;
        let rollup = process.smaps_rollup().ok()?;
        let pss = rollup
            .memory_map_rollup
            .iter()
            .find_map(|map| map.extension.map.get("Pss"))?;
        Some(ProcessMemory {
            pss_bytes: *pss,
            vmas: process.maps().ok()?.len() as u64,
        })
    }

    pub(super) fn pss_of(ranges: &[Range<u64>]) -> Option<u64> {
        let maps = Process::myself().ok()?.smaps().ok()?;
        let pagemap = File::open("/proc/self/pagemap").ok();
        let mut total = 0;
        for map in maps.iter() {
            let (start, end) = map.address;
            let pss = map.extension.map.get("Pss").copied().unwrap_or(0);
            let inside: Vec<Range<u64>> = ranges
                .iter()
                .map(|range| range.start.max(start)..range.end.min(end))
                .filter(|range| !range.is_empty())
                .collect();
            let covered: u64 = inside.iter().map(|range| range.end - range.start).sum();
            total += match covered {
                0 => 0,
                all if all == end - start => pss,
                _ => part_of(map, &inside, pss, pagemap.as_ref()),
            };
        }
        Some(total)
    }

    /// PSS of the part `inside` of a mapping, which the kernel may have joined
    /// with a neighbour: divided by the pages that are present in each part.
    fn part_of(map: &MemoryMap, inside: &[Range<u64>], pss: u64, pagemap: Option<&File>) -> u64 {
        let whole = map.address.0..map.address.1;
        let weigh = |range: &Range<u64>| {
            pagemap
                .and_then(|file| present_pages(file, range))
                .unwrap_or((range.end - range.start) / procfs::page_size())
        };
        let all = weigh(&whole);
        let part: u64 = inside.iter().map(weigh).sum();
        if all == 0 {
            return 0;
        }
        u64::try_from(u128::from(pss) * u128::from(part) / u128::from(all)).unwrap_or(pss)
    }

    /// Pages of a range that are in memory, from one 64-bit word a page.
    fn present_pages(pagemap: &File, range: &Range<u64>) -> Option<u64> {
        let page = procfs::page_size();
        let mut words = vec![0u8; 8 * 4096];
        let mut at = range.start / page;
        let end = range.end.div_ceil(page);
        let mut present = 0;
        while at < end {
            let count = usize::try_from((end - at).min(4096)).ok()?;
            let words = &mut words[..8 * count];
            pagemap.read_exact_at(words, at * 8).ok()?;
            present += words
                .as_chunks::<8>()
                .0
                .iter()
                .filter(|word| u64::from_le_bytes(**word) >> 63 == 1)
                .count() as u64;
            at += count as u64;
        }
        Some(present)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::ops::Range;

    use super::ProcessMemory;

    pub(super) fn usable_memory() -> Option<u64> {
        None
    }

    pub(super) fn process_memory() -> Option<ProcessMemory> {
        None
    }

    pub(super) fn pss_of(_: &[Range<u64>]) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined() {
        let mut regions = WeightRegions::default();
        for range in [10..20, 40..50, 5..12, 20..25, 7..7] {
            regions.add(range);
        }
        assert_eq!(regions.ranges(), [5..25, 40..50]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_allocation_is_weighed() {
        let size = 64 << 20;
        let mut block = vec![0u8; size];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let at = block.as_ptr() as u64;
        let mut only = WeightRegions::default();
        let first_page = at.next_multiple_of(4096);
        only.add(first_page..first_page + (32 << 20));
        let half = only.pss_bytes().unwrap();
        assert!(
            half.abs_diff(32 << 20) < 1 << 20,
            "half a block weighs {half}"
        );
        assert!(process_memory().unwrap().pss_bytes > size as u64);
    }
}
