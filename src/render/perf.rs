//! The lines of `--perf`: how long `run` took, and what it took of memory.

use headshare_jobs::{Continuation, Memory, ModelInMemory, Resolved};
use headshare_runtime::stitched::Shared;
use headshare_runtime::{ThreadUse, Timings};

use super::numbers::{self, grouped};

/// What there is to say apart from the text.
#[derive(Debug)]
pub(crate) struct Perf {
    load_ms: f64,
    seed: u32,
    timings: Timings,
    threads: ThreadUse,
    memory: Memory,
    /// What was picked for the shared weights, in words.
    resolved: String,
}

impl Perf {
    /// Of a text.
    pub(crate) fn of_text(done: Continuation) -> Self {
        Self {
            load_ms: done.load_ms,
            seed: done.seed,
            timings: done.details.timings,
            threads: done.details.threads,
            resolved: describe(done.resolve, &done.details.shared),
            memory: done.memory,
        }
    }

    /// Of a conversation.
    pub(crate) fn of_chat(
        loaded: &ModelInMemory,
        seed: u32,
        timings: Timings,
        threads: ThreadUse,
    ) -> Self {
        Self {
            load_ms: loaded.load_ms,
            seed,
            timings,
            threads,
            memory: loaded.memory(),
            resolved: describe(loaded.resolved, &loaded.shared),
        }
    }

    /// The lines of `--perf`.
    pub(crate) fn lines(&self) -> String {
        let mib = |bytes: Option<u64>| {
            bytes.map_or_else(
                || "unknown".to_owned(),
                |bytes| format!("{} MiB", numbers::mib(bytes)),
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

/// What was picked for which weights, in words.
fn describe(resolved: Resolved, shared: &Shared) -> String {
    if resolved == Resolved::Expand {
        return "expanded to a temporary copy: nothing is shared".to_owned();
    }
    if shared.folded_tensors + shared.mapped_tensors == 0 {
        return "nothing is shared".to_owned();
    }
    format!(
        "{} tensors folded after repacking, {} mapped; {} bytes are in memory once, {} are copied",
        shared.folded_tensors,
        shared.mapped_tensors,
        grouped(shared.shared_bytes),
        grouped(shared.copied_bytes)
    )
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
