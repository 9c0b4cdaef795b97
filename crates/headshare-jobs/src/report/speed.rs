//! Speed and memory out of what `bench` measured.

use std::path::Path;

use headshare_eval::bench::Ratio;
use headshare_eval::report::{LoadModeSpeed, Speed, Throughput};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bench::{BenchRow, LoadMode};
use crate::load::Resolve;

/// Speed and memory of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Speeds {
    /// As the program loads it.
    pub speed: Speed,
    /// As llama.cpp loads it by itself; of the source only.
    pub stock: Vec<LoadModeSpeed>,
}

/// As the program loads a file.
const AS_IT_LOADS: LoadMode = LoadMode::Resolve(Resolve::Auto);

/// Of `file`, as ratios to `source` as the program loads it.
pub(super) fn speeds(rows: &[BenchRow], file: &Path, source: &Path) -> Result<Speeds, Error> {
    let speed = |load_mode| speed(&of(rows, file, load_mode), &of(rows, source, AS_IT_LOADS));
    let stock = |load_mode: LoadMode| {
        Some(LoadModeSpeed {
            name: load_mode.stock_name()?.to_owned(),
            speed: speed(load_mode)?,
        })
    };
    let modes = [LoadMode::StockMmap, LoadMode::StockRead];
    let nothing = || {
        Error::in_words(
            crate::Kind::Failed,
            format!("{} was not measured", file.display()),
        )
    };
    Ok(Speeds {
        speed: speed(AS_IT_LOADS).ok_or_else(nothing)?,
        stock: modes.into_iter().filter_map(stock).collect(),
    })
}

/// The rows of a file that was loaded so.
fn of<'r>(rows: &'r [BenchRow], file: &Path, load_mode: LoadMode) -> Vec<&'r BenchRow> {
    let name = file.to_string_lossy();
    let rows = rows.iter().filter(|row| row.model_filename == name);
    rows.filter(|row| row.is_loaded(load_mode)).collect()
}

fn speed(rows: &[&BenchRow], reference: &[&BenchRow]) -> Option<Speed> {
    let throughput = |is_it: fn(&BenchRow) -> bool| {
        let this = rows.iter().find(|row| is_it(row))?;
        let reference = reference.iter().find(|row| is_it(row))?;
        let ratio = Ratio::of(&this.samples_ts, &reference.samples_ts);
        Some(Throughput {
            tps: this.median_ts,
            ratio: ratio.median,
            ratio_min: ratio.min,
            ratio_max: ratio.max,
        })
    };
    let any = rows.first()?;
    Some(Speed {
        prefill: throughput(|row| row.n_prompt > 0),
        decode: throughput(|row| row.n_gen > 0),
        load_ms: any.load_ms,
        resolve: any.resolve.as_str().to_owned(),
        weights_pss_bytes: any.memory.weights_pss_bytes,
        pss_bytes: any.memory.pss_bytes,
        shared_bytes: any.memory.shared_bytes,
    })
}
