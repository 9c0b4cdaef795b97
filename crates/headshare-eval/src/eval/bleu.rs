//! Corpus BLEU as sacreBLEU defines it: its `13a` tokenizer (that of NIST's
//! mteval-v13a), n-grams up to 4, counts clipped by the references, the length
//! of the closest reference, `exp` smoothing. Nothing is lowercased.
//!
//! Written from the definition of the metric (Papineni et al. 2002; Post 2018)
//! and checked against figures of the package `sacrebleu`: see the tests.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// N-grams are counted up to this length.
const ORDER: usize = 4;

/// BLEU of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bleu {
    /// 0 to 100.
    pub bleu: f64,
    /// Precision of n-grams of length 1 to 4, in percent, smoothed.
    pub precisions: [f64; ORDER],
    /// What brevity costs: at most 1.
    pub brevity_penalty: f64,
    /// Tokens of the hypotheses.
    pub hypothesis_len: usize,
    /// Tokens of the closest references.
    pub reference_len: usize,
}

/// Counts over a corpus, a segment at a time.
#[derive(Clone, Debug, Default)]
pub struct BleuCounts {
    correct: [usize; ORDER],
    total: [usize; ORDER],
    hypothesis_len: usize,
    reference_len: usize,
}

impl BleuCounts {
    /// Counts a hypothesis against its references.
    pub fn add<S: AsRef<str>>(&mut self, hypothesis: &str, references: &[S]) {
        let hypothesis = tokenize_13a(hypothesis);
        let references: Vec<Vec<String>> = (references.iter())
            .map(|text| tokenize_13a(text.as_ref()))
            .collect();
        let length = hypothesis.len();
        // The closest length; the shorter of two equally close ones.
        let closest = (references.iter().map(Vec::len))
            .min_by_key(|len| (len.abs_diff(length), *len))
            .unwrap_or(0);
        self.hypothesis_len += length;
        self.reference_len += closest;
        for n in 1..=ORDER {
            let mut most: HashMap<&[String], usize> = HashMap::new();
            for reference in &references {
                for (gram, count) in grams(reference, n) {
                    let most = most.entry(gram).or_default();
                    *most = count.max(*most);
                }
            }
            for (gram, count) in grams(&hypothesis, n) {
                let allowed = most.get(gram).copied().unwrap_or(0);
                self.correct[n - 1] += count.min(allowed);
                self.total[n - 1] += count;
            }
        }
    }

    /// BLEU of what was counted.
    pub fn bleu(&self) -> Bleu {
        let (hypothesis, reference) = (self.hypothesis_len as f64, self.reference_len as f64);
        let brevity_penalty = if self.hypothesis_len >= self.reference_len {
            1.0
        } else if self.hypothesis_len == 0 {
            0.0
        } else {
            (1.0 - reference / hypothesis).exp()
        };
        let mut precisions = [0.0; ORDER];
        let mut bleu = 0.0;
        if self.correct.iter().any(|&n| n > 0) {
            // Orders without a match count half a match, a quarter, ...
            let mut smooth = 1.0;
            let counts = self.correct.iter().zip(&self.total);
            for (precision, (&correct, &total)) in precisions.iter_mut().zip(counts) {
                if total == 0 {
                    break;
                }
                *precision = if correct == 0 {
                    smooth *= 2.0;
                    100.0 / (smooth * total as f64)
                } else {
                    100.0 * correct as f64 / total as f64
                };
            }
            // No n-grams of some length at all: nothing is left of the product.
            let logs = precisions.iter().map(|p| p.ln()).sum::<f64>();
            bleu = brevity_penalty * (logs / ORDER as f64).exp();
        }
        Bleu {
            bleu,
            precisions,
            brevity_penalty,
            hypothesis_len: self.hypothesis_len,
            reference_len: self.reference_len,
        }
    }
}

/// The n-grams of a text and how often each is there.
fn grams(tokens: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// The tokens of a segment after mteval-v13a: XML entities are resolved, and
/// punctuation stands by itself, but for points and commas within numbers and
/// the apostrophes and hyphens of words.
pub fn tokenize_13a(text: &str) -> Vec<String> {
    let text = text
        .trim_end_matches(is_space)
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    let mut chars: Vec<char> = vec![' '];
    for c in text.chars() {
        if is_symbol(c) {
            chars.extend([' ', c, ' ']);
        } else {
            chars.push(c);
        }
    }
    chars.push(' ');
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    // After anything but a digit, before anything but a digit, and a hyphen
    // after a digit; each rule over what the one before it left.
    let chars = spaced(
        &chars,
        |a, b| !digit(a) && point(b),
        |a, b| [a, ' ', b, ' '],
    );
    let chars = spaced(
        &chars,
        |a, b| point(a) && !digit(b),
        |a, b| [' ', a, ' ', b],
    );
    let chars = spaced(&chars, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' ']);
    (chars.split(|c| is_space(*c)))
        .filter(|token| !token.is_empty())
        .map(|token| token.iter().collect())
        .collect()
}

/// `chars` with every pair that fits written otherwise, from left to right; a
/// character belongs to one pair at most.
fn spaced(
    chars: &[char],
    fits: impl Fn(char, char) -> bool,
    written: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut out = Vec::with_capacity(chars.len() + 8);
    let mut i = 0;
    while i < chars.len() {
        match chars.get(i + 1) {
            Some(&next) if fits(chars[i], next) => {
                out.extend(written(chars[i], next));
                i += 2;
            }
            _ => {
                out.push(chars[i]);
                i += 1;
            }
        }
    }
    out
}

/// ASCII symbols that are tokens of their own wherever they stand: all but
/// those of words and numbers (`'`, `-`, `.`, `,`).
fn is_symbol(c: char) -> bool {
    c.is_ascii_punctuation() && !matches!(c, '\'' | '-' | '.' | ',')
}

/// White space as Python's `str.split` knows it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
#[path = "bleu_tests.rs"]
mod tests;
