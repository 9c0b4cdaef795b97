//! How many threads evaluate while other programs run, too.
//!
//! llama.cpp's threads meet at a barrier after each operation, some hundred
//! times a token, and spin while they wait. When another program takes one of
//! the processors, all threads wait for the one that it displaced: with 2
//! threads on 2 processors and one busy neighbour, decoding falls to a quarter,
//! where 1 thread keeps half. So there are only as many threads as processors
//! that others leave free, and all of them again when the others are done.
//!
//! Between two barriers of a batch of tokens lie milliseconds, in which threads
//! take work from each other. Where others would leave few threads, more of them
//! than processors are better there: OpenMP then lets those that wait sleep after
//! a moment, and those that have a processor do the work.

use std::sync::OnceLock;
use std::time::Duration;

use super::others::{self, Sample};

/// Shortest time over which the others are watched: a clock tick is 10 ms.
const WATCH: Duration = Duration::from_millis(200);
/// As much is enough for the first decision, when a model has just been loaded.
const FIRST_WATCH: Duration = Duration::from_millis(60);
/// A processor that others leave free to this part counts as free for a thread
/// that already runs...
const STAY: f64 = 0.6;
/// ...and to this part for one that would be added. Between the two nothing
/// changes, so that the number does not swing.
const JOIN: f64 = 0.8;

/// When the process began to use llama.cpp, which is before it loaded a model.
static STARTED: OnceLock<Option<Sample>> = OnceLock::new();

/// Notes what the processors had done before any model is loaded, so that the
/// first evaluation already knows about the others.
pub(crate) fn note_start() {
    STARTED.get_or_init(Sample::now);
}

/// How many tokens each number of threads evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ThreadUse {
    /// Numbers of threads with the tokens that they evaluated, ascending.
    pub tokens: Vec<(u32, u64)>,
    /// Most processors that other programs were seen to keep busy, on average
    /// over a fifth of a second or more. 0 where the number of threads was
    /// ordered, for then nobody looked.
    pub others: f64,
}

impl ThreadUse {
    pub(crate) fn count(&mut self, n_threads: u32, n_tokens: u64) {
        match self.tokens.binary_search_by_key(&n_threads, |(n, _)| *n) {
            Ok(at) => self.tokens[at].1 += n_tokens,
            Err(at) => self.tokens.insert(at, (n_threads, n_tokens)),
        }
    }
}

/// Chooses the number of threads of each evaluation.
#[derive(Debug)]
pub(crate) struct Governor {
    /// Threads when nothing else runs.
    all: u32,
    now: u32,
    processors: u32,
    last: Sample,
    /// The next look is the first.
    first: bool,
    others: f64,
}

impl Governor {
    /// One that allows `all` threads; `None` where there is nothing to choose,
    /// or the system does not tell what others do.
    pub(crate) fn new(all: u32) -> Option<Self> {
        let last = STARTED.get().copied().flatten().or_else(Sample::now)?;
        let processors = others::processors();
        (all > 1 && processors > 0).then_some(Self {
            all,
            now: all,
            processors,
            last,
            first: true,
            others: 0.0,
        })
    }

    /// Threads for what is evaluated next: for one token, and for several.
    pub(crate) fn n_threads(&mut self) -> (u32, u32) {
        let least = if self.first { FIRST_WATCH } else { WATCH };
        if self.last.age() >= least
            && let Some(sample) = Sample::now()
        {
            let others = sample.others_since(&self.last);
            self.now = decide(self.now, self.all, self.processors, others);
            self.others = self.others.max(others);
            self.last = sample;
            self.first = false;
        }
        (self.now, for_batch(self.now, self.all))
    }

    /// One that has decided, and does not look again.
    #[cfg(test)]
    pub(crate) fn decided(now: u32, all: u32) -> Self {
        let mut last = Sample::now().expect("the system tells what it does");
        last.postpone(Duration::from_secs(1 << 20));
        Self {
            all,
            now,
            processors: all,
            last,
            first: false,
            others: 0.0,
        }
    }

    /// Threads when nothing else runs.
    pub(crate) fn all(&self) -> u32 {
        self.all
    }

    /// Most processors that others were seen to keep busy.
    pub(crate) fn others(&self) -> f64 {
        self.others
    }
}

/// Threads to have next, of which there are `now` and can be `all`, while other
/// programs keep `others` of `processors` busy.
fn decide(now: u32, all: u32, processors: u32, others: f64) -> u32 {
    let free = (f64::from(processors) - others).max(0.0);
    let with_room = |part: f64| ((free + 1.0 - part).floor() as u32).clamp(1, all);
    let (most, least) = (with_room(STAY), with_room(JOIN));
    now.clamp(least, most)
}

/// Threads for several tokens, where one token gets `now` of `all`.
fn for_batch(now: u32, all: u32) -> u32 {
    if now * 3 < all * 2 { all + 1 } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_neighbour_costs_one_thread() {
        // Two threads and a neighbour on two processors: it gets a half to two
        // thirds of one.
        assert_eq!(decide(2, 2, 2, 0.5), 1);
        assert_eq!(decide(2, 2, 2, 0.67), 1);
        // When it has a processor for itself.
        assert_eq!(decide(1, 2, 2, 1.0), 1);
        assert_eq!(decide(8, 8, 8, 0.9), 7);
        assert_eq!(decide(7, 8, 8, 1.0), 7);
    }

    #[test]
    fn there_is_always_a_thread() {
        assert_eq!(decide(2, 2, 2, 1.3), 1);
        assert_eq!(decide(1, 2, 2, 2.0), 1);
        assert_eq!(decide(4, 4, 4, 9.0), 1);
    }

    #[test]
    fn threads_come_back_when_others_are_done() {
        assert_eq!(decide(1, 2, 2, 0.1), 2);
        assert_eq!(decide(1, 8, 8, 0.0), 8);
        assert_eq!(decide(2, 8, 8, 3.1), 5);
    }

    #[test]
    fn a_little_noise_changes_nothing() {
        assert_eq!(decide(2, 2, 2, 0.3), 2);
        assert_eq!(decide(1, 2, 2, 0.3), 1);
    }

    #[test]
    fn hyperthreads_leave_room() {
        // Four cores with two hyperthreads each: four threads, and three
        // processors of eight taken.
        assert_eq!(decide(4, 4, 8, 3.0), 4);
        assert_eq!(decide(4, 4, 8, 5.0), 3);
    }

    #[test]
    fn batches_get_more_threads_than_processors_rather_than_few() {
        assert_eq!(for_batch(2, 2), 2);
        assert_eq!(for_batch(1, 2), 3);
        assert_eq!(for_batch(7, 8), 7);
        assert_eq!(for_batch(5, 8), 9);
    }

    #[test]
    fn tokens_are_counted_by_threads() {
        let mut used = ThreadUse::default();
        for (threads, tokens) in [(2, 10), (1, 3), (2, 5), (4, 1)] {
            used.count(threads, tokens);
        }
        assert_eq!(used.tokens, [(1, 3), (2, 15), (4, 1)]);
    }

    #[test]
    fn one_thread_needs_no_governor() {
        assert!(Governor::new(1).is_none());
    }
}
