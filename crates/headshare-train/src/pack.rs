//! A text's tokens as windows: most to train with, the last ones held out.

use headshare_format::alias::format_digest;

use crate::error::TrainError;
use crate::windows::Windows;

/// Windows of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// To train with.
    pub train: Windows,
    /// The text's end, to evaluate on; `None` where none is held out.
    pub held_out: Option<Windows>,
}

impl Packed {
    /// The digest of all tokens, as they are cut.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for windows in [Some(&self.train), self.held_out.as_ref()] {
            hasher.update(&windows.map_or(0, |w| w.length() as u64).to_le_bytes());
            for token in windows.map_or(&[][..], Windows::tokens) {
                hasher.update(&token.to_le_bytes());
            }
        }
        format_digest(&hasher.finalize())
    }
}

/// Cuts `tokens` into windows of `length`, each of which starts with `begin` where
/// there is such a token; a rest at the end is left out. Of the windows the last
/// `held_out` (0 to below 1, rounded up) are held out.
///
/// # Errors
/// When there is no window to train with.
pub fn pack(
    tokens: &[u32],
    length: usize,
    begin: Option<u32>,
    held_out: f64,
) -> Result<Packed, TrainError> {
    if !(0.0..1.0).contains(&held_out) {
        let problem = format!("{held_out} is not between 0 and 1");
        return Err(TrainError::option("held_out", problem));
    }
    let text = length.saturating_sub(begin.iter().len());
    let count = tokens.len().checked_div(text).unwrap_or(0);
    let held = (count as f64 * held_out).ceil() as usize;
    if text == 0 || count <= held {
        let problem = format!(
            "{} tokens make {count} windows of {length}, of which {held} are held out: too short a text",
            tokens.len()
        );
        return Err(TrainError::TooShort(problem));
    }
    let windows = |range: std::ops::Range<usize>| {
        let window = |i: usize| {
            let text = tokens[i * text..(i + 1) * text].iter().copied();
            begin.into_iter().chain(text)
        };
        Windows::new(range.flat_map(window).collect(), length)
    };
    Ok(Packed {
        train: windows(0..count - held)?,
        held_out: match held {
            0 => None,
            _ => Some(windows(count - held..count)?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_alike_and_the_last_are_held_out() {
        let tokens: Vec<u32> = (10..33).collect();
        let packed = pack(&tokens, 5, Some(1), 0.3).unwrap();
        let expected = [1, 10, 11, 12, 13, 1, 14, 15, 16, 17, 1, 18, 19, 20, 21];
        assert_eq!(packed.train.tokens(), expected);
        let held = packed.held_out.unwrap();
        assert_eq!(held.tokens(), [1, 22, 23, 24, 25, 1, 26, 27, 28, 29]);
        let packed = pack(&tokens, 10, None, 0.0).unwrap();
        assert_eq!((packed.train.count(), packed.held_out), (2, None));
    }

    #[test]
    fn too_short_a_text_is_refused() {
        let error = pack(&[1, 2, 3], 4, None, 0.1).unwrap_err();
        assert!(
            error.to_string().contains("3 tokens make 0 windows"),
            "{error}"
        );
        let error = pack(&[1; 8], 8, None, 0.1).unwrap_err();
        assert!(error.to_string().contains("1 are held out"), "{error}");
        assert!(pack(&[1; 80], 8, None, 1.0).is_err());
        assert!(pack(&[1; 80], 1, Some(1), 0.1).is_err());
    }
}
