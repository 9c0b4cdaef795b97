//! Counting: from log-probabilities to accuracies with their errors.
//!
//! lm-evaluation-harness's definitions. Its standard error of an accuracy is
//! that of a mean with the sample deviation, and of a task of several subjects
//! the pooled one. Scoring that has no choices of different length (partial,
//! last word, letters) has the same `accuracy_norm` as `accuracy`.

use serde::{Deserialize, Serialize};

use super::item::{Item, Kind, Metric, Task};
use super::score::Scores;

/// Whether an item was answered rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// By the sum of log-probabilities.
    pub plain: bool,
    /// By the sum over the choice's length.
    pub normalized: bool,
}

impl Verdict {
    /// Judges an item by its scores.
    pub fn of(kind: Kind, item: &Item, scores: &Scores) -> Self {
        let same = |plain| Self {
            plain,
            normalized: plain,
        };
        match kind {
            Kind::LastWord => same(scores.greedy.iter().all(|greedy| *greedy)),
            Kind::Partial => same(greatest(scores.log_probs.iter().copied()) == item.gold),
            Kind::Choices | Kind::Question | Kind::Letters => {
                let by_length = scores.log_probs.iter().zip(&item.pairs);
                let by_length = by_length.map(|(sum, pair)| sum / pair.length as f64);
                Self {
                    plain: greatest(scores.log_probs.iter().copied()) == item.gold,
                    normalized: greatest(by_length) == item.gold,
                }
            }
        }
    }
}

/// Where the greatest number stands; the first of several.
fn greatest(numbers: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, number) in numbers.enumerate() {
        if number > best.1 {
            best = (i, number);
        }
    }
    best.0
}

/// Accuracies over some items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Share of items whose gold choice has the greatest log-probability.
    pub accuracy: f64,
    /// The same with log-probabilities over the length of the choice.
    pub accuracy_norm: f64,
    /// Standard error of `accuracy`; of one item there is none.
    pub stderr: Option<f64>,
    /// Standard error of `accuracy_norm`.
    pub stderr_norm: Option<f64>,
    /// Items.
    pub n: usize,
}

impl Accuracy {
    /// Counts verdicts.
    pub fn of(verdicts: &[Verdict]) -> Self {
        let n = verdicts.len();
        let plain = verdicts.iter().filter(|v| v.plain).count();
        let normalized = verdicts.iter().filter(|v| v.normalized).count();
        Self {
            accuracy: share(plain, n),
            accuracy_norm: share(normalized, n),
            stderr: stderr(plain, n),
            stderr_norm: stderr(normalized, n),
            n,
        }
    }

    /// The one that `metric` says, and its standard error.
    pub fn by(&self, metric: Metric) -> (f64, Option<f64>) {
        match metric {
            Metric::Accuracy => (self.accuracy, self.stderr),
            Metric::AccuracyNorm => (self.accuracy_norm, self.stderr_norm),
        }
    }

    /// All items of several subjects, with the pooled error.
    fn pooled(all: &[Verdict], subjects: &[SubjectSummary]) -> Self {
        let pool = |of: fn(&Accuracy) -> Option<f64>| {
            let n = all.len();
            let squares: f64 = (subjects.iter())
                .filter_map(|s| {
                    let n = s.accuracy.n as f64;
                    of(&s.accuracy).map(|e| (n - 1.0) * n * e * e)
                })
                .sum();
            let freedom = n.checked_sub(subjects.len()).filter(|f| *f > 0)?;
            Some((squares / freedom as f64 / n as f64).sqrt())
        };
        Self {
            stderr: pool(|a| a.stderr),
            stderr_norm: pool(|a| a.stderr_norm),
            ..Self::of(all)
        }
    }
}

fn share(part: usize, n: usize) -> f64 {
    if n == 0 {
        return 0.0;
    }
    part as f64 / n as f64
}

/// Standard error of the mean of `n` numbers of which `right` are 1 and the
/// others 0.
fn stderr(right: usize, n: usize) -> Option<f64> {
    if n < 2 {
        return None;
    }
    let mean = share(right, n);
    // Sum of squared deviations is n p (1 - p).
    Some((mean * (1.0 - mean) / (n - 1) as f64).sqrt())
}

/// One subject of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectSummary {
    /// Its name.
    pub subject: String,
    /// Solved examples in front of each question, where subjects differ in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Its accuracies.
    #[serde(flatten)]
    pub accuracy: Accuracy,
}

/// What a task gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The task's name.
    pub task: String,
    /// How it was scored.
    pub kind: Kind,
    /// The accuracy that lm-evaluation-harness reports for it, the last one where it reports
    /// both.
    #[serde(default)]
    pub metric: Metric,
    /// The form of its rows.
    pub form: String,
    /// Solved examples in front of each question; of archives whose subjects all
    /// have as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Over all items.
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// Of last words: exp of the mean negative log-probability of a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Mean of the subjects' accuracies, each counting the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_of_subjects: Option<f64>,
    /// Items that were longer than the context and lost their left end.
    pub truncated: usize,
    /// Each subject; none where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<SubjectSummary>,
}

impl Summary {
    /// Counts the scores of all items of a task.
    pub fn new(task: &Task, scores: &[Scores], truncated: usize) -> Self {
        let verdicts: Vec<Verdict> = (task.items().zip(scores))
            .map(|(item, scores)| Verdict::of(task.kind, item, scores))
            .collect();
        let first = task.subjects.first().and_then(|subject| subject.shots);
        let alike = task.subjects.iter().all(|subject| subject.shots == first);
        let mut rest = verdicts.as_slice();
        let mut subjects = Vec::new();
        for subject in task.subjects.iter().filter(|_| task.has_subjects) {
            let (own, others) = rest.split_at(subject.items.len().min(rest.len()));
            rest = others;
            subjects.push(SubjectSummary {
                subject: subject.name.clone(),
                shots: subject.shots.filter(|_| !alike),
                accuracy: Accuracy::of(own),
            });
        }
        let mean = |numbers: Vec<f64>| numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        let words = || scores.iter().map(|s| s.log_probs.iter().sum()).collect();
        Self {
            task: task.name.clone(),
            kind: task.kind,
            metric: task.metric,
            form: task.form.to_owned(),
            shots: first.filter(|_| alike),
            accuracy: if subjects.is_empty() {
                Accuracy::of(&verdicts)
            } else {
                Accuracy::pooled(&verdicts, &subjects)
            },
            perplexity: (task.kind == Kind::LastWord).then(|| (-mean(words())).exp()),
            mean_of_subjects: (!subjects.is_empty())
                .then(|| mean(subjects.iter().map(|s| s.accuracy.accuracy).collect())),
            truncated,
            subjects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::choice::Subject;

    fn item(choices: &[&str], gold: usize) -> Item {
        let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
        Item::of_choices("q", &choices, gold)
    }

    fn scores(log_probs: &[f64]) -> Scores {
        Scores {
            log_probs: log_probs.to_vec(),
            greedy: vec![false; log_probs.len()],
        }
    }

    #[test]
    fn the_longer_choice_wins_by_length() {
        let item = item(&["ab", "abcd"], 1);
        let verdict = Verdict::of(Kind::Choices, &item, &scores(&[-2.0, -3.0]));
        assert_eq!(
            verdict,
            Verdict {
                plain: false,
                normalized: true
            }
        );
        // By characters, not bytes: 4 and 2 in characters, 4 and 6 in bytes.
        let item = self::item(&["abcd", "是的"], 0);
        assert!(Verdict::of(Kind::Choices, &item, &scores(&[-4.0, -2.2])).normalized);
    }

    #[test]
    fn the_first_of_equals_is_the_answer() {
        let right =
            |gold| Verdict::of(Kind::Choices, &item(&["a", "b"], gold), &scores(&[-1.0; 2]));
        assert!(right(0).plain && !right(1).plain);
        let all_impossible = scores(&[f64::NEG_INFINITY; 2]);
        assert!(Verdict::of(Kind::Choices, &item(&["a", "b"], 0), &all_impossible).plain);
    }

    #[test]
    fn errors_are_those_of_the_sample() {
        let verdict = |plain| Verdict {
            plain,
            normalized: true,
        };
        let all: Vec<_> = [true, true, true, false].map(verdict).to_vec();
        let accuracy = Accuracy::of(&all);
        // Sample deviation of 1 1 1 0 is 0.5; over the root of 4.
        assert_eq!((accuracy.accuracy, accuracy.stderr), (0.75, Some(0.25)));
        assert_eq!(
            (accuracy.accuracy_norm, accuracy.stderr_norm),
            (1.0, Some(0.0))
        );
        assert_eq!(Accuracy::of(&all[..1]).stderr, None);
        assert_eq!(Accuracy::of(&[]).accuracy, 0.0);
    }

    #[test]
    fn last_words_are_right_when_greedy_and_have_a_perplexity() {
        let task = Task {
            name: "t".into(),
            kind: Kind::LastWord,
            metric: Metric::Accuracy,
            form: "text",
            subjects: vec![Subject {
                name: "t".into(),
                items: vec![item(&["a"], 0), item(&["b"], 0)],
                shots: None,
            }],
            has_subjects: false,
        };
        let mut scores = [scores(&[-1.0]), scores(&[-3.0])];
        scores[0].greedy[0] = true;
        let summary = Summary::new(&task, &scores, 0);
        assert_eq!(summary.accuracy.accuracy, 0.5);
        assert_eq!(summary.perplexity, Some(2f64.exp()));
        assert_eq!(summary.mean_of_subjects, None);
    }

    #[test]
    fn subjects_are_counted_apart_and_pooled() {
        let subject = |name: &str, n| Subject {
            name: name.into(),
            items: vec![item(&["a", "b"], 0); n],
            shots: Some(n),
        };
        let task = Task {
            name: "t".into(),
            kind: Kind::Letters,
            metric: Metric::Accuracy,
            form: "mmlu",
            subjects: vec![subject("x", 2), subject("y", 4)],
            has_subjects: true,
        };
        let good = scores(&[-1.0, -2.0]);
        let bad = scores(&[-2.0, -1.0]);
        let all = [&good, &bad, &good, &good, &good, &bad].map(Clone::clone);
        let summary = Summary::new(&task, &all, 0);
        assert_eq!(summary.accuracy.accuracy, 4.0 / 6.0);
        assert_eq!(summary.mean_of_subjects, Some((0.5 + 0.75) / 2.0));
        assert_eq!(summary.subjects[1].accuracy.accuracy, 0.75);
        assert_eq!((summary.shots, summary.subjects[1].shots), (None, Some(4)));
        // Variances 0.5 and 0.25 of 2 and 4 items: (1 * 0.5 + 3 * 0.25) / 4 / 6.
        let error = summary.accuracy.stderr.unwrap();
        assert!((error - (1.25f64 / 4.0 / 6.0).sqrt()).abs() < 1e-12);
        // All with as many examples: said once.
        let mut task = task;
        for subject in &mut task.subjects {
            subject.shots = Some(5);
        }
        let summary = Summary::new(&task, &all, 0);
        assert_eq!((summary.shots, summary.subjects[1].shots), (Some(5), None));
    }
}
