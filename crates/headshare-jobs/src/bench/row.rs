//! The figures of all rounds put together.

use headshare_convert::stats::{mean, median, stddev};
use headshare_eval::bench::{Elapsed, Ratio, SpeedTest};
use headshare_runtime::backend::llama_cpp_revision;
use headshare_runtime::threads::processor_name;
use serde::{Deserialize, Serialize};

use super::configuration::Configuration;
use super::measure::{LoadMode, Measured};
use crate::load::{Memory, Resolved};

/// One configuration in one test: llama-bench's fields, then ours. Ratios are to
/// the reference in the same round. Like all results it carries no date.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The llama.cpp in this program.
    pub build_commit: String,
    /// This program's version.
    pub headshare_version: String,
    /// The processor's name; empty where the system does not tell.
    pub cpu_info: String,
    /// "CPU".
    pub backends: String,
    /// The file's path.
    pub model_filename: String,
    /// llama.cpp's description of the model.
    pub model_type: String,
    /// Bytes of its tensors.
    pub model_size: u64,
    /// Its weights.
    pub model_n_params: u64,
    /// Tokens handed to llama.cpp at once.
    pub n_batch: u32,
    /// Tokens computed at once.
    pub n_ubatch: u32,
    /// Threads.
    pub n_threads: u32,
    /// Type of the keys in the cache.
    pub type_k: String,
    /// Type of the values in the cache.
    pub type_v: String,
    /// -1: where llama.cpp finds it possible.
    pub flash_attn: i32,
    /// Whether the file was mapped to be loaded.
    pub use_mmap: bool,
    /// Tokens of the prompt; 0 where this is about generating.
    pub n_prompt: u32,
    /// Tokens that were generated; 0 where this is about the prompt.
    pub n_gen: u32,
    /// Tokens in the context before.
    pub n_depth: u32,
    /// Mean of the rounds, in ns.
    pub avg_ns: u64,
    /// Its standard deviation.
    pub stddev_ns: u64,
    /// Mean of the rounds, in tokens a second.
    pub avg_ts: f64,
    /// Its standard deviation.
    pub stddev_ts: f64,
    /// Each round, in ns.
    pub samples_ns: Vec<u64>,
    /// Each round, in tokens a second.
    pub samples_ts: Vec<f64>,
    /// Median of the rounds, in tokens a second.
    pub median_ts: f64,
    /// Processors that were kept busy meanwhile.
    pub n_busy: u32,
    /// What the configuration is called.
    pub label: String,
    /// The label of the reference.
    pub reference: String,
    /// Tokens a second over the reference's: the median.
    pub ratio_median: f64,
    /// The smallest.
    pub ratio_min: f64,
    /// The largest.
    pub ratio_max: f64,
    /// The ratio by processor time, which other programs change little; null
    /// where the system does not tell.
    pub cpu_ratio_median: Option<f64>,
    /// The smallest.
    pub cpu_ratio_min: Option<f64>,
    /// The largest.
    pub cpu_ratio_max: Option<f64>,
    /// Loaded by llama.cpp alone.
    pub stock: bool,
    /// How shared blocks were brought into memory.
    pub resolve: Resolved,
    /// Size of the file.
    pub file_bytes: u64,
    /// Median time to load, with the context, in ms.
    pub load_ms: f64,
    /// Each round's.
    pub samples_load_ms: Vec<f64>,
    /// Time to load over the reference's: the median.
    pub load_ratio_median: f64,
    /// The smallest.
    pub load_ratio_min: f64,
    /// The largest.
    pub load_ratio_max: f64,
    /// The same by processor time.
    pub load_cpu_ratio_median: Option<f64>,
    /// After loading, in the round in the middle by the weights' PSS.
    pub memory_after_load: Memory,
    /// After generating, in the round in the middle by the weights' PSS.
    pub memory: Memory,
}

impl BenchRow {
    /// Whether llama.cpp loaded the file by itself in this way; or whether the
    /// program loaded it, whatever the way.
    pub fn is_loaded(&self, load_mode: LoadMode) -> bool {
        let is_stock = load_mode.is_stock();
        self.stock == is_stock && (!is_stock || self.use_mmap == maps(load_mode))
    }
}

/// Whether a file is mapped to be loaded.
fn maps(load_mode: LoadMode) -> bool {
    load_mode != LoadMode::StockRead
}

/// What was measured of one configuration.
#[derive(Debug)]
pub(super) struct Rounds {
    pub configuration: Configuration,
    pub measured: Vec<Measured>,
}

/// Prefill or decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Prefill,
    Decode,
}

/// A row for each configuration and part of the test; the first configuration is
/// the reference, and each was measured in every round, of which there is one or
/// more.
pub(super) fn rows(all: &[Rounds], test: &SpeedTest, busy: u32) -> Vec<BenchRow> {
    let parts = [(Part::Prefill, test.n_prompt), (Part::Decode, test.n_gen)];
    let parts: Vec<(Part, u32)> = parts.into_iter().filter(|(_, n)| *n > 0).collect();
    let cpu = processor_name();
    let mut rows = Vec::new();
    for rounds in all {
        for &(part, count) in &parts {
            rows.push(rounds.row((part, count), &all[0], test, (busy, &cpu)));
        }
    }
    rows
}

impl Rounds {
    pub fn of(configuration: Configuration) -> Self {
        Self {
            configuration,
            measured: Vec::new(),
        }
    }

    fn row(
        &self,
        (part, count): (Part, u32),
        reference: &Self,
        test: &SpeedTest,
        (busy, cpu): (u32, &str),
    ) -> BenchRow {
        let (times, load) = (self.times(part), self.load());
        let (reference_times, reference_load) = (reference.times(part), reference.load());
        let ns = clock_ns(&times);
        let ts: Vec<f64> = ns.iter().map(|ns| f64::from(count) * 1e9 / ns).collect();
        // Twice as long is half as fast.
        let ratio = Ratio::of(&clock_ns(&reference_times), &ns);
        let cpu_ratio = cpu_ratio(&reference_times, &times);
        let load_ratio = Ratio::of(&clock_ns(&load), &clock_ns(&reference_load));
        let load_ms: Vec<f64> = load.iter().map(|took| took.ms()).collect();
        let Configuration {
            label,
            file_bytes,
            measure,
        } = &self.configuration;
        let loaded = &self.measured[0].loaded;
        let only = |this, count| if part == this { count } else { 0 };
        BenchRow {
            build_commit: llama_cpp_revision().to_owned(),
            headshare_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_info: cpu.to_owned(),
            backends: "CPU".to_owned(),
            model_filename: measure.file.to_string_lossy().into_owned(),
            model_type: loaded.model_type.clone(),
            model_size: loaded.model_size,
            model_n_params: loaded.model_n_params,
            n_batch: test.n_batch,
            n_ubatch: test.n_ubatch,
            n_threads: loaded.n_threads,
            type_k: "f16".to_owned(),
            type_v: "f16".to_owned(),
            flash_attn: -1,
            use_mmap: maps(measure.load_mode),
            n_prompt: only(Part::Prefill, test.n_prompt),
            n_gen: only(Part::Decode, test.n_gen),
            n_depth: 0,
            avg_ns: mean(&ns).round() as u64,
            stddev_ns: stddev(&ns).round() as u64,
            avg_ts: mean(&ts),
            stddev_ts: stddev(&ts),
            samples_ns: ns.iter().map(|&ns| ns as u64).collect(),
            median_ts: median(&ts),
            samples_ts: ts,
            n_busy: busy,
            label: label.clone(),
            reference: reference.configuration.label.clone(),
            ratio_median: ratio.median,
            ratio_min: ratio.min,
            ratio_max: ratio.max,
            cpu_ratio_median: cpu_ratio.map(|ratio| ratio.median),
            cpu_ratio_min: cpu_ratio.map(|ratio| ratio.min),
            cpu_ratio_max: cpu_ratio.map(|ratio| ratio.max),
            stock: measure.load_mode.is_stock(),
            resolve: loaded.resolve,
            file_bytes: *file_bytes,
            load_ms: median(&load_ms),
            samples_load_ms: load_ms,
            load_ratio_median: load_ratio.median,
            load_ratio_min: load_ratio.min,
            load_ratio_max: load_ratio.max,
            load_cpu_ratio_median: self::cpu_ratio(&load, &reference_load).map(|r| r.median),
            memory_after_load: self.middle(|m| &m.loaded.memory),
            memory: self.middle(|m| &m.memory),
        }
    }

    fn times(&self, part: Part) -> Vec<Elapsed> {
        let of = |m: &Measured| match part {
            Part::Prefill => m.prefill,
            Part::Decode => m.decode,
        };
        self.measured.iter().filter_map(of).collect()
    }

    fn load(&self) -> Vec<Elapsed> {
        self.measured.iter().map(|m| m.loaded.load).collect()
    }

    /// The memory of the round in the middle by the weights' PSS.
    fn middle(&self, memory: fn(&Measured) -> &Memory) -> Memory {
        let mut all: Vec<&Memory> = self.measured.iter().map(memory).collect();
        all.sort_by_key(|memory| (memory.weights_pss_bytes, memory.pss_bytes));
        all[(all.len() - 1) / 2].clone()
    }
}

fn clock_ns(times: &[Elapsed]) -> Vec<f64> {
    times.iter().map(|took| took.ns.max(1) as f64).collect()
}

/// By processor time.
fn cpu_ratio(times: &[Elapsed], reference: &[Elapsed]) -> Option<Ratio> {
    let ns = |times: &[Elapsed]| -> Option<Vec<f64>> {
        let ns = times.iter().map(|took| Some(took.cpu_ns?.max(1) as f64));
        ns.collect()
    };
    Some(Ratio::of(&ns(times)?, &ns(reference)?))
}
