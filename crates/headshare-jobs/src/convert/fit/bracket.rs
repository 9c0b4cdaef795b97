//! A number of bytes that is looked for by trying.

/// The bytes lie between the most that fit so far, or were too few for anything, and the least
/// that did not.
#[derive(Debug, Default)]
pub(super) struct Bracket {
    pub fits: Option<u64>,
    pub too_large: Option<u64>,
}

impl Bracket {
    /// What to try after this: `guess`, or the middle where that does not lie in between. `None`
    /// where nothing is left to try.
    pub fn next(&self, guess: u64) -> Option<u64> {
        let next = match (self.fits, self.too_large) {
            (Some(fits), Some(too_large)) if guess <= fits || guess >= too_large => {
                fits + (too_large - fits) / 2
            }
            _ => guess,
        };
        (self.fits != Some(next)).then_some(next)
    }
}
