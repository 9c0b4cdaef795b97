//! The figures of all rounds put together.

use serde::Serialize;

use super::Configuration;
use super::worker::{LoadMode, LoadedModel, Measured, Test, Took};
use crate::cli::loading::Memory;

/// Everything measured; the first row is the reference.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    pub(super) test: Test,
    /// Busy neighbours meanwhile.
    pub(super) busy: u32,
    pub(super) cpu: String,
}

/// One configuration.
pub(super) struct Row {
    pub(super) label: String,
    pub(super) file: String,
    pub(super) file_bytes: u64,
    pub(super) load_mode: LoadMode,
    pub(super) loaded: LoadedModel,
    load: Vec<Took>,
    /// Memory after loading and after generating: of the round in the middle
    /// by the weights' PSS.
    pub(super) memory_after_load: Memory,
    pub(super) memory: Memory,
    prefill: Vec<Took>,
    decode: Vec<Took>,
}

impl Row {
    /// `measured` holds one or more rounds.
    pub(super) fn new(configuration: Configuration, measured: Vec<Measured>) -> Self {
        let middle = |memory: fn(&Measured) -> &Memory| {
            let mut all: Vec<&Memory> = measured.iter().map(memory).collect();
            all.sort_by_key(|memory| (memory.weights_pss_bytes, memory.pss_bytes));
            all[(all.len() - 1) / 2].clone()
        };
        Self {
            label: configuration.label,
            file: configuration.file.to_string_lossy().into_owned(),
            file_bytes: configuration.file_bytes,
            load_mode: configuration.load_mode,
            loaded: measured[0].loaded.clone(),
            load: measured.iter().map(|m| m.loaded.load).collect(),
            memory_after_load: middle(|m| &m.loaded.memory),
            memory: middle(|m| &m.memory),
            prefill: measured.iter().filter_map(|m| m.prefill).collect(),
            decode: measured.iter().filter_map(|m| m.decode).collect(),
        }
    }
}

impl Row {
    pub(super) fn rounds(&self) -> usize {
        self.load.len()
    }

    pub(super) fn load_ms(&self) -> Vec<f64> {
        self.load.iter().map(|took| took.ms()).collect()
    }

    fn took(&self, kind: Kind) -> &[Took] {
        match kind {
            Kind::Prefill => &self.prefill,
            Kind::Decode => &self.decode,
        }
    }
}

/// Prefill or decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Prefill,
    Decode,
}

/// One test of one configuration.
pub(super) struct Speed {
    /// llama-bench's name: `pp512`.
    pub(super) name: String,
    pub(super) ns: Vec<f64>,
    /// Tokens a second.
    pub(super) ts: Vec<f64>,
    /// To the reference's of the same round.
    pub(super) ratio: Ratio,
    /// The same of tokens a second of processor time.
    pub(super) cpu_ratio: Option<Ratio>,
}

impl Report {
    pub(super) fn new(rows: Vec<Row>, test: Test, busy: u32) -> Self {
        Self {
            rows,
            test,
            busy,
            cpu: cpu_info(),
        }
    }

    pub(super) fn kinds(&self) -> Vec<Kind> {
        let counts = [
            (Kind::Prefill, self.test.n_prompt),
            (Kind::Decode, self.test.n_gen),
        ];
        let measured = counts.iter().filter(|(_, count)| *count > 0);
        measured.map(|(kind, _)| *kind).collect()
    }

    pub(super) fn name(&self, kind: Kind) -> String {
        match kind {
            Kind::Prefill => format!("pp{}", self.test.n_prompt),
            Kind::Decode => format!("tg{}", self.test.n_gen),
        }
    }

    pub(super) fn speed(&self, row: &Row, kind: Kind) -> Speed {
        let count = match kind {
            Kind::Prefill => self.test.n_prompt,
            Kind::Decode => self.test.n_gen,
        };
        let (times, reference) = (row.took(kind), self.rows[0].took(kind));
        let ns = clock_ns(times);
        Speed {
            name: self.name(kind),
            // Twice as long is half as fast.
            ratio: Ratio::of(&clock_ns(reference), &clock_ns(times)),
            cpu_ratio: cpu_ns(reference)
                .zip(cpu_ns(times))
                .map(|(reference, times)| Ratio::of(&reference, &times)),
            ts: ns.iter().map(|ns| f64::from(count) * 1e9 / ns).collect(),
            ns,
        }
    }

    pub(super) fn load_ratio(&self, row: &Row) -> Ratio {
        Ratio::of(&clock_ns(&row.load), &clock_ns(&self.rows[0].load))
    }

    pub(super) fn load_cpu_ratio(&self, row: &Row) -> Option<Ratio> {
        let (times, reference) = (cpu_ns(&row.load)?, cpu_ns(&self.rows[0].load)?);
        Some(Ratio::of(&times, &reference))
    }

    /// The result as JSON: one element for each configuration and test.
    pub(super) fn elements(&self) -> Vec<Element<'_>> {
        let mut all = Vec::new();
        for row in &self.rows {
            for kind in self.kinds() {
                all.push(self.element(row, kind));
            }
        }
        all
    }

    fn element<'a>(&'a self, row: &'a Row, kind: Kind) -> Element<'a> {
        let speed = self.speed(row, kind);
        let load_ratio = self.load_ratio(row);
        let stock = matches!(row.load_mode, LoadMode::StockMmap | LoadMode::StockRead);
        let only = |this, count| if kind == this { count } else { 0 };
        Element {
            build_commit: headshare_runtime::backend::llama_cpp_revision(),
            headshare_version: env!("CARGO_PKG_VERSION"),
            cpu_info: &self.cpu,
            backends: "CPU",
            model_filename: &row.file,
            model_type: &row.loaded.model_type,
            model_size: row.loaded.model_size,
            model_n_params: row.loaded.model_n_params,
            n_batch: self.test.batch_size,
            n_ubatch: self.test.ubatch_size,
            n_threads: row.loaded.n_threads,
            type_k: "f16",
            type_v: "f16",
            flash_attn: -1,
            use_mmap: row.load_mode != LoadMode::StockRead,
            n_prompt: only(Kind::Prefill, self.test.n_prompt),
            n_gen: only(Kind::Decode, self.test.n_gen),
            n_depth: 0,
            avg_ns: mean(&speed.ns).round() as u64,
            stddev_ns: stddev(&speed.ns).round() as u64,
            avg_ts: mean(&speed.ts),
            stddev_ts: stddev(&speed.ts),
            samples_ns: speed.ns.iter().map(|&ns| ns as u64).collect(),
            median_ts: median(&speed.ts),
            samples_ts: speed.ts,
            n_busy: self.busy,
            label: &row.label,
            reference: &self.rows[0].label,
            ratio_median: speed.ratio.median,
            ratio_min: speed.ratio.min,
            ratio_max: speed.ratio.max,
            cpu_ratio_median: speed.cpu_ratio.map(|ratio| ratio.median),
            cpu_ratio_min: speed.cpu_ratio.map(|ratio| ratio.min),
            cpu_ratio_max: speed.cpu_ratio.map(|ratio| ratio.max),
            stock,
            resolve: &row.loaded.resolve,
            file_bytes: row.file_bytes,
            load_ms: median(&row.load_ms()),
            samples_load_ms: row.load_ms(),
            load_ratio_median: load_ratio.median,
            load_ratio_min: load_ratio.min,
            load_ratio_max: load_ratio.max,
            load_cpu_ratio_median: self.load_cpu_ratio(row).map(|ratio| ratio.median),
            memory_after_load: &row.memory_after_load,
            memory: &row.memory,
        }
    }
}

/// llama-bench's fields, then ours. Like all results it carries no date.
#[derive(Debug, Serialize)]
pub(super) struct Element<'a> {
    build_commit: &'a str,
    headshare_version: &'a str,
    cpu_info: &'a str,
    backends: &'a str,
    model_filename: &'a str,
    model_type: &'a str,
    model_size: u64,
    model_n_params: u64,
    n_batch: u32,
    n_ubatch: u32,
    n_threads: u32,
    type_k: &'a str,
    type_v: &'a str,
    /// -1: where llama.cpp finds it possible.
    flash_attn: i32,
    use_mmap: bool,
    n_prompt: u32,
    n_gen: u32,
    n_depth: u32,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    median_ts: f64,
    /// Busy neighbours that `--busy` kept meanwhile.
    n_busy: u32,
    label: &'a str,
    /// The label of the reference that ratios are to.
    reference: &'a str,
    ratio_median: f64,
    ratio_min: f64,
    ratio_max: f64,
    /// The ratio by processor time, which other programs change little; null
    /// where the system does not tell.
    cpu_ratio_median: Option<f64>,
    cpu_ratio_min: Option<f64>,
    cpu_ratio_max: Option<f64>,
    /// Loaded by llama.cpp alone.
    stock: bool,
    /// As in `run --json`.
    resolve: &'a str,
    file_bytes: u64,
    load_ms: f64,
    samples_load_ms: Vec<f64>,
    load_ratio_median: f64,
    load_ratio_min: f64,
    load_ratio_max: f64,
    load_cpu_ratio_median: Option<f64>,
    memory_after_load: &'a Memory,
    memory: &'a Memory,
}

/// Ratios of samples that were taken in the same round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::cli) struct Ratio {
    pub(in crate::cli) median: f64,
    pub(in crate::cli) min: f64,
    pub(in crate::cli) max: f64,
}

impl Ratio {
    pub(in crate::cli) fn of(samples: &[f64], reference: &[f64]) -> Self {
        let ratios: Vec<f64> = samples.iter().zip(reference).map(|(a, b)| a / b).collect();
        Self {
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

fn clock_ns(times: &[Took]) -> Vec<f64> {
    times.iter().map(|took| took.ns.max(1) as f64).collect()
}

fn cpu_ns(times: &[Took]) -> Option<Vec<f64>> {
    let ns = times.iter().map(|took| Some(took.cpu_ns?.max(1) as f64));
    ns.collect()
}

pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    }
}

pub(super) fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// Of the sample, as llama-bench has it; 0 for one.
pub(super) fn stddev(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

/// The processor's name; empty where the system does not tell.
pub(in crate::cli) fn cpu_info() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_means_and_deviations() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(stddev(&[2.0, 4.0, 4.0, 6.0]), (8.0f64 / 3.0).sqrt());
        assert_eq!(stddev(&[2.0]), 0.0);
    }

    #[test]
    fn ratios_are_of_pairs_of_one_round() {
        // The machine is half as fast in the second round; the ratio is not.
        let ratio = Ratio::of(&[9.0, 5.0, 8.0], &[10.0, 5.0, 10.0]);
        let expected = Ratio {
            median: 0.9,
            min: 0.8,
            max: 1.0,
        };
        assert_eq!(ratio, expected);
    }
}
