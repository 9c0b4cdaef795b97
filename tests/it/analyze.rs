//! The similarity of attention maps, against the definition: whole maps,
//! captured from the running model and multiplied naively.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use headshare_gguf::analyze::attention::{Attention, Settings, attention};
use headshare_gguf::analyze::picture::Format;
use headshare_gguf::analyze::weights::weights;
use headshare_gguf::analyze::{PlainModel, SymmetricMatrix};
use headshare_gguf::matching::MatchFunction;
use headshare_runtime::callbacks::{Node, Observer, Op};
use headshare_runtime::{Context, ContextParams, FlashAttention, Model, ModelParams, Token};
use headshare_testmodels::ModelSpec;

const CTX: u32 = 48;
const WINDOWS: usize = 3;
const TEXT: &str = "What heads attend to is nowhere in their weights: a model has to read \
    something first. This is a text of a few hundred letters, which a tokenizer that knows \
    letters only turns into a few hundred tokens, enough for several small windows of them.";

/// Every head's maps, whole: one for each window.
struct Whole {
    tokens: usize,
    maps: Vec<Vec<f64>>,
}

impl Observer for Whole {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.op() == Op::SOFT_MAX && node.layer_of("kq_soft_max").is_some()
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        let [columns, rows, _, _] = node.dims();
        assert_eq!(rows as usize, self.tokens);
        let data = node.f32s().unwrap();
        for head in data.chunks_exact((columns * rows) as usize) {
            let mut map = Vec::new();
            for (i, row) in head.chunks_exact(columns as usize).enumerate() {
                let sum: f32 = row.iter().sum();
                assert!((sum - 1.0).abs() < 1e-4, "row {i} sums to {sum}");
                assert!(row[i + 1..].iter().all(|&p| p == 0.0), "row {i}");
                map.extend(row[..self.tokens].iter().map(|&p| f64::from(p)));
            }
            self.maps.push(map);
        }
        ControlFlow::Continue(())
    }
}

fn whole_maps(path: &Path) -> Vec<Vec<Vec<f64>>> {
    let model = Arc::new(Model::load(path, &ModelParams::default(), None).unwrap());
    let params = ContextParams {
        n_ctx: Some(CTX),
        n_batch: CTX,
        n_ubatch: CTX,
        n_threads: Some(1),
        flash_attention: FlashAttention::Off,
        observable: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params).unwrap();
    let tokens = model.vocab().tokenize(TEXT, true, false).unwrap();
    let windows = tokens.chunks_exact(CTX as usize).take(WINDOWS);
    let maps = windows.map(|window| {
        let mut window: Vec<Token> = window.to_vec();
        if let Some(bos) = model.vocab().leading_bos() {
            window[0] = bos;
        }
        context.clear();
        let mut whole = Whole {
            tokens: window.len(),
            maps: Vec::new(),
        };
        context.decode_observed(&window, &mut whole).unwrap();
        whole.maps
    });
    maps.collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The mean cosine over the windows of what `of` makes of each window's maps.
#[track_caller]
fn check(
    what: &str,
    found: &SymmetricMatrix,
    windows: &[Vec<Vec<f64>>],
    of: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>>,
) {
    let windows: Vec<Vec<Vec<f64>>> = windows.iter().map(|maps| of(maps)).collect();
    assert_eq!(found.len(), windows[0].len(), "{what}");
    for a in 0..found.len() {
        for b in 0..=a {
            let cosines = windows.iter().map(|maps| cosine(&maps[a], &maps[b]));
            let mean = cosines.sum::<f64>() / windows.len() as f64;
            let got = found.get(a, b);
            assert!(
                (got - mean).abs() < 2e-5,
                "{what} {a}, {b}: {got}, not {mean}"
            );
        }
    }
}

fn analyse(path: &Path, chunk: Option<u32>) -> Attention {
    let model = PlainModel::open(path).unwrap();
    let scores = weights(&model, MatchFunction::Qk, 0.3, &|_| ()).unwrap();
    let settings = Settings {
        ctx: CTX,
        windows: WINDOWS,
        chunk,
        threads: Some(1),
    };
    let text = (Path::new("text"), TEXT);
    attention(&model, text, &settings, &[scores], &|_| ()).unwrap()
}

#[test]
fn similarities_are_those_of_whole_maps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    // Grouped and plain heads, a fused tensor, sliding windows.
    for preset in ["tiny-gqa", "tiny-llama", "tiny-gpt2", "tiny-gemma3"] {
        let spec = ModelSpec::preset(preset).unwrap();
        spec.write(&path).unwrap();
        let heads = spec.n_head.at(0) as usize;
        let per_unit = heads / spec.n_head_kv.at(0) as usize;
        let maps = whole_maps(&path);
        assert_eq!(maps.len(), WINDOWS, "{preset}");
        assert_eq!(maps[0].len(), 4 * heads, "{preset}");
        for chunk in [None, Some(16), Some(7)] {
            let found = analyse(&path, chunk);
            let what = format!("{preset} by {chunk:?}");
            assert_eq!(found.windows, WINDOWS);
            assert_eq!(found.layers, [0, 1, 2, 3]);
            check(
                &format!("{what}, heads"),
                &found.head_similarity,
                &maps,
                |m| m.to_vec(),
            );
            check(
                &format!("{what}, layers"),
                &found.layer_similarity,
                &maps,
                |m| {
                    let mean = |heads: &[Vec<f64>]| {
                        (0..heads[0].len())
                            .map(|i| heads.iter().map(|h| h[i]).sum())
                            .collect()
                    };
                    m.chunks(heads).map(mean).collect()
                },
            );
            let units = |m: &[Vec<f64>]| m.chunks(per_unit).map(|unit| unit.concat()).collect();
            check(
                &format!("{what}, units"),
                &found.unit_similarity,
                &maps,
                units,
            );
            let rest = |m: &[Vec<f64>]| {
                let without = m.iter().map(|map| {
                    let row = |row: &[f64]| row[1..].to_vec();
                    map.chunks(CTX as usize).flat_map(row).collect()
                });
                units(&without.collect::<Vec<Vec<f64>>>())
            };
            let without = &found.unit_similarity_without_first_token;
            check(&format!("{what}, without first"), without, &maps, rest);

            let all = maps.iter().flatten().count() as f64 * f64::from(CTX);
            let first = maps
                .iter()
                .flatten()
                .flat_map(|map| map.chunks(CTX as usize));
            let share = first.map(|row| row[0]).sum::<f64>() / all;
            assert!((found.first_token_share - share).abs() < 1e-6, "{what}");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    ModelSpec::preset("tiny-gqa").unwrap().write(&path).unwrap();
    let (a, b) = (analyse(&path, None), analyse(&path, None));
    assert_eq!(
        serde_json::to_string(&a).unwrap(),
        serde_json::to_string(&b).unwrap()
    );
    for format in [Format::Svg, Format::Png] {
        assert!(a.picture().encode(format) == b.picture().encode(format));
    }
}
