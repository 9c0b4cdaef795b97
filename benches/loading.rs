//! Loading a converted file of many tensors against loading its plain source.
//!
//! llama.cpp has room for 512 layers, so 500 of nine tensors each are about
//! the most that there can be. Weights are small: what is measured is the cost
//! of a tensor, not of its bytes. Each way takes its turn in every round, and
//! ratios are medians of those within a round.
//!
//! `HEADSHARE_BENCH_LAYERS=50,500` loads models of other sizes.

use headshare_format::PageSize;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headshare_gguf::convert::{self, Fitted};
use headshare_gguf::input::ModelFile;
use headshare_gguf::matching::WeightBlocks;
use headshare_gguf::matching::{self, MatchFunction};
use headshare_gguf::plan::Plan;
use headshare_gguf::stats::median;
use headshare_runtime::stitched::{Sharing, Source};
use headshare_runtime::{Model, ModelParams};
use headshare_testmodels::{ModelSpec, type_named};

const ROUNDS: usize = 7;
const DISTINCT: u32 = 10;

/// A model in which layers are repeated, as in a self-merge.
fn source(folder: &Path, layers: u32) -> PathBuf {
    let path = folder.join(format!("{layers}.gguf"));
    let spec = ModelSpec {
        n_layer: DISTINCT,
        repeat: layers / DISTINCT,
        n_embd: 256,
        n_head: 4.into(),
        n_head_kv: 4.into(),
        n_ff: 512,
        weight_type: type_named("q4_0").expect("ggml has q4_0"),
        ..ModelSpec::preset("tiny-llama").expect("there is such a preset")
    };
    spec.write(&path).expect("the folder takes a model");
    path
}

fn converted(source: &Path, name: &str, ratio: Option<f64>) -> PathBuf {
    let file = ModelFile::open_plain(source).expect("a valid model");
    let plan = match ratio {
        None => None,
        Some(ratio) => {
            let map = convert::attention_map(&file).expect("a llama model");
            let blocks = WeightBlocks::new(&file.gguf, &file.file, &map).expect("with weights");
            let function = MatchFunction::Qk;
            let matching = matching::match_units(&blocks, function, ratio, &|_| {});
            let matching = matching.expect("finite weights");
            let digest = convert::UNKNOWN_DIGEST.to_owned();
            Some(Plan::matched(digest, function, ratio, &matching))
        }
    };
    let path = source.with_extension(format!("{name}.gguf"));
    let prepared = convert::prepare(&file, plan, Fitted::default(), PageSize::KIB_4)
        .expect("a model that can share");
    convert::write(&prepared, &path, true, &|_| {}).expect("a folder with room");
    path
}

/// As `run` does, from opening the file on.
fn load(path: &Path) -> Duration {
    let started = Instant::now();
    let file = ModelFile::open(path).expect("a valid file");
    let source = Source {
        file: &file.file,
        gguf: &file.gguf,
        table: file.table.as_ref(),
    };
    let params = ModelParams::default();
    let model = Model::load_stitched(&source, Sharing::Auto, true, &params, None);
    black_box(model.expect("a model that llama.cpp loads"));
    started.elapsed()
}

fn main() {
    let layers = std::env::var("HEADSHARE_BENCH_LAYERS").unwrap_or_else(|_| "50,200,500".into());
    let layers = layers
        .split(',')
        .map(|n| n.parse().expect("numbers of layers"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    println!(
        "tensors  {:>22}  {:>22}  {:>10}",
        "lossless", "30% shared", "plain"
    );
    for layers in layers {
        let plain = source(folder.path(), layers);
        let files = [
            plain.clone(),
            converted(&plain, "lossless", None),
            converted(&plain, "ratio", Some(0.3)),
        ];
        let tensors = ModelFile::open(&plain)
            .expect("a valid file")
            .gguf
            .tensors()
            .len();
        files.iter().for_each(|path| {
            load(path);
        });
        let mut ms = vec![Vec::new(); files.len()];
        for round in 0..ROUNDS {
            let mut order: Vec<usize> = (0..files.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for i in order {
                ms[i].push(load(&files[i]).as_secs_f64() * 1000.0);
            }
        }
        let column = |i: usize| {
            let ratios = ms[i].iter().zip(&ms[0]).map(|(this, plain)| this / plain);
            let ratio = median(&ratios.collect::<Vec<_>>());
            format!("{:>9.1} ms ({ratio:>5.2} x)", median(&ms[i]))
        };
        let plain = median(&ms[0]);
        println!(
            "{tensors:>7}  {:>22}  {:>22}  {plain:>7.1} ms",
            column(1),
            column(2)
        );
        for path in files {
            let _ = std::fs::remove_file(path);
        }
    }
}
