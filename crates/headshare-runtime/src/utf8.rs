//! Makes text of bytes that arrive in pieces: a token can end in the middle of
//! a character, which must not be printed before the rest is there.

/// Decodes a stream of UTF-8, holding back an unfinished character.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, at most 3 bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// A stream of which nothing has arrived.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes in and returns the text that is complete by now. Bytes that
    /// cannot be UTF-8 whatever follows become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut pending = std::mem::take(&mut self.held);
        pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(pending.len());
        let mut rest = pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.held = after.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        }
    }

    /// What is left at the end: U+FFFD for a character that never came whole.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() {
            String::new()
        } else {
            char::REPLACEMENT_CHARACTER.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut, the text is what decoding all at once gives.
    #[test]
    fn every_cut_gives_the_same_text() {
        let samples: [&[u8]; 6] = [
            "plain".as_bytes(),
            "gr\u{fc}\u{df}e \u{20ac} \u{1f980}\u{1f980}!".as_bytes(),
            b"bad \xff\xfe byte",
            b"cut short \xf0\x9f\xa6",
            b"overlong \xc0\xaf surrogate \xed\xa0\x80 end",
            b"\xe2\x82\xe2\x82\xac",
        ];
        for sample in samples {
            let whole = String::from_utf8_lossy(sample);
            for first in 0..=sample.len() {
                for second in first..=sample.len() {
                    let mut stream = Utf8Stream::new();
                    let mut text = stream.push(&sample[..first]);
                    text += &stream.push(&sample[first..second]);
                    text += &stream.push(&sample[second..]);
                    text += &stream.finish();
                    assert_eq!(text, whole, "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn a_character_comes_out_when_it_is_whole() {
        let crab = "\u{1f980}".as_bytes();
        let mut stream = Utf8Stream::new();
        for byte in &crab[..3] {
            assert_eq!(stream.push(&[*byte]), "");
        }
        assert_eq!(stream.push(&crab[3..]), "\u{1f980}");
        assert_eq!(stream.finish(), "");
    }
}
