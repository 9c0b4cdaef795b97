//! Sizes of pages.

use std::fmt;

/// Bytes of a page of memory: a power of two of at most 1 GiB, checked once.
///
/// ```
/// use headshare_format::PageSize;
///
/// let page = PageSize::new(4096).unwrap();
/// assert_eq!(page, PageSize::KIB_4);
/// assert_eq!(page.align_up(5000), Some(8192));
/// assert_eq!(page.align_down(5000), 4096);
/// assert_eq!(page.residue(5000), 904);
/// assert!(PageSize::new(5000).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// 4,096 bytes.
    pub const KIB_4: Self = Self(4 << 10);
    /// 16,384 bytes.
    pub const KIB_16: Self = Self(16 << 10);
    /// 65,536 bytes.
    pub const KIB_64: Self = Self(64 << 10);

    const MAX: u64 = 1 << 30;

    /// Pages of `bytes`; `None` unless that is a power of two of at most 1 GiB.
    pub const fn new(bytes: u64) -> Option<Self> {
        match bytes.is_power_of_two() && bytes <= Self::MAX {
            true => Some(Self(bytes as u32)),
            false => None,
        }
    }

    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Bytes of a page, to reckon with lengths in memory.
    pub const fn to_usize(self) -> usize {
        self.0 as usize
    }

    /// Bytes of a page, as files state them.
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// The first page boundary at `offset` or after it; `None` when it does not
    /// fit.
    pub const fn align_up(self, offset: u64) -> Option<u64> {
        match offset.checked_add(self.bytes() - 1) {
            Some(end) => Some(self.align_down(end)),
            None => None,
        }
    }

    /// The last page boundary at `offset` or before it.
    pub const fn align_down(self, offset: u64) -> u64 {
        offset & !(self.bytes() - 1)
    }

    /// How far after a page boundary `offset` lies.
    pub const fn residue(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_up_to_a_gibibyte() {
        for bytes in [1, 2, 4096, 1 << 30] {
            assert_eq!(PageSize::new(bytes).unwrap().bytes(), bytes);
        }
        for bytes in [0, 3, 4097, 1 << 31, u64::MAX] {
            assert_eq!(PageSize::new(bytes), None);
        }
    }

    #[test]
    fn boundaries_at_the_end_of_all_offsets() {
        let page = PageSize::KIB_4;
        assert_eq!(page.align_up(u64::MAX - 4095), Some(u64::MAX - 4095));
        assert_eq!(page.align_up(u64::MAX - 4094), None);
        assert_eq!(page.align_down(u64::MAX), u64::MAX - 4095);
        assert_eq!((page.align_up(0), page.residue(4095)), (Some(0), 4095));
    }
}
