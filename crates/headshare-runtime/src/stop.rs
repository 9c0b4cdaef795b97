//! Strings that end a text. One may come in pieces, cut anywhere, so what could
//! be the beginning of one is held back until more text decides.

/// Looks for stop strings in a text that arrives in pieces.
///
/// The first one to be complete ends the text, wherever the pieces were cut;
/// of several that are complete at once, the longest.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
    hit: bool,
}

impl StopStrings {
    /// Looks for these; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            hit: false,
        }
    }

    /// Takes text in and returns what is certain to stand before any stop
    /// string. After one was hit nothing comes any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.hit {
            return String::new();
        }
        if self.stops.is_empty() {
            return piece.to_owned();
        }
        let mut text = std::mem::take(&mut self.held);
        for c in piece.chars() {
            text.push(c);
            let complete = self.stops.iter().filter(|stop| text.ends_with(*stop));
            if let Some(longest) = complete.map(String::len).max() {
                self.hit = true;
                text.truncate(text.len() - longest);
                return text;
            }
        }
        let certain = text.len() - self.undecided(&text);
        self.held = text.split_off(certain);
        text
    }

    /// Bytes at the end of `text` that a stop string may begin with.
    fn undecided(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        text.char_indices()
            .rev()
            .map(|(start, _)| &text[start..])
            .take_while(|end| end.len() < longest)
            .filter(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
            .map(str::len)
            .max()
            .unwrap_or(0)
    }

    /// Whether a stop string came.
    pub fn is_hit(&self) -> bool {
        self.hit
    }

    /// What was held back, for a text that ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain definition, on the whole text: cut before the stop string that
    /// ends first.
    fn oracle<'t>(text: &'t str, stops: &[String]) -> (&'t str, bool) {
        for end in 1..=text.len() {
            let longest = stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(String::len)
                .max();
            if let Some(longest) = longest {
                return (&text[..end - longest], true);
            }
        }
        (text, false)
    }

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn every_cut_gives_what_the_whole_text_gives() {
        let cases: [(&str, &[&str]); 12] = [
            ("nothing to find", &["###"]),
            ("one ### two", &["###"]),
            ("User: hi\nUser: there", &["\nUser:"]),
            ("aaab", &["aab"]),
            ("abababac", &["ababac"]),
            ("xabcd", &["xabce", "abc"]),
            ("xabcd", &["xabc", "c", "bc"]),
            ("ends in half a st", &["stop"]),
            ("gr\u{fc}\u{df}e \u{20ac}\u{1f980}!", &["\u{20ac}\u{1f980}"]),
            ("\u{20ac}\u{20ad}", &["\u{20ac}x"]),
            ("all", &["", "all"]),
            ("", &["x"]),
        ];
        for (text, stops) in cases {
            let stops = strings(stops);
            let expected = oracle(text, &stops);
            let cuts: Vec<usize> = (0..=text.len())
                .filter(|&at| text.is_char_boundary(at))
                .collect();
            for &first in &cuts {
                for &second in cuts.iter().filter(|&&at| at >= first) {
                    let mut stream = StopStrings::new(&stops);
                    let mut got = stream.push(&text[..first]);
                    got += &stream.push(&text[first..second]);
                    got += &stream.push(&text[second..]);
                    got += &stream.finish();
                    assert_eq!(
                        (got.as_str(), stream.is_hit()),
                        expected,
                        "{text:?} {stops:?} cut at {first} and {second}"
                    );
                }
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut stream = StopStrings::new(&strings(&["\nUser:"]));
        assert_eq!(stream.push("Hello\n"), "Hello");
        assert_eq!(stream.push("Us"), "");
        assert_eq!(stream.push("ually\n"), "\nUsually");
        assert_eq!(stream.push("User"), "");
        assert!(!stream.is_hit());
        assert_eq!(stream.push(": and more"), "");
        assert!(stream.is_hit());
        assert_eq!(stream.push("more"), "");
        assert_eq!(stream.finish(), "");
    }
}
