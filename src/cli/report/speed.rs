//! Speed and memory out of `bench`'s JSON.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::loading::Memory;
use crate::report::{LoadModeSpeed, Speed, Throughput};
use headshare_eval::bench::Ratio;

/// The fields that are needed of an element.
#[derive(Debug, Deserialize)]
struct Element {
    label: String,
    n_prompt: u32,
    samples_ts: Vec<f64>,
    median_ts: f64,
    load_ms: f64,
    resolve: String,
    memory: Memory,
}

/// Each configuration in turn, its speed as a ratio to that of the one that is
/// number `reference`.
pub(super) fn by_load_mode(bench: Value, reference: usize) -> anyhow::Result<Vec<LoadModeSpeed>> {
    let elements: Vec<Element> = serde_json::from_value(bench).context("bench's JSON")?;
    let mut seen = BTreeSet::new();
    let labels: Vec<&str> = elements
        .iter()
        .map(|e| e.label.as_str())
        .filter(|label| seen.insert(*label))
        .collect();
    let find = |label: &str, prefill: bool| {
        let mut of_kind = elements.iter().filter(|e| (e.n_prompt > 0) == prefill);
        of_kind.find(|e| e.label == label)
    };
    let throughput = |label: &str, prefill: bool| {
        let (this, reference) = (
            find(label, prefill)?,
            find(labels.get(reference)?, prefill)?,
        );
        let ratio = Ratio::of(&this.samples_ts, &reference.samples_ts);
        Some(Throughput {
            tps: this.median_ts,
            ratio: ratio.median,
            ratio_min: ratio.min,
            ratio_max: ratio.max,
        })
    };
    labels
        .iter()
        .map(|label| {
            let any = elements.iter().find(|e| e.label == *label);
            let any = any.context("bench's JSON")?;
            Ok(LoadModeSpeed {
                name: label.rsplit(": ").next().unwrap_or(label).to_owned(),
                speed: Speed {
                    prefill: throughput(label, true),
                    decode: throughput(label, false),
                    load_ms: any.load_ms,
                    resolve: any.resolve.clone(),
                    weights_pss_bytes: any.memory.weights_pss_bytes,
                    pss_bytes: any.memory.pss_bytes,
                    shared_bytes: any.memory.shared_bytes,
                },
            })
        })
        .collect()
}
