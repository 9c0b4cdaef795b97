//! What `run` measured: the JSON, and the lines of `--perf`.

use headshare_runtime::{Generated, ThreadUse, Timings, Token};
use serde::Serialize;

use crate::cli::loading::Memory;

/// What `run` has to say; the shape of its JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    text: String,
    tokens: Vec<Token>,
    prompt_tokens: usize,
    stop: &'static str,
    seed: u32,
    load_ms: f64,
    prefill_tps: f64,
    decode_tps: f64,
    threads: Vec<Threads>,
    resolve: &'static str,
    memory: Memory,
}

/// Tokens that a number of threads evaluated.
#[derive(Debug, Serialize)]
struct Threads {
    n_threads: u32,
    tokens: u64,
}

/// What there is to say apart from the text.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) load_ms: f64,
    pub(super) seed: u32,
    pub(super) timings: Timings,
    pub(super) threads: ThreadUse,
    pub(super) memory: Memory,
    /// What was picked for the shared weights, in words.
    pub(super) resolved: String,
}

impl Report {
    pub(super) fn new(
        generated: Generated,
        prompt_tokens: usize,
        resolve: &'static str,
        measured: &Measured,
    ) -> Self {
        Self {
            text: generated.text,
            tokens: generated.tokens,
            prompt_tokens,
            stop: generated.stop.as_str(),
            seed: measured.seed,
            load_ms: measured.load_ms,
            prefill_tps: measured.timings.prefill_tps(),
            decode_tps: measured.timings.decode_tps(),
            threads: (measured.threads.tokens.iter())
                .map(|&(n_threads, tokens)| Threads { n_threads, tokens })
                .collect(),
            resolve,
            memory: measured.memory.clone(),
        }
    }
}

impl Measured {
    /// The lines of `--perf`.
    pub(super) fn perf(&self) -> String {
        let mib = |bytes: Option<u64>| {
            bytes.map_or_else(
                || "unknown".to_owned(),
                |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            )
        };
        let Self {
            timings, memory, ..
        } = self;
        format!(
            "load     {:10.1} ms\n\
             prefill  {:10.1} tokens/s ({} tokens)\n\
             decode   {:10.1} tokens/s ({} tokens)\n\
             sampling {:10.3} ms/token (seed {})\n\
             threads  {}\n\
             memory   {} PSS, {} of it weights, {} mappings\n\
             resolve  {}",
            self.load_ms,
            timings.prefill_tps(),
            timings.n_prefill,
            timings.decode_tps(),
            timings.n_decode,
            timings.sample.as_secs_f64() * 1000.0 / timings.n_sample.max(1) as f64,
            self.seed,
            threads(&self.threads),
            mib(memory.pss_bytes),
            mib(memory.weights_pss_bytes),
            memory.vmas.unwrap_or(0),
            self.resolved,
        )
    }
}

/// Which numbers of threads evaluated how many tokens, and why not all always.
fn threads(used: &ThreadUse) -> String {
    let parts: Vec<String> = (used.tokens.iter().rev())
        .map(|(n_threads, tokens)| format!("{n_threads} for {tokens} tokens"))
        .collect();
    let mut text = parts.join(", ");
    if used.tokens.len() > 1 {
        text += &format!("; other programs kept up to {:.1} cores busy", used.others);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_with_their_reason() {
        let mut used = ThreadUse {
            tokens: vec![(2, 40)],
            others: 0.125,
        };
        assert_eq!(threads(&used), "2 for 40 tokens");
        used.tokens.insert(0, (1, 7));
        assert_eq!(
            threads(&used),
            "2 for 40 tokens, 1 for 7 tokens; other programs kept up to 0.1 cores busy"
        );
    }
}
