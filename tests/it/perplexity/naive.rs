//! Against an implementation as plain as it gets: one window at a time, one
//! token at a time, everything in 64 bits, every logit kept.
//!
//! Windows are shorter than 64 tokens. From there on llama.cpp's flash
//! attention takes a kernel that rounds differently than the one for single
//! tokens, and with weights of 4 bits and activations rounded to 8 that is up
//! to 1% of the perplexity of so few tokens.

use std::path::Path;
use std::sync::Arc;

use headshare_gguf::eval::perplexity::{Params, Perplexity, perplexity};
use headshare_runtime::{Context, ContextParams, Model, ModelParams, Token};

use super::converted_smollm2;
use crate::support::{Folder, SMOLLM2, needs, preset, smollm2, valley};

fn load(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path, &ModelParams::default(), None).unwrap())
}

/// ln of the probabilities of all tokens.
fn ln_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits
        .iter()
        .map(|&l| f64::from(l))
        .fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits
        .iter()
        .map(|&l| f64::from(l) - max - sum.ln())
        .collect()
}

/// For each scored token: the token, and ln of the probabilities of all tokens
/// in its place.
fn distributions(
    model: &Arc<Model>,
    text: &str,
    n_ctx: usize,
    chunks: usize,
) -> Vec<(Token, Vec<f64>)> {
    let params = ContextParams {
        n_ctx: Some(n_ctx as u32),
        n_threads: Some(1),
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params).unwrap();
    let vocab = model.vocab();
    let tokens = vocab.tokenize(text, true, false).unwrap();
    let mut all = Vec::new();
    for window in tokens.chunks_exact(n_ctx).take(chunks) {
        context.clear();
        for (i, pair) in window.windows(2).enumerate() {
            let token = match (i, vocab.leading_bos()) {
                (0, Some(bos)) => bos,
                _ => pair[0],
            };
            context.decode(&[token]).unwrap();
            if i >= n_ctx / 2 {
                all.push((pair[1], ln_softmax(context.logits().unwrap())));
            }
        }
    }
    all
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of the mean, from the squared distances to it.
fn stderr(values: &[f64]) -> f64 {
    let m = mean(values);
    let n = values.len() as f64;
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / n / (n - 1.0)).sqrt()
}

/// Four digits.
const DIGITS: f64 = 5e-5;
/// Models of random weights make more of the rounding of keys and values to 16
/// bits.
const RANDOM: f64 = 3e-4;

#[track_caller]
fn assert_close(value: f64, naive: f64, what: &str) {
    assert_within(value, naive, DIGITS, what);
}

#[track_caller]
fn assert_within(value: f64, naive: f64, part: f64, what: &str) {
    let off = (value - naive).abs() / naive.abs().max(1e-3);
    assert!(off < part, "{what}: {value}, naively {naive}");
}

/// The parameters, and the text's first `chunks` windows.
fn params(n_ctx: u32, n_batch: u32, chunks: usize) -> Params {
    Params {
        n_ctx,
        n_batch,
        chunks: Some(chunks),
        n_threads: Some(1),
    }
}

fn evaluate(model: &Arc<Model>, base: Option<&Arc<Model>>, params: &Params) -> Perplexity {
    let text = std::fs::read_to_string(valley()).unwrap();
    perplexity(model, base, &text, params, &mut |_| {}).unwrap()
}

#[track_caller]
fn check_perplexity(found: &Perplexity, naive: &[(Token, Vec<f64>)], part: f64, what: &str) {
    let nll: Vec<f64> = naive
        .iter()
        .map(|(token, ln_p)| -ln_p[*token as usize])
        .collect();
    assert_eq!(found.tokens as usize, nll.len(), "{what}");
    let (value, error) = (found.perplexity.value, found.perplexity.stderr);
    assert_within(value, mean(&nll).exp(), part, what);
    assert_within(error, mean(&nll).exp() * stderr(&nll), part, what);
}

#[test]
fn smollm2_and_its_divergence_from_a_converted_file() {
    needs!(SMOLLM2);
    const CTX: u32 = 48;
    const CHUNKS: usize = 6;
    let text = std::fs::read_to_string(valley()).unwrap();
    let folder = Folder::new();
    // Expanded, for a model that `Model::load` can load.
    let expanded = folder.file("expanded.gguf");
    run!(
        "expand",
        converted_smollm2(&folder, "0.2"),
        "-o",
        expanded,
        "-q"
    )
    .ok();
    let (base, model) = (load(&smollm2()), load(&expanded));
    let p = distributions(&base, &text, CTX as usize, CHUNKS);
    let q = distributions(&model, &text, CTX as usize, CHUNKS);

    let params = params(CTX, 2048, CHUNKS);
    let found = evaluate(&model, Some(&base), &params);
    check_perplexity(&found, &q, DIGITS, "converted");
    let alone = evaluate(&model, None, &params);
    assert_eq!(alone.perplexity, found.perplexity);
    assert!(alone.against.is_none());
    let base_alone = evaluate(&base, None, &params);
    check_perplexity(&base_alone, &p, DIGITS, "base");

    let against = found.against.unwrap();
    assert_eq!(against.perplexity, base_alone.perplexity);
    let (mut divergence, mut delta_p, mut ln_ratio) = (Vec::new(), Vec::new(), Vec::new());
    let mut same_top = Vec::new();
    let top = |v: &[f64]| (0..v.len()).fold(0, |best, i| if v[i] > v[best] { i } else { best });
    for ((token, p), (_, q)) in p.iter().zip(&q) {
        let terms = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q));
        divergence.push(terms.sum::<f64>());
        let (p_came, q_came) = (p[*token as usize], q[*token as usize]);
        delta_p.push(q_came.exp() - p_came.exp());
        ln_ratio.push(p_came - q_came);
        same_top.push(f64::from(u8::from(top(p) == top(q))));
    }
    assert_close(against.divergence.value, mean(&divergence), "divergence");
    assert_close(against.divergence.stderr, stderr(&divergence), "its error");
    assert_close(against.ln_ratio.value, mean(&ln_ratio), "ln ratio");
    // The covariance is nothing else than the error of the differences.
    assert_close(against.ln_ratio.stderr, stderr(&ln_ratio), "its error");
    assert_close(against.ratio.value, mean(&ln_ratio).exp(), "ratio");
    assert_close(against.same_top.value, mean(&same_top), "same top");
    assert_close(against.same_top.stderr, stderr(&same_top), "its error");
    assert_close(against.delta_p.value, mean(&delta_p), "change");
    assert_close(against.delta_p.stderr, stderr(&delta_p), "its error");
    let squared: Vec<f64> = delta_p.iter().map(|d| d * d).collect();
    assert_close(against.delta_p_rms.value, mean(&squared).sqrt(), "RMS");
    let largest = squared.iter().copied().fold(0.0, f64::max).sqrt();
    assert_close(against.delta_p_max, largest, "largest change");
    divergence.sort_by(f64::total_cmp);
    // 138 tokens: 99% is 0.63 of the way from number 135 to 136.
    assert_eq!(divergence.len(), 138);
    let p99 = 0.37 * divergence[135] + 0.63 * divergence[136];
    assert_close(against.divergence_p99, p99, "99th percentile");
    let middle = (divergence[68] + divergence[69]) / 2.0;
    assert_close(against.divergence_median, middle, "median");
    assert_close(against.divergence_max, divergence[137], "maximum");
    // Far enough from the base for the figures to mean something.
    assert!(against.divergence.value > 0.1 && against.same_top.value < 0.95);
}

/// Windows side by side, one at a time, in parts; odd windows; with BOS.
#[test]
fn every_shape_of_batch_gives_the_same() {
    let text = std::fs::read_to_string(valley()).unwrap();
    let folder = Folder::new();
    for (name, begins_with_bos) in [
        ("tiny-llama", true),
        ("tiny-gemma3", true),
        ("tiny-gpt2", false),
    ] {
        let file = folder.file(&format!("{name}.gguf"));
        preset(name).write(&file).unwrap();
        let model = load(&file);
        let bos = model.vocab().leading_bos();
        assert_eq!(bos.is_some(), begins_with_bos, "{name}");
        for (n_ctx, chunks) in [(60, 5), (31, 7), (8, 9)] {
            let naive = distributions(&model, &text, n_ctx, chunks);
            for n_batch in [2048, 120, 50, 31, 7, 1] {
                let found = evaluate(&model, None, &params(n_ctx as u32, n_batch, chunks));
                let what = format!("{name}, windows of {n_ctx}, batches of {n_batch}");
                assert_eq!(found.chunks, chunks, "{what}");
                check_perplexity(&found, &naive, RANDOM, &what);
            }
        }
    }
}

/// More windows than fit side by side, and a rest that fills no window.
#[test]
fn all_windows_of_a_text() {
    let text = std::fs::read_to_string(valley()).unwrap();
    let folder = Folder::new();
    let file = folder.file("llama.gguf");
    preset("tiny-llama").write(&file).unwrap();
    let model = load(&file);
    let n_tokens = model.vocab().tokenize(&text, true, false).unwrap().len();
    let windows = n_tokens / 60;
    assert!(!n_tokens.is_multiple_of(60) && windows > 2048 / 60);
    let mut told = Vec::new();
    let all = Params {
        chunks: None,
        ..params(60, 2048, 1)
    };
    let found = perplexity(&model, None, &text, &all, &mut |running| {
        told.push((running.chunks, running.of, running.perplexity));
    })
    .unwrap();
    assert_eq!((found.chunks, found.chunks_of_text), (windows, windows));
    assert_eq!(found.tokens as usize, windows * 29);
    check_perplexity(
        &found,
        &distributions(&model, &text, 60, windows),
        RANDOM,
        "all windows",
    );
    assert_eq!((told[0].0, told[0].1), (0, windows));
    let last = told.last().unwrap();
    assert_eq!(
        (last.0, last.1, last.2),
        (windows, windows, found.perplexity.value)
    );
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn the_number_of_threads_changes_nothing_that_is_added_up() {
    let folder = Folder::new();
    let file = folder.file("llama.gguf");
    preset("tiny-llama").write(&file).unwrap();
    let model = load(&file);
    let with = |n_threads| {
        let params = Params {
            n_threads: Some(n_threads),
            ..params(64, 2048, 20)
        };
        evaluate(&model, Some(&model), &params)
    };
    let (one, four) = (with(1), with(4));
    assert_eq!(one.perplexity, four.perplexity);
    let against = one.against.unwrap();
    assert_eq!(against.divergence.value, 0.0);
    assert_eq!(against.divergence_max, 0.0);
    assert_eq!(against.ratio.value, 1.0);
    assert!(against.ratio.stderr < 1e-6);
    assert_eq!(against.same_top.value, 1.0);
    assert_eq!(
        (against.delta_p.value, against.delta_p_rms.stderr),
        (0.0, 0.0)
    );
}
