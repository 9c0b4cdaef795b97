//! The proof that a shared block is in physical memory once, and that nothing
//! else changes: memory in PSS, logits bit by bit.
//!
//! What some of these tests read of `/proc` is the whole process's: they run
//! [`alone`]. The others take turns, since their models are large.

use headshare_format::PageSize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use headshare_gguf::convert::{self, Fitted};
use headshare_gguf::input::ModelFile;
use headshare_gguf::matching::WeightBlocks;
use headshare_gguf::matching::{self, MatchFunction};
use headshare_gguf::plan::Plan;
use headshare_runtime::memory::{self, WeightRegions};
use headshare_runtime::stitched::{Sharing, Source};
use headshare_runtime::{Context, ContextParams, Model, ModelParams, Token};
use headshare_testmodels::{ModelSpec, type_named};

use crate::support::{PROGRAM, alone, take_turns};

mod trouble;

/// A model whose head blocks are whole pages, output not tied; each layer is
/// written `repeat` times.
fn source(folder: &Path, weight_type: &str, repeat: u32) -> PathBuf {
    let path = folder.join(format!("{weight_type}-{repeat}.gguf"));
    let spec = ModelSpec {
        n_layer: 4,
        n_embd: 1024,
        n_head: 16.into(),
        n_head_kv: 4.into(),
        n_ff: 2816,
        n_vocab: 2048,
        weight_type: type_named(weight_type).unwrap(),
        repeat,
        ..ModelSpec::preset("llama-3.2-1b").unwrap()
    };
    spec.write(&path).unwrap();
    path
}

enum How {
    Lossless,
    Ratio(f64),
}

/// Converts `source`, and expands the result; returns both paths.
fn convert_and_expand(source: &Path, how: &How) -> (PathBuf, PathBuf) {
    let file = ModelFile::open_plain(source).unwrap();
    let plan = match how {
        How::Lossless => None,
        How::Ratio(ratio) => {
            let map = convert::attention_map(&file).unwrap();
            let blocks = WeightBlocks::new(&file.gguf, &file.file, &map).unwrap();
            let function = MatchFunction::Qk;
            let matching = matching::match_units(&blocks, function, *ratio, &|_| {}).unwrap();
            let digest = convert::UNKNOWN_DIGEST.to_owned();
            Some(Plan::matched(digest, function, *ratio, &matching))
        }
    };
    let prepared = convert::prepare(&file, plan, Fitted::default(), PageSize::KIB_4).unwrap();
    let converted = source.with_extension("converted.gguf");
    convert::write(&prepared, &converted, true, &|_| {}).unwrap();
    let expanded = source.with_extension("expanded.gguf");
    let (file, table) = ModelFile::open_converted(&converted).unwrap();
    convert::expand(&file, &table, &expanded, true, &|_| {}).unwrap();
    (converted, expanded)
}

struct Loaded {
    model: Arc<Model>,
    weights: WeightRegions,
    unique_bytes: u64,
}

fn load(path: &Path, sharing: Sharing) -> Loaded {
    let file = ModelFile::open(path).unwrap();
    let source = Source {
        file: &file.file,
        gguf: &file.gguf,
        table: file.table.as_ref(),
    };
    let model = Model::load_stitched(&source, sharing, true, &ModelParams::default(), None);
    let model = model.unwrap();
    let table = file.table.as_ref().expect("a converted file");
    let logical: u64 = table.tensors.iter().map(|t| t.byte_len()).sum();
    let shared: u64 = table
        .shared_bytes(0..table.tensors.len() as u32)
        .iter()
        .sum();
    Loaded {
        weights: model.weight_regions(),
        model: Arc::new(model),
        unique_bytes: logical - shared,
    }
}

/// Greedy tokens and, for each, the raw bits of all logits.
fn logits(model: &Arc<Model>, steps: usize) -> (Vec<Token>, Vec<Vec<u32>>) {
    let params = ContextParams {
        n_ctx: Some(256),
        n_threads: Some(1),
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params).unwrap();
    let (mut tokens, mut bits) = (Vec::new(), Vec::new());
    let mut next: Vec<Token> = (3..19).collect();
    for _ in 0..steps {
        context.decode(&next).unwrap();
        let logits = context.logits().unwrap();
        let best = (0..logits.len())
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
            .unwrap();
        bits.push(logits.iter().map(|l| l.to_bits()).collect());
        next = vec![best as Token];
        tokens.push(best as Token);
    }
    (tokens, bits)
}

fn stock_logits(path: &Path, steps: usize) -> (Vec<Token>, Vec<Vec<u32>>) {
    let model = Model::load(path, &ModelParams::default(), None).unwrap();
    logits(&Arc::new(model), steps)
}

/// Loads and runs what `how` makes of a model of `weight_type`, and holds it
/// against the bounds and against stock.
fn prove(weight_type: &str, repeat: u32, how: &How, sharing: Sharing, folds: bool) {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path(), weight_type, repeat);
    let (converted, expanded) = convert_and_expand(&source, how);
    let expected = stock_logits(&expanded, 64);

    let loaded = load(&converted, sharing);
    let shared = loaded.model.shared().unwrap().clone();
    assert_eq!(shared.trouble, None);
    assert_eq!(shared.folded_tensors > 0, folds, "{shared:?}");
    assert!(shared.shared_bytes > 0, "{shared:?}");
    // Page-aligned blocks: nothing is copied at an edge.
    assert_eq!(shared.copied_bytes, 0, "{shared:?}");
    let limit = |factor: f64| (loaded.unique_bytes as f64 * factor) as u64;
    let after_load = loaded.weights.pss_bytes().unwrap();
    assert!(
        after_load <= limit(1.01) + shared.copied_bytes,
        "{after_load} bytes after load, {} are distinct: {shared:?}",
        loaded.unique_bytes
    );
    let got = logits(&loaded.model, 64);
    assert_eq!(got.0, expected.0, "tokens");
    if sharing != Sharing::Map {
        assert!(got.1 == expected.1, "logits differ in their bits");
    }
    let after_run = loaded.weights.pss_bytes().unwrap();
    assert!(
        after_run <= limit(1.05) + shared.copied_bytes,
        "{after_run} bytes after generation, {} are distinct: {shared:?}",
        loaded.unique_bytes
    );
    // And it is there: memory that is not counted would pass as well.
    assert!(
        after_run >= limit(0.80),
        "{after_run} of {}",
        loaded.unique_bytes
    );
}

#[test]
fn repacked_weights_of_a_self_merge_are_folded() {
    alone(|| prove("q4_0", 2, &How::Lossless, Sharing::Fold, true));
}

#[test]
fn repacked_weights_of_shared_units_are_folded() {
    alone(|| prove("q4_0", 1, &How::Ratio(0.3), Sharing::Auto, true));
}

#[test]
fn super_blocks_are_folded() {
    alone(|| prove("q4_K", 2, &How::Lossless, Sharing::Auto, true));
}

#[test]
fn unpacked_weights_of_a_self_merge_are_mapped() {
    alone(|| prove("f16", 2, &How::Lossless, Sharing::Auto, false));
}

#[test]
fn unpacked_weights_of_shared_units_are_mapped() {
    alone(|| prove("f16", 1, &How::Ratio(0.3), Sharing::Auto, false));
}

#[test]
fn weights_that_could_be_repacked_are_mapped_on_request() {
    alone(|| prove("q4_0", 2, &How::Lossless, Sharing::Map, false));
}

#[test]
fn a_large_vocabulary_is_not_kept_beside_the_weights() {
    alone(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("vocabulary.gguf");
        let spec = ModelSpec {
            n_vocab: 100_000,
            tied_output: true,
            weight_type: type_named("f16").unwrap(),
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        spec.write(&source).unwrap();
        let header = ModelFile::open(&source).unwrap().gguf.data_offset();
        let (converted, _) = convert_and_expand(&source, &How::Ratio(0.0));
        let loaded = load(&converted, Sharing::Auto);
        logits(&loaded.model, 2);
        let weights = loaded.weights.pss_bytes().unwrap();
        assert!(header > 1 << 20, "{header} bytes are enough to be seen");
        assert!(
            weights > loaded.unique_bytes * 9 / 10,
            "{weights} are there"
        );
        assert!(
            weights < loaded.unique_bytes + header / 2,
            "{weights} bytes of weights in memory, {} in the file, {header} before them",
            loaded.unique_bytes
        );
    });
}

#[test]
fn loads_and_frees_leave_no_mappings_behind() {
    alone(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), "q4_0", 2);
        let (converted, _) = convert_and_expand(&source, &How::Lossless);
        drop(load(&converted, Sharing::Auto)); // what is loaded once and for all
        let before = memory::process_memory().unwrap().vmas;
        for _ in 0..50 {
            drop(load(&converted, Sharing::Auto));
        }
        let after = memory::process_memory().unwrap().vmas;
        assert_eq!(after, before, "mappings");
    });
}

#[test]
fn loading_never_needs_much_more_than_the_loaded_model() {
    alone(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), "q4_0", 2);
        let (converted, _) = convert_and_expand(&source, &How::Lossless);
        let file = ModelFile::open(&converted).unwrap();
        let source = Source {
            file: &file.file,
            gguf: &file.gguf,
            table: file.table.as_ref(),
        };
        let mut peak = 0;
        let mut watch = |_: f32| {
            peak = peak.max(memory::process_memory().unwrap().pss_bytes);
            true
        };
        let params = ModelParams::default();
        let model = Model::load_stitched(&source, Sharing::Auto, true, &params, Some(&mut watch));
        let model = model.unwrap();
        let end = memory::process_memory().unwrap().pss_bytes;
        drop(model);
        assert!(
            peak as f64 <= end as f64 * 1.05 + (16 << 20) as f64,
            "peak {peak}, end {end}"
        );
    });
}

#[test]
fn two_processes_share_the_mapped_pages() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path(), "f16", 2);
    let (converted, _) = convert_and_expand(&source, &How::Lossless);
    let run = |n: &str| {
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "-q",
                "run",
                "--resolve",
                "map",
                "--temp",
                "0",
                "-t",
                "1",
                "-c",
                "4096",
            ])
            .args(["-p", "abc", "-n", n])
            .arg(&converted);
        command
    };
    let weights = || {
        let output = run("4").arg("--json").output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["memory"]["weights_pss_bytes"].as_u64().unwrap()
    };
    let alone = weights();
    let mut companion = run("4000").stdout(Stdio::piped()).spawn().unwrap();
    // Once it prints, it has touched all its weights.
    let mut byte = [0];
    std::io::Read::read_exact(companion.stdout.as_mut().unwrap(), &mut byte).unwrap();
    let beside = weights();
    companion.kill().unwrap();
    companion.wait().unwrap();
    assert!(
        beside as f64 <= alone as f64 * 0.6,
        "{beside} bytes beside another process, {alone} alone"
    );
}
