//! What `run` measured: the JSON, and the lines of `--perf`.

use headshare_runtime::{Generated, Timings, Token};
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
    resolve: &'static str,
    memory: Memory,
}

/// What there is to say apart from the text.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) load_ms: f64,
    pub(super) seed: u32,
    pub(super) timings: Timings,
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
             memory   {} PSS, {} of it weights, {} mappings\n\
             resolve  {}",
            self.load_ms,
            timings.prefill_tps(),
            timings.n_prefill,
            timings.decode_tps(),
            timings.n_decode,
            timings.sample.as_secs_f64() * 1000.0 / timings.n_sample.max(1) as f64,
            self.seed,
            mib(memory.pss_bytes),
            mib(memory.weights_pss_bytes),
            memory.vmas.unwrap_or(0),
            self.resolved,
        )
    }
}
