//! Whether the text that a model is judged by is one that it was fitted to.

use std::collections::{HashMap, HashSet};

/// Bytes of the pieces that are looked for: more than texts have in common by
/// chance.
const PIECE: usize = 100;
/// An odd number by which a hash is rolled along a text.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The share of `text`, from 0 to 1, that stands somewhere in `other`, letter by
/// letter: of its pieces of 100 bytes, cut one after the other.
pub fn share_in(text: &[u8], other: &[u8]) -> f64 {
    let piece = PIECE.min(text.len());
    if piece == 0 || other.len() < piece {
        return 0.0;
    }
    let hash = |bytes: &[u8]| bytes.iter().fold(0, |hash, byte| rolled(hash, *byte));
    let mut pieces: HashMap<u64, usize> = HashMap::new();
    for bytes in text.chunks_exact(piece) {
        *pieces.entry(hash(bytes)).or_default() += 1;
    }
    let all: usize = pieces.values().sum();
    // What a byte is worth once `piece` others have come after it.
    let worth = (0..piece).fold(1u64, |worth, _| worth.wrapping_mul(BASE));
    let mut at = hash(&other[..piece]);
    let mut found: HashSet<u64> = HashSet::from([at]);
    for (gone, come) in other.iter().zip(&other[piece..]) {
        at = rolled(at, *come).wrapping_sub(u64::from(*gone).wrapping_mul(worth));
        if pieces.contains_key(&at) {
            found.insert(at);
        }
    }
    let seen = found.iter().filter_map(|hash| pieces.get(hash));
    seen.sum::<usize>() as f64 / all as f64
}

fn rolled(hash: u64, byte: u8) -> u64 {
    hash.wrapping_mul(BASE).wrapping_add(u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text in which nothing comes twice.
    fn numbers(range: std::ops::Range<u32>) -> String {
        range
            .map(|n| format!("{n} sheep jumped over it. "))
            .collect()
    }

    #[test]
    fn texts_that_contain_each_other_overlap_wholly() {
        let (all, part) = (numbers(0..1000), numbers(300..600));
        assert_eq!(share_in(all.as_bytes(), all.as_bytes()), 1.0);
        assert_eq!(share_in(part.as_bytes(), all.as_bytes()), 1.0);
        let share = share_in(all.as_bytes(), part.as_bytes());
        assert!((0.25..0.31).contains(&share), "{share}");
        // Shifted by a byte, and shorter than a piece.
        assert_eq!(share_in(&part.as_bytes()[1..], all.as_bytes()), 1.0);
        assert_eq!(share_in(b"400 sheep", all.as_bytes()), 1.0);
    }

    #[test]
    fn texts_with_nothing_in_common_do_not_overlap() {
        let (a, b) = (numbers(0..1000), numbers(2000..3000));
        assert_eq!(share_in(a.as_bytes(), b.as_bytes()), 0.0);
        for (a, b) in [("", "b"), ("a", ""), ("a", "b")] {
            assert_eq!(share_in(a.as_bytes(), b.as_bytes()), 0.0);
        }
    }
}
