//! Units chosen by what is measured of the running model.

use std::path::Path;
use std::sync::Arc;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use headshare_gguf::convert;
use headshare_gguf::engine::Text;
use headshare_gguf::input::ModelFile;
use headshare_gguf::model::UnitId;
use headshare_gguf::repair::choose::{Subject, Survey, survey};
use headshare_gguf::repair::{Options, Windows, takes};
use serde_json::Value;

use super::naive;
use super::steps::{DECODERS, SMALL, expand, repairing, tokens, verify, words};
use crate::support::{json, written};

#[track_caller]
pub fn convert(source: &Path, text: &Path, out: &Path, more: &[&str]) -> Value {
    json(repairing(source, text, out).arg("--json").args(more))
}

fn measure(source: &ModelFile, text: String) -> (Survey, Windows) {
    let map = convert::attention_map(source).unwrap();
    let options = Options {
        text: Text::Given(text),
        windows: 6,
        window: 64,
        memory: 4 << 30,
        n_threads: Some(1),
        stop: Arc::default(),
    };
    let windows = Windows::of(source, &options, takes(source), &|_| (), &|_| ()).unwrap();
    let subject = Subject {
        source,
        digest: "blake3:0",
        map: &map,
    };
    let survey = survey(subject, &windows, &options, true, &|_| (), &|_| ()).unwrap();
    (survey, windows)
}

/// The part of the residual stream that is lost, by plain least squares in f64.
struct Losses {
    n_embd: usize,
    width: usize,
    /// Weighted rows of all features of the layer.
    own: Mat<f64>,
    output: Mat<f64>,
    tokens: usize,
    weights: Vec<f64>,
}

impl Losses {
    fn of(naive: &naive::Naive, layer: usize, inputs: &[Vec<f64>]) -> Self {
        let flat: Vec<f64> = inputs.concat();
        let tokens = flat.len() / naive.n_embd;
        let weights: Vec<f64> = flat
            .chunks(naive.n_embd)
            .map(|row| naive.n_embd as f64 / row.iter().map(|v| v * v).sum::<f64>())
            .collect();
        let (output, width) = naive.matrix(&format!("blk.{layer}.attn_output.weight"));
        let mut this = Self {
            n_embd: naive.n_embd,
            width,
            own: Mat::zeros(0, 0),
            output: Mat::from_fn(naive.n_embd, width, |i, j| output[i * width + j]),
            tokens,
            weights,
        };
        this.own = this.features(naive, layer, layer, inputs);
        this
    }

    fn features(
        &self,
        naive: &naive::Naive,
        at: usize,
        of: usize,
        inputs: &[Vec<f64>],
    ) -> Mat<f64> {
        let rows: Vec<f64> = inputs
            .iter()
            .flat_map(|x| naive.attention(at, of, x))
            .collect();
        Mat::from_fn(self.tokens, self.width, |t, c| {
            rows[t * self.width + c] * self.weights[t].sqrt()
        })
    }

    /// With the columns `unit` taken from the rest and `donor`.
    fn loss(&self, unit: std::ops::Range<usize>, donor: Option<Mat<f64>>) -> f64 {
        let others: Vec<usize> = (0..self.width).filter(|c| !unit.contains(c)).collect();
        let more = donor.as_ref().map_or(0, Mat::ncols);
        let x = Mat::from_fn(self.tokens, others.len() + more, |t, c| {
            match others.get(c) {
                Some(&c) => self.own[(t, c)],
                None => donor.as_ref().unwrap()[(t, c - others.len())],
            }
        });
        let z = self.own.subcols(unit.start, unit.len());
        let trace: f64 = (0..self.width)
            .map(|c| {
                (0..self.tokens)
                    .map(|t| self.own[(t, c)].powi(2))
                    .sum::<f64>()
            })
            .sum();
        let ridge = 1e-3 * trace / self.width as f64;
        let mut gram = x.transpose() * &x;
        (0..gram.nrows()).for_each(|i| gram[(i, i)] += ridge);
        let found = gram.llt(Side::Lower).unwrap().solve(x.transpose() * z);
        let output = self.output.subcols(unit.start, unit.len());
        let left = (z - &x * &found) * output.transpose();
        let shrunk = output * found.transpose();
        (left.squared_norm_l2() + ridge * shrunk.squared_norm_l2())
            / (self.tokens * self.n_embd) as f64
    }
}

#[test]
fn losses_are_those_of_a_naive_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "tiny-gqa");
    let file = ModelFile::open_plain(&path).unwrap();
    let words = std::fs::read_to_string(words(folder.path())).unwrap();
    let (survey, windows) = measure(&file, words);
    let naive = naive::Naive::new(&file);
    // The last windows are kept for the logits.
    let window = windows.window as usize;
    let fitted = (windows.count - windows.held_out()) as usize;
    let mut inputs: Vec<Vec<Vec<f64>>> = vec![Vec::new(); naive.n_layer];
    for tokens in windows.tokens.chunks(window).take(fitted) {
        let mut x = naive.embed(tokens);
        for (layer, inputs) in naive.forward(tokens).into_iter().zip(&mut inputs) {
            inputs.push(std::mem::replace(&mut x, layer.out));
        }
    }
    let units = 2;
    for unit in &survey.units {
        let layer = unit.layer as usize;
        let losses = Losses::of(&naive, layer, &inputs[layer]);
        let width = losses.width / units;
        let columns = |unit: u32| unit as usize * width..(unit as usize + 1) * width;
        let close = |what: &str, got: f64, expected: f64| {
            let off = (got - expected).abs() / expected;
            assert!(off < 0.02, "{} {what}: {got} for {expected}", unit.id());
        };
        let dropped = unit.dropped.unwrap();
        close(
            "dropped",
            dropped.loss,
            losses.loss(columns(unit.unit), None),
        );
        assert!(dropped.measured && dropped.divergence > 0.0);
        assert_eq!(unit.donors.len(), layer * units, "all earlier units");
        for donor in &unit.donors {
            let theirs = losses.features(&naive, layer, donor.layer as usize, &inputs[layer]);
            let theirs = theirs.subcols(columns(donor.unit).start, width).to_owned();
            let expected = losses.loss(columns(unit.unit), Some(theirs));
            close(&format!("by {}", donor.id()), donor.loss, expected);
            assert!(donor.loss <= dropped.loss * 1.001);
        }
        let order: Vec<f64> = unit.donors.iter().map(|d| d.loss).collect();
        assert!(order.is_sorted());
        if let Some(shared) = unit.shared {
            assert_eq!(shared.loss, order[0]);
            assert!(shared.measured && shared.divergence > 0.0);
        }
    }
}

#[test]
fn every_kind_of_decoder_is_chosen_in() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    for preset in DECODERS {
        let source = written(folder.path(), preset);
        let out = folder.path().join(format!("{preset}.out.gguf"));
        let stats = folder.path().join(format!("{preset}.json"));
        let stats = stats.to_str().unwrap();
        let keep = [&SMALL[..], &["--save-stats", stats]].concat();
        let result = convert(&source, &text, &out, &keep);
        let plan = &result["plan"];
        assert_eq!(plan["choice"]["by"], "calibrated", "{preset}");
        let edits = plan["edits"].as_array().unwrap();
        let aliases: Vec<&Value> = edits.iter().map(|edit| &edit["share"]).collect();
        assert!(!aliases.is_empty(), "{preset}");
        let unit = |v: &Value, layer: &str, unit: &str| UnitId {
            layer: v[layer].as_u64().unwrap() as u32,
            unit: v[unit].as_u64().unwrap() as u32,
        };
        for alias in &aliases {
            let donor = unit(alias, "donor_layer", "donor_unit");
            assert!(aliases.iter().all(|a| unit(a, "layer", "unit") != donor));
            assert!(alias["score"].as_f64().unwrap() <= 0.0);
        }
        let report = verify(&out, &source);
        assert_eq!(report["ok"], true, "{preset}: {report}");

        // What was kept gives the same file, also to another run.
        let again = folder.path().join(format!("{preset}.again.gguf"));
        let kept = [&SMALL[..], &["--stats", stats]].concat();
        convert(&source, &text, &again, &kept);
        assert!(
            std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap(),
            "{preset}"
        );
        std::fs::remove_file(&again).unwrap();
        convert(&source, &text, &again, &SMALL);
        assert!(
            std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap(),
            "{preset}"
        );

        let plain = folder.path().join(format!("{preset}.plain.gguf"));
        expand(&out, &plain);
        assert_eq!(tokens(&out), tokens(&plain), "{preset}");
    }
}

#[test]
fn bad_statistics_and_contradictions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-llama");
    let other = written(folder.path(), "tiny-gqa");
    let stats = folder.path().join("stats.json");
    let keep = ["--save-stats", stats.to_str().unwrap()];
    let first = folder.path().join("first.gguf");
    convert(&source, &text, &first, &[&SMALL[..], &keep].concat());
    let good: Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        let path = folder.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let out = folder.path().join("out.gguf");
    let refused = |source: &Path, more: &[&str], code: i32, says: &str| {
        let output = repairing(source, &text, &out).args(more).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(says),
            "{stderr}"
        );
        assert!(!out.exists());
    };
    let with = |path: &str| {
        [&SMALL[..], &["--stats", path]]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let stats_refused = |source: &Path, path: &str, says: &str| {
        let arguments = with(path);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(source, &arguments, 3, says);
    };
    stats_refused(&other, stats.to_str().unwrap(), "source: measured on");
    stats_refused(
        &source,
        &changed("text", &|v| v["text"] = "blake3:1".into()),
        "text: measured with",
    );
    stats_refused(
        &source,
        &changed("version", &|v| v["version"] = 9.into()),
        "version: 9 is unknown",
    );
    stats_refused(
        &source,
        &changed("window", &|v| v["window"] = 32.into()),
        "window: measured with",
    );
    stats_refused(
        &source,
        &changed("units", &|v| {
            v["units"].as_array_mut().unwrap().pop();
        }),
        "units: these are not the model's",
    );
    stats_refused(
        &source,
        &changed("donor", &|v| {
            v["units"][5]["donors"][0]["layer"] = 77.into()
        }),
        "that cannot be",
    );
    stats_refused(
        &source,
        &changed("loss", &|v| {
            v["units"][5]["donors"][0]["loss"] = (-1.0).into()
        }),
        "that cannot be",
    );
    stats_refused(
        &source,
        text.to_str().unwrap(),
        "not a file of what was measured for a choice",
    );
    let small = |more: &[&'static str]| [&SMALL[..], more].concat();
    refused(&source, &small(&["--stats", "absent"]), 3, "absent");
    refused(
        &source,
        &small(&["--choose", "calibrated", "--match", "v"]),
        2,
        "--match is for --choose match",
    );
    refused(
        &source,
        &small(&["--match", "v", "--units", "drop"]),
        2,
        "--units needs --choose calibrated",
    );
    let exists = [&SMALL[..], &keep].concat();
    refused(&source, &exists, 2, "stats.json");
    let share = stats.to_str().unwrap();
    let drop = [&SMALL[..], &["--units", "drop", "--stats", share]].concat();
    let auto = [&SMALL[..], &["--units", "auto", "--stats", share]].concat();
    refused(
        &source,
        &drop,
        3,
        "what dropping units costs was not measured",
    );
    refused(
        &source,
        &auto,
        3,
        "measure again, with --units drop or auto",
    );
}

/// What is read may not be what is written.
#[test]
fn text_and_statistics_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-llama");
    let stats = folder.path().join("stats.json");
    let keep = ["--save-stats", stats.to_str().unwrap()];
    let first = folder.path().join("first.gguf");
    convert(&source, &text, &first, &[&SMALL[..], &keep].concat());
    let refused = |out: &Path, more: &[&str], says: &str| {
        let files = [&source, &text, &stats];
        let before = files.map(|path| std::fs::read(path).unwrap());
        let output = repairing(&source, &text, out)
            .args(SMALL)
            .args(more)
            .arg("--force")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {stderr}");
        assert!(stderr.contains(says), "{more:?}: {stderr}");
        let after = files.map(|path| std::fs::read(path).unwrap());
        assert!(before == after, "{more:?}");
    };
    let out = folder.path().join("out.gguf");
    let [kept, words, model, new] =
        [&stats, &text, &source, &out].map(|path| path.to_str().unwrap());
    let itself = "is the input itself";
    refused(&text, &[], itself);
    refused(&stats, &["--stats", kept], itself);
    refused(&out, &["--save-stats", words], itself);
    refused(&out, &["--save-stats", model], itself);
    refused(&out, &["--save-stats", new], "to the same file");
}

/// Weights that multiply slowly are measured as F16: as a model that has the same numbers in
/// that type.
#[test]
fn what_multiplies_slowly_is_measured_as_the_same_numbers_in_f16() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (slow, same) = (at("slow.gguf"), at("same.gguf"));
    let spec = headshare_testmodels::ModelSpec {
        weight_type: headshare_testmodels::type_named("q4_1").unwrap(),
        ..crate::support::preset("tiny-gqa")
    };
    spec.write(&slow).unwrap();
    let mut command = crate::support::program();
    command.arg("convert").arg(&slow).arg("-o").arg(&same);
    json(command.args([
        "--quantize",
        "f16",
        "--pure",
        "--allow-requantize",
        "--json",
    ]));
    let text = std::fs::read_to_string(words(folder.path())).unwrap();
    let units = |path: &Path| {
        measure(&ModelFile::open(path).unwrap(), text.clone())
            .0
            .units
    };
    let (slow, same) = (units(&slow), units(&same));
    assert_eq!(slow, same);
    let lost = |unit: &headshare_gguf::repair::choose::Unit| unit.shared.map(|of| of.loss);
    assert!(
        slow.iter().filter_map(lost).all(|loss| loss > 1e-3),
        "{slow:?}"
    );
}
