//! METEOR: how well words of a continuation can be aligned with those of a reference.
//!
//! After Banerjee, Lavie: "METEOR: An Automatic Metric for MT Evaluation" (2005), whose
//! parameters these are, as NLTK has them: words are aligned in stages, first those that are
//! equal, then those with the same stem (Snowball's for English), then synonyms. With m
//! aligned words in c chunks (neighbours in both texts), P = m / words of the hypothesis
//! and R = m / words of the reference,
//!
//!   score = P R / (0.9 P + 0.1 R) (1 - 0.5 (c / m)^3).
//!
//! Synonyms are those of a word list; without one that stage is left out, because there is
//! no WordNet to be had here. Paraphrases (METEOR 1.3 and later) are left out, too. Words
//! are the tokens of [`bleu::tokenize_13a`](super::bleu::tokenize_13a) in lower case.
//! A corpus has the mean of its segments, each against the reference that suits it best.

use std::collections::{HashMap, HashSet};

use rust_stemmers::{Algorithm, Stemmer};

use super::bleu::tokenize_13a;

/// Alignments that are kept while one is looked for.
const BEAM: usize = 40;
/// What precision weighs against recall in the harmonic mean.
const ALPHA: f64 = 0.9;
/// How the part of words that begin a chunk is bent.
const BETA: i32 = 3;
/// The largest penalty.
const GAMMA: f64 = 0.5;

/// Words that mean the same.
#[derive(Debug, Clone, Default)]
pub struct Synonyms(HashMap<String, HashSet<usize>>);

impl Synonyms {
    /// Reads a word list: words of one line, set apart by spaces or commas, mean the same.
    pub fn parse(text: &str) -> Self {
        let mut sets: HashMap<String, HashSet<usize>> = HashMap::new();
        for (set, line) in text.lines().enumerate() {
            let words = line.split(|c: char| c.is_whitespace() || c == ',');
            for word in words.filter(|word| !word.is_empty()) {
                sets.entry(word.to_lowercase()).or_default().insert(set);
            }
        }
        Self(sets)
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn are(&self, a: &str, b: &str) -> bool {
        let sets = [a, b].map(|word| self.0.get(word));
        matches!(sets, [Some(a), Some(b)] if !a.is_disjoint(b))
    }
}

/// METEOR over a corpus, a segment at a time.
pub struct Meteor {
    stemmer: Stemmer,
    synonyms: Synonyms,
    sum: f64,
    segments: usize,
}

impl Meteor {
    /// With synonyms, if there are any.
    pub fn new(synonyms: Synonyms) -> Self {
        Self {
            stemmer: Stemmer::create(Algorithm::English),
            synonyms,
            sum: 0.0,
            segments: 0,
        }
    }

    /// Counts a hypothesis against its references.
    pub fn add<S: AsRef<str>>(&mut self, hypothesis: &str, references: &[S]) {
        let hypothesis = words(hypothesis);
        let scores = (references.iter()).map(|r| self.score(&hypothesis, &words(r.as_ref())));
        self.sum += scores.fold(0.0, f64::max);
        self.segments += 1;
    }

    /// The mean over all segments, from 0 to 100.
    pub fn mean(&self) -> f64 {
        100.0 * self.sum / self.segments.max(1) as f64
    }

    /// The score of one hypothesis, from 0 to 1.
    fn score(&self, hypothesis: &[String], reference: &[String]) -> f64 {
        let aligned = self.align(hypothesis, reference);
        let matches = aligned.iter().flatten().count() as f64;
        if matches == 0.0 {
            return 0.0;
        }
        let precision = matches / hypothesis.len() as f64;
        let recall = matches / reference.len() as f64;
        let mean = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
        let parts = chunks(&aligned) as f64 / matches;
        mean * (1.0 - GAMMA * parts.powi(BETA))
    }

    /// The word of the reference that each of the hypothesis is aligned with.
    fn align(&self, hypothesis: &[String], reference: &[String]) -> Vec<Option<usize>> {
        let stems = |words: &[String]| -> Vec<String> {
            let stem = |word: &String| self.stemmer.stem(word).into_owned();
            words.iter().map(stem).collect()
        };
        let (of_hypothesis, of_reference) = (stems(hypothesis), stems(reference));
        let equal = |i: usize, j: usize| hypothesis[i] == reference[j];
        let same_stem = |i: usize, j: usize| of_hypothesis[i] == of_reference[j];
        let synonyms = |i: usize, j: usize| self.synonyms.are(&hypothesis[i], &reference[j]);
        let stages: [&dyn Fn(usize, usize) -> bool; 3] = [&equal, &same_stem, &synonyms];
        let mut aligned = vec![None; hypothesis.len()];
        for fits in stages {
            aligned = stage(&aligned, reference.len(), fits);
        }
        aligned
    }
}

fn words(text: &str) -> Vec<String> {
    tokenize_13a(&text.to_lowercase())
}

/// Runs of aligned words that are neighbours in both texts.
fn chunks(aligned: &[Option<usize>]) -> usize {
    let goes_on = |i: usize, j: usize| i > 0 && j > 0 && aligned[i - 1] == Some(j - 1);
    (aligned.iter().enumerate())
        .filter(|(i, at)| at.is_some_and(|j| !goes_on(*i, j)))
        .count()
}

/// Aligns more words, with as many pairs that fit as possible, and in as few chunks.
fn stage(
    before: &[Option<usize>],
    reference: usize,
    fits: &dyn Fn(usize, usize) -> bool,
) -> Vec<Option<usize>> {
    let mut taken = vec![false; reference];
    before.iter().flatten().for_each(|&j| taken[j] = true);
    let mut beam: Vec<Vec<Option<usize>>> = vec![Vec::with_capacity(before.len())];
    for (i, fixed) in before.iter().enumerate() {
        let mut next = Vec::new();
        for so_far in beam {
            let free = |j: &usize| !taken[*j] && fits(i, *j) && !so_far.contains(&Some(*j));
            let others = (0..reference).filter(free).map(Some);
            let ways: Vec<Option<usize>> = match fixed {
                Some(_) => vec![*fixed],
                None => others.chain([None]).collect(),
            };
            for way in ways {
                let mut longer = so_far.clone();
                longer.push(way);
                next.push(longer);
            }
        }
        // The most pairs first, then the fewest chunks.
        next.sort_by_cached_key(|way| (way.len() - way.iter().flatten().count(), chunks(way)));
        next.truncate(BEAM);
        beam = next;
    }
    beam.into_iter().next().unwrap_or_default()
}

#[cfg(test)]
#[path = "meteor_tests.rs"]
mod tests;
