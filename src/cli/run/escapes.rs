//! Escapes in texts on the command line, as llama-cli reads them.

use std::string::FromUtf8Error;

/// Puts the characters in that `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH`
/// stand for; any other backslash stays.
pub(super) fn process(text: &str) -> Result<String, FromUtf8Error> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'\\', [b'n', tail @ ..]) => (b'\n', tail),
            (b'\\', [b'r', tail @ ..]) => (b'\r', tail),
            (b'\\', [b't', tail @ ..]) => (b'\t', tail),
            (b'\\', [c @ (b'\'' | b'"' | b'\\'), tail @ ..]) => (*c, tail),
            (b'\\', [b'x', high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high * 16 + low, after),
                _ => (b'\\', tail),
            },
            _ => (*first, tail),
        };
        out.push(byte);
        rest = tail;
    }
    String::from_utf8(out)
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_what_they_stand_for() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            (r"a\nb\tc\rd", "a\nb\tc\rd"),
            (r#"\'\"\\"#, "'\"\\"),
            (r"\\n", r"\n"),
            (r"\x41\x0a\x7E", "A\n~"),
            (r"\xe2\x82\xac", "\u{20ac}"),
            (r"C:\dir \q \x4 \xg1", r"C:\dir \q \x4 \xg1"),
            ("at the end\\", "at the end\\"),
            (r"\x", r"\x"),
        ] {
            assert_eq!(process(text).unwrap(), expected, "{text}");
        }
        assert!(process(r"\xff").is_err());
    }
}
