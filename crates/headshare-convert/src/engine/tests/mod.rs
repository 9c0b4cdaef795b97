//! The engine against what llama.cpp's own callbacks show of the same passes.

mod changed;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use faer::Mat;
use headshare_runtime::callbacks::{Node, Observer};
use headshare_runtime::{Batch, Context, ContextParams, FlashAttention, Model, ModelParams};
use headshare_testmodels::ModelSpec;

use super::*;

/// Every kind of layer that the presets have.
const PRESETS: &[&str] = &[
    "tiny-llama",
    "tiny-gqa",
    "tiny-gpt2",
    "tiny-moe",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gemma3",
    "tiny-phi3",
    "tiny-falcon",
];

const WINDOWS: u32 = 4;
const WINDOW: u32 = 24;
const VOCABULARY: u32 = 320;
const OUTPUTS: usize = 40;

fn windows() -> Windows {
    let n = (WINDOWS * WINDOW) as usize;
    Windows {
        tokens: (0..n).map(|i| (i * 37 % 290 + 5) as i32).collect(),
        count: WINDOWS,
        window: WINDOW,
        vocabulary: VOCABULARY,
        widest: 0,
        digest: String::new(),
    }
}

fn options() -> Options {
    Options {
        text: Text::Own,
        windows: WINDOWS,
        window: WINDOW,
        // Logits get an eighth.
        memory: 8 * 4 * u64::from(VOCABULARY) * OUTPUTS as u64,
        n_threads: Some(1),
        stop: Arc::default(),
    }
}

fn model(folder: &Path, preset: &str) -> PathBuf {
    let path = folder.join(format!("{preset}.gguf"));
    ModelSpec::preset(preset).unwrap().write(&path).unwrap();
    path
}

/// A product as llama.cpp computed it.
struct Product {
    name: String,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    /// The experts of each token, where there are some.
    chosen: Vec<i32>,
}

/// Notes every product with a weight.
#[derive(Default)]
struct Capture(Vec<Product>);

impl Observer for Capture {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let name = node.src(0).map_or("", |src| src.name());
        node.op().name().starts_with("MUL_MAT") && name.ends_with(".weight")
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        let [weight, input] = [0, 1].map(|i| node.src(i).unwrap());
        self.0.push(Product {
            name: weight.name().to_owned(),
            inputs: input.f32s().unwrap().into_owned(),
            outputs: node.f32s().unwrap().into_owned(),
            chosen: node.src(2).map_or(Vec::new(), |ids| ids.i32s().unwrap()),
        });
        ControlFlow::Continue(())
    }
}

/// The products of a pass over the model at `path`.
fn capture(path: &Path) -> Vec<Product> {
    let params = ModelParams {
        use_mmap: false,
        use_extra_bufts: false,
        n_gpu_layers: 0,
        ..ModelParams::default()
    };
    let model = Arc::new(Model::load(path, &params, None).unwrap());
    let windows = windows();
    let n = windows.tokens.len();
    let params = ContextParams {
        n_ctx: Some(n as u32),
        n_batch: n as u32,
        n_ubatch: n as u32,
        n_seq_max: WINDOWS,
        n_outputs_max: OUTPUTS as u32,
        n_threads: Some(1),
        reproducible: true,
        flash_attention: FlashAttention::On,
        observable: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params).unwrap();
    let mut batch = Batch::new();
    for (i, &token) in windows.tokens.iter().enumerate() {
        let (sequence, position) = (i as u32 / WINDOW, i as u32 % WINDOW);
        let output = (i + 1) * OUTPUTS / n != i * OUTPUTS / n;
        batch.add(token, position, &[sequence], output);
    }
    let mut seen = Capture::default();
    context.decode_batch_observed(&batch, &mut seen).unwrap();
    seen.0
}

/// What the engine showed of a matrix.
struct Visit {
    site: Site,
    expert: Option<usize>,
    inputs: Vec<f32>,
    targets: Vec<f32>,
    weights: Vec<f32>,
    held_from: usize,
    sums: normal::Sums,
}

/// Notes everything, and halves the matrices that `changes` names.
#[derive(Default)]
struct Notes {
    wants: Option<Wants>,
    changes: Vec<&'static str>,
    tables: Vec<(Table, Frequencies)>,
    visits: Vec<Visit>,
}

impl Notes {
    fn changes(&self, name: &str) -> bool {
        self.changes.iter().any(|start| name.starts_with(start))
    }
}

fn halved(bytes: &[u8]) -> Vec<u8> {
    let numbers = bytes.chunks_exact(4).map(|b| b.try_into().unwrap());
    numbers
        .flat_map(|b| (f32::from_le_bytes(b) * 0.5).to_le_bytes())
        .collect()
}

impl Visitor<EngineError> for Notes {
    fn wants(&mut self, _: &Site) -> Result<Wants, EngineError> {
        Ok(self.wants.unwrap_or(Wants::Fit))
    }

    fn table(&mut self, table: &Table, rows: &Frequencies) -> Result<Option<Vec<u8>>, EngineError> {
        self.tables.push((table.clone(), rows.clone()));
        Ok(None)
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
        self.visits.push(Visit {
            site: site.clone(),
            expert: seen.expert(),
            inputs: seen.inputs().to_vec(),
            targets: seen.targets().to_vec(),
            weights: seen.token_weights().to_vec(),
            held_from: seen.held_from(),
            sums: seen.sums(),
        });
        Ok(self.changes(&site.name).then(|| halved(seen.bytes())))
    }
}

fn run(path: &Path, notes: &mut Notes) {
    let source = ModelFile::open_plain(path).unwrap();
    let windows = windows();
    let mut engine = Engine::load(&source, None, None, &windows, &options()).unwrap();
    assert_eq!(engine.outputs(), OUTPUTS);
    engine.run(&mut [notes], &|_| ()).unwrap();
}

/// Rows of `product` that pass through `expert`: inputs, outputs.
fn of_expert(product: &Product, expert: usize, p: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
    let have = product.inputs.len() / p;
    let each = have == product.chosen.len();
    let used = product.chosen.len() / if each { have / 2 } else { have };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for (row, &chosen) in product.chosen.iter().enumerate() {
        if chosen as usize == expert {
            let from = if each { row } else { row / used };
            inputs.extend_from_slice(&product.inputs[from * p..(from + 1) * p]);
            outputs.extend_from_slice(&product.outputs[row * n..(row + 1) * n]);
        }
    }
    (inputs, outputs)
}

/// Close, relative to the largest.
#[track_caller]
fn close(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-9, |most: f64, v| most.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() < 2e-5 * largest,
            "{what}: {got} is not {expected} at {i} (of up to {largest})"
        );
    }
}

fn elements(m: &Mat<f64>) -> Vec<f64> {
    (0..m.nrows() * m.ncols())
        .map(|at| m[(at / m.ncols(), at % m.ncols())])
        .collect()
}

/// sum w a b^T.
fn naive(a: &[f32], p: usize, b: &[f32], n: usize, w: &[f32]) -> Vec<f64> {
    let mut sum = vec![0f64; p * n];
    for (t, &w) in w.iter().enumerate() {
        for i in 0..p {
            for j in 0..n {
                let (a, b) = (a[t * p + i], b[t * n + j]);
                sum[i * n + j] += f64::from(w) * f64::from(a) * f64::from(b);
            }
        }
    }
    sum
}

#[test]
fn every_matrix_is_visited_in_order_with_the_sums_of_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    for preset in PRESETS {
        let path = model(folder.path(), preset);
        let products = capture(&path);
        let mut notes = Notes::default();
        run(&path, &mut notes);

        let mut visits = notes.visits.iter();
        for product in &products {
            let experts = match product.chosen.len() {
                0 => vec![None],
                _ => (0..4).map(Some).collect(),
            };
            for expert in experts {
                let what = format!("{preset}, {}, {expert:?}", product.name);
                let visit = visits.next().expect(&what);
                assert_eq!((&visit.site.name, visit.expert), (&product.name, expert));
                let (p, n) = (visit.site.columns, visit.site.rows);
                let (inputs, outputs) = match expert {
                    Some(expert) => of_expert(product, expert, p, n),
                    None => (product.inputs.clone(), product.outputs.clone()),
                };
                check(&what, visit, &inputs, &outputs);
            }
        }
        assert!(visits.next().is_none(), "{preset}");
    }
}

/// Holds a visit of an unchanged model against what went into its product and
/// came out.
fn check(what: &str, visit: &Visit, inputs: &[f32], outputs: &[f32]) {
    let (p, n) = (visit.site.columns, visit.site.rows);
    let tokens = visit.weights.len();
    let all = (WINDOWS * WINDOW) as usize;
    // In the last layer those rows are left that pass through its end.
    let picked = |rows: &[f32], width: usize| -> Vec<f32> {
        if rows.len() == tokens * width {
            return rows.to_vec();
        }
        assert_eq!((rows.len(), tokens), (all * width, OUTPUTS), "{what}");
        (0..all)
            .filter(|i| (i + 1) * OUTPUTS / all != i * OUTPUTS / all)
            .flat_map(|i| &rows[i * width..(i + 1) * width])
            .copied()
            .collect()
    };
    let (inputs, outputs) = (picked(inputs, p), picked(outputs, n));
    assert_eq!(visit.inputs, inputs, "{what}");
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    match visit.site.target {
        // A difference of sums.
        Target::Sum { .. } => close(what, &wide(&visit.targets), &wide(&outputs)),
        _ if visit.site.bias.is_some() => close(what, &wide(&visit.targets), &wide(&outputs)),
        _ => assert_eq!(visit.targets, outputs, "{what}"),
    }
    if !visit.site.role.writes_to_stream() {
        assert!(visit.weights.iter().all(|&w| w == 1.0), "{what}");
    }
    let held = visit.held_from;
    assert!(
        held <= tokens && (visit.expert.is_some() || held > tokens / 2),
        "{what}"
    );
    for (sums, rows) in [
        (&visit.sums.fitted, 0..held),
        (&visit.sums.held, held..tokens),
    ] {
        let (z, y) = (
            &inputs[rows.start * p..rows.end * p],
            &visit.targets[rows.start * n..rows.end * n],
        );
        let w = &visit.weights[rows.clone()];
        assert_eq!(sums.rows, rows.len(), "{what}");
        close(what, &elements(&sums.gram), &naive(z, p, z, p, w));
        close(what, &elements(&sums.cross), &naive(z, p, y, n, w));
        let square: f64 = (y.chunks(n).zip(w))
            .map(|(y, w)| f64::from(*w) * y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
            .sum();
        close(what, &[sums.target], &[square]);
    }
}

#[test]
fn bytes_handed_back_are_what_the_rest_is_computed_with() {
    let folder = tempfile::tempdir().unwrap();
    for preset in PRESETS {
        let path = model(folder.path(), preset);
        let changed = folder.path().join("changed.gguf");
        let mut notes = Notes {
            wants: Some(Wants::Inputs),
            changes: vec!["blk.1."],
            ..Notes::default()
        };
        run(&path, &mut notes);
        // The same change, made in the file.
        let source = ModelFile::open_plain(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for name in notes.visits.iter().map(|visit| &visit.site.name) {
            let data = source.gguf.data_range(source.gguf.tensor(name).unwrap());
            let data = data.start as usize..data.end as usize;
            if notes.changes(name) {
                let half = halved(source.bytes(data.start as u64..data.end as u64));
                bytes[data].copy_from_slice(&half);
            }
        }
        std::fs::write(&changed, bytes).unwrap();
        let before = capture(&path);
        let after = capture(&changed);
        let mut visits = notes.visits.iter().filter(|visit| visit.expert.is_none());
        let mut differ = 0;
        for (before, after) in before.iter().zip(&after) {
            if !after.chosen.is_empty() {
                continue;
            }
            let visit = visits.next().unwrap();
            assert_eq!(visit.inputs, after.inputs, "{preset}, {}", after.name);
            assert!(visit.targets.is_empty());
            differ += usize::from(visit.inputs != before.inputs);
        }
        assert!(differ > 4, "{preset}: the change shows in {differ} inputs");
    }
}

#[test]
fn roles_decide_targets() {
    let folder = tempfile::tempdir().unwrap();
    let roles = |preset: &str| -> BTreeMap<String, (Role, Target)> {
        let path = model(folder.path(), preset);
        let mut notes = Notes {
            wants: Some(Wants::Inputs),
            ..Notes::default()
        };
        run(&path, &mut notes);
        let visits = notes.visits.into_iter();
        visits
            .map(|visit| (visit.site.name, (visit.site.role, visit.site.target)))
            .collect()
    };
    let llama = roles("tiny-llama");
    let role = |name: &str| llama[name].0;
    assert_eq!(role("blk.2.attn_q.weight"), Role::Query);
    assert_eq!(role("blk.2.ffn_up.weight"), Role::Up);
    assert_eq!(role("output.weight"), Role::Head);
    for stem in ["attn_output", "ffn_down"] {
        let name = format!("blk.2.{stem}.weight");
        assert!(matches!(llama[&name].1, Target::Sum { .. }), "{name}");
        // A norm follows.
        let gemma = roles("tiny-gemma3");
        assert!(matches!(gemma[&name].1, Target::Output(_)), "{name}");
        let Target::NoPlain { why, .. } = &roles("tiny-falcon")[&name].1 else {
            panic!("{name} of a parallel layer has a plain target");
        };
        assert!(why.contains(&name), "{why}");
    }
    let phi = roles("tiny-phi3");
    assert_eq!(phi["blk.0.ffn_up.weight"].0, Role::GateUp);
    assert_eq!(phi["blk.0.attn_qkv.weight"].0, Role::QueryKeyValue);
    assert!(matches!(phi["blk.0.ffn_up.weight"].1, Target::Output(_)));
    let moe = roles("tiny-moe");
    assert_eq!(moe["blk.0.ffn_gate_inp.weight"].0, Role::Router);
    let (role, target) = &moe["blk.0.ffn_down_exps.weight"];
    assert_eq!(*role, Role::ExpertDown);
    assert!(matches!(target, Target::NoPlain { .. }));
}

#[test]
fn tables_come_first_with_how_often_their_rows_are_used() {
    let folder = tempfile::tempdir().unwrap();
    for (preset, tied) in [
        ("tiny-llama", false),
        ("tiny-gemma3", true),
        ("tiny-gpt2", true),
    ] {
        let path = model(folder.path(), preset);
        let mut notes = Notes::default();
        run(&path, &mut notes);
        let [(table, rows)] = &notes.tables[..] else {
            panic!("{preset} has {} tables", notes.tables.len());
        };
        assert_eq!(table.name, "token_embd.weight");
        assert_eq!((table.columns, table.tied), (64, tied), "{preset}");
        let tokens = windows().tokens;
        let (fitted, held) = tokens.split_at((3 * WINDOW) as usize);
        for token in 0..VOCABULARY as i32 {
            let count = |tokens: &[i32]| tokens.iter().filter(|&&t| t == token).count() as u32;
            assert_eq!(rows.fitted[token as usize], count(fitted));
            assert_eq!(rows.held[token as usize], count(held));
        }
        let head = notes.visits.last().unwrap();
        assert_eq!(head.site.role, Role::Head);
        assert_eq!(head.site.name == table.name, tied);
    }
}

/// Two visitors in one pass: the second is shown what the first has made.
#[test]
fn visitors_follow_each_other() {
    struct Doubles(Vec<(String, Vec<u8>)>);
    impl Visitor<EngineError> for Doubles {
        fn wants(&mut self, site: &Site) -> Result<Wants, EngineError> {
            Ok(match site.role {
                Role::Value => Wants::Inputs,
                _ => Wants::Nothing,
            })
        }
        fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
            self.0.push((site.name.clone(), seen.bytes().to_vec()));
            Ok(None)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "tiny-gqa");
    let source = ModelFile::open_plain(&path).unwrap();
    let windows = windows();
    let mut engine = Engine::load(&source, None, None, &windows, &options()).unwrap();
    let mut first = Notes {
        changes: vec!["blk.1.attn_v"],
        ..Notes::default()
    };
    let mut second = Doubles(Vec::new());
    engine.run(&mut [&mut first, &mut second], &|_| ()).unwrap();
    assert_eq!(second.0.len(), 4);
    for (name, bytes) in second.0 {
        let data = source.bytes(source.gguf.data_range(source.gguf.tensor(&name).unwrap()));
        let expected = match first.changes(&name) {
            true => halved(data),
            false => data.to_vec(),
        };
        assert!(bytes == expected, "{name}");
    }
}
