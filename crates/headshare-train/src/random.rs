//! The random orders of training.

use headshare_convert::random::SplitMix64;

/// 0 to `n` in an order of the seed's and the stream's (Fisher and Yates).
pub fn shuffled(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(seed, stream);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_every_number_once_and_depends_on_both() {
        let order = shuffled(100, 7, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, shuffled(100, 7, 0));
        assert!(order != shuffled(100, 8, 0) && order != shuffled(100, 7, 1));
        assert_eq!(shuffled(1, 0, 0), [0]);
    }
}
