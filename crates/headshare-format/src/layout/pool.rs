//! Packing the pool: each item at the page residue that most of its users
//! need, with as little padding as a greedy walk finds.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::sharing::Ownership;
use crate::PageSize;

/// Alignment of items that need no particular residue, in bytes.
const ITEM_ALIGNMENT: u64 = 32;

/// A run of a source tensor's own bytes that goes to the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolItem {
    pub tensor: usize,
    pub range: Range<u64>,
}

/// The packed pool: items with their offsets, and its length, in bytes.
pub(super) struct Pool {
    pub items: Vec<(PoolItem, u64)>,
    pub len: u64,
}

impl Pool {
    /// Packs `items` for pages of `page`. The pool itself begins on a
    /// page, and so does every logical tensor at run time.
    pub(super) fn pack(items: Vec<PoolItem>, ownership: &Ownership, page: PageSize) -> Self {
        let mut by_residue: BTreeMap<u64, VecDeque<PoolItem>> = BTreeMap::new();
        let mut free: VecDeque<PoolItem> = VecDeque::new();
        for item in items {
            match wanted_residue(&item, ownership, page) {
                Some(residue) => by_residue.entry(residue).or_default().push_back(item),
                None => free.push_back(item),
            }
        }
        let mut pool = Self {
            items: Vec::new(),
            len: 0,
        };
        while let Some(residue) = nearest(&by_residue, page.residue(pool.len)) {
            let gap = page.residue(residue + page.bytes() - page.residue(pool.len));
            let start = pool.len + gap;
            pool.fill(&mut free, start);
            let queue = by_residue.get_mut(&residue).expect("nearest gave a key");
            let item = queue.pop_front().expect("empty queues are removed");
            if queue.is_empty() {
                by_residue.remove(&residue);
            }
            pool.len = start;
            pool.push(item);
        }
        pool.fill(&mut free, u64::MAX);
        pool
    }

    /// Places free items, in order, as long as they end before `limit`.
    fn fill(&mut self, free: &mut VecDeque<PoolItem>, limit: u64) {
        while let Some(item) = free.front() {
            let start = self.len.next_multiple_of(ITEM_ALIGNMENT);
            if start + (item.range.end - item.range.start) > limit {
                return;
            }
            self.len = start;
            let item = free.pop_front().expect("front was there");
            self.push(item);
        }
    }

    fn push(&mut self, item: PoolItem) {
        let len = item.range.end - item.range.start;
        self.items.push((item, self.len));
        self.len += len;
    }
}

/// The residue at which whole pages of the item can be the pages of the most
/// of its users, its owner among them; `None` when no whole page fits.
fn wanted_residue(item: &PoolItem, ownership: &Ownership, page: PageSize) -> Option<u64> {
    let places = ownership.places(item.tensor, &item.range);
    let len = item.range.end - item.range.start;
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    for place in &places {
        let residue = page.residue(place.offset);
        let first_page = page.residue(page.bytes() - residue);
        if first_page + page.bytes() <= len {
            *votes.entry(residue).or_default() += 1;
        }
    }
    let most = votes.values().copied().max()?;
    // Ties go to the earliest place, the owner's before its users'.
    places
        .iter()
        .map(|p| page.residue(p.offset))
        .find(|r| votes.get(r) == Some(&most))
}

/// The waiting residue with the smallest gap after `at`.
fn nearest(by_residue: &BTreeMap<u64, VecDeque<PoolItem>>, at: u64) -> Option<u64> {
    by_residue
        .range(at..)
        .next()
        .or_else(|| by_residue.iter().next())
        .map(|(&residue, _)| residue)
}
