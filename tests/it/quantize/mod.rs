//! Quantizing from end to end.

mod bad_input;
mod fit;
mod fit_device;
mod fit_moves;
mod fit_sizes;
mod imatrix;
mod planned;
mod repeated;
mod shared;

use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, type_named};
use serde_json::Value;

use crate::repair::steps::{DECODERS, expand, tokens, verify, words};
use crate::support::{Ran, json, preset, program, read, written};

/// Arguments that keep a conversion short.
const SHORT: [&str; 4] = ["--windows", "6", "--window", "64"];

/// `convert SOURCE -o OUT --quantize TO --calibrate TEXT`, and more.
fn quantizing(source: &Path, to: &str, out: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = quantizing_with(source, to, out, &SHORT);
    command.args(more);
    command
}

fn quantizing_with(source: &Path, to: &str, out: &Path, more: &[&str]) -> assert_cmd::Command {
    let text = words(out.parent().unwrap());
    let mut command = program();
    command.arg("convert").arg(source).arg("-o").arg(out);
    command.args(["--quantize", to, "--calibrate"]).arg(text);
    command.args(more);
    command
}

/// The result, of which a dry run says the size before.
#[track_caller]
fn quantized(source: &Path, to: &str, out: &Path, more: &[&str]) -> Value {
    let run = |last: &str| json(quantizing(source, to, out, more).args(["--json", last]));
    let dry = run("--dry-run");
    let done = run("--force");
    let len = std::fs::metadata(out).unwrap().len();
    assert_eq!(done["output"]["bytes"], len, "{to} {more:?}");
    assert_eq!(dry["output"]["bytes"], len, "{to} {more:?}");
    assert_eq!(dry["saved"], done["saved"], "{to} {more:?}");
    done
}

/// Its tokens, which are those of the plain file that it stands for.
#[track_caller]
fn tokens_both_ways(file: &Path) -> Value {
    let tokens = tokens(file);
    let plain = plain_of(file);
    if plain != file {
        assert_eq!(tokens, self::tokens(&plain), "{}", file.display());
    }
    tokens
}

/// The plain file that `file` stands for, which may be itself.
#[track_caller]
fn plain_of(file: &Path) -> PathBuf {
    if ModelFile::open(file).unwrap().table.is_none() {
        return file.to_owned();
    }
    let plain = file.with_extension("plain");
    let _ = std::fs::remove_file(&plain);
    expand(file, &plain);
    plain
}

/// A file with a plan for `source`.
fn plan_of(source: &Path, edits: &Value) -> PathBuf {
    let digest = blake3::hash(&read(source)).to_hex();
    let plan =
        serde_json::json!({"version": 2, "source": format!("blake3:{digest}"), "edits": edits});
    let file = source.with_extension("plan.json");
    std::fs::write(&file, plan.to_string()).unwrap();
    file
}

/// The mean divergence of `file` from `base`, in nats.
fn divergence(file: &Path, base: &Path) -> f64 {
    let text = words(file.parent().unwrap());
    let mut command = program();
    command.args(["eval", "perplexity"]).arg(file);
    command.arg("--text").arg(text).arg("--base").arg(base);
    command.args(["--ctx", "64", "--chunks", "12", "--json"]);
    json(&mut command)["base"]["kl_mean"].as_f64().unwrap()
}

#[test]
fn every_kind_of_model_is_quantized_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    // Of the last two the heads are not known.
    let others = ["tiny-falcon", "tiny-refact", "tiny-mamba"];
    for name in DECODERS.into_iter().chain(others) {
        let source = written(folder.path(), name);
        let out = folder.path().join(format!("{name}.q.gguf"));
        let done = quantized(&source, "q4_0", &out, &["--pure"]);
        let counts = &done["quantized"]["matrices"];
        let fitted = counts["fitted"].as_u64().unwrap() + counts["encoded"].as_u64().unwrap();
        assert!(fitted >= 8, "{name}: {counts}");
        let of_types = ModelFile::open(&out).unwrap();
        let quantized = of_types.gguf.tensors().iter();
        let quantized = quantized.filter(|t| t.ggml_type.name() == "q4_0").count();
        assert!(quantized >= 8, "{name}: {quantized} tensors");
        tokens_both_ways(&out);
        verify(&out, &source);
    }
}

#[test]
fn what_is_not_fitted_is_said_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let said = |name: &str, more: &[&str]| {
        let source = written(folder.path(), name);
        let out = folder.path().join(format!("{name}.q.gguf"));
        let ran = Ran::of(
            &mut quantizing_with(&source, "q4_0", &out, more),
            name.to_owned(),
        )
        .ok();
        ran.stdout
    };
    let parallel = said("tiny-falcon", &SHORT);
    let why = "a sum with the other branch of the layer follows blk.0.";
    assert!(
        parallel.contains("without a target: 8, since"),
        "{parallel}"
    );
    assert!(parallel.contains(why), "{parallel}");
    let few = said("tiny-gqa", &["--windows", "2", "--window", "16"]);
    assert!(few.contains("too few tokens came to matrices of "), "{few}");
    assert!(
        few.contains("blk.0.ffn_down.weight has had 32 and needs 64"),
        "{few}"
    );
    // Each expert has its own tokens: enough came to the other matrices.
    let experts = said("tiny-moe", &["--windows", "2", "--window", "32"]);
    for part in [
        "rounded with importances, for want of tokens",
        "too few tokens came to matrices of 12 tensors.",
        "_exps.weight has had ",
    ] {
        assert!(experts.contains(part), "{experts}");
    }
}

/// Weights that are plain numbers afterwards, too, have nothing to make up for.
#[test]
fn plain_numbers_stay_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("f16.gguf");
    let spec = ModelSpec {
        weight_type: type_named("f16").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let [fitted, rounded] = ["fitted", "rounded"].map(|name| folder.path().join(name));
    json(&mut quantizing(&source, "f32", &fitted, &["--json"]));
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&rounded);
    json(command.args(["--quantize", "f32", "--json"]));
    let [fitted, rounded] = [&fitted, &rounded].map(|file| ModelFile::open(file).unwrap());
    for (a, b) in fitted.gguf.tensors().iter().zip(rounded.gguf.tensors()) {
        assert_eq!(a.name, b.name);
        let [a_bytes, b_bytes] = [
            fitted.bytes(fitted.gguf.data_range(a)),
            rounded.bytes(rounded.gguf.data_range(b)),
        ];
        assert!(a_bytes == b_bytes, "{}", a.name);
    }
}

#[test]
fn fitting_is_closer_to_the_source_than_rounding_and_gives_the_same_bytes_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    for to in ["q4_0", "iq4_nl", "q5_0", "mxfp4"] {
        let (fitted, again, rounded) = (file("fitted"), file("again"), file("rounded"));
        quantized(&source, to, &fitted, &["--pure"]);
        json(quantizing(&source, to, &again, &["--pure"]).args(["--force", "--json"]));
        assert!(read(&fitted) == read(&again), "{to}: other bytes");
        let mut command = program();
        command.arg("convert").arg(&source).arg("-o").arg(&rounded);
        json(command.args(["--quantize", to, "--pure", "--force", "--json"]));
        let [of_fitted, of_rounded] = [&fitted, &rounded].map(|f| ModelFile::open(f).unwrap());
        assert_eq!(of_fitted.tensor_bytes(), of_rounded.tensor_bytes(), "{to}");
        let [fitted, rounded] = [&fitted, &rounded].map(|file| divergence(file, &source));
        assert!(
            fitted < 0.9 * rounded,
            "{to}: {fitted} nats, rounded {rounded}"
        );
    }
}

#[test]
fn every_type_and_mixture_gives_a_file_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wide.gguf");
    let spec = ModelSpec {
        n_embd: 256,
        n_ff: 256,
        n_layer: 1,
        weight_type: type_named("f16").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let mixtures = headshare_runtime::mixture::MIXTURES;
    let types = ["mxfp4", "nvfp4"];
    let mixed = mixtures
        .iter()
        .map(|m| m.name)
        .filter(|name| *name != "f16");
    for to in mixed.chain(types) {
        let out = folder.path().join(format!("{to}.gguf"));
        let few = ["--windows", "2", "--window", "64", "--json"];
        let done = json(&mut quantizing_with(&source, to, &out, &few));
        let stated = mixtures.iter().find(|m| m.name == to);
        let file = ModelFile::open(&out).unwrap();
        if let Some(mixture) = stated {
            let number = file.gguf.u64_value("general.file_type").unwrap();
            assert_eq!(number, Some(mixture.file_type.into()), "{to}");
        }
        assert!(done["plan"]["edits"].as_array().unwrap().len() > 6, "{to}");
        tokens(&out);
    }
}

#[test]
fn what_is_equal_in_the_source_is_encoded_once_and_stays_shared() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (once, merged, out) = (file("once"), file("merged"), file("out"));
    for name in ["tiny-gqa", "tiny-moe"] {
        in_f16(name).write(&once).unwrap();
        let layers = [0, 1, 2, 1, 2, 3];
        headshare_testmodels::self_merge(&once, &layers, &merged).unwrap();
        let done = quantized(&merged, "q4_K_M", &out, &["--page-size", "4096"]);
        let saved = done["saved"]["resident_bytes"].as_u64().unwrap();
        assert!(saved > 0, "{name}: {done}");
        // Two layers are there twice, with all their matrices and norms.
        let tensors = done["duplicates"]["tensors"].as_u64().unwrap();
        assert!(tensors >= 2 * 9, "{name}: {done}");
        // Each matrix is counted once: also an output head.
        let counts = &done["quantized"]["matrices"];
        let encoded = ["fitted", "encoded", "weighted"].map(|how| counts[how].as_u64().unwrap());
        let experts = if name == "tiny-moe" { 4 } else { 1 };
        assert_eq!(
            encoded.iter().sum::<u64>(),
            4 * (4 + 3 * experts) + 1,
            "{name}: {counts}"
        );
        let converted = ModelFile::open(&out).unwrap();
        assert!(converted.table.is_some(), "{name}");
        tokens_both_ways(&out);
        verify(&out, &merged);
        let plain = out.with_extension("plain");
        let plain = ModelFile::open(&plain).unwrap();
        // Layers 3 and 4 are 1 and 2 once more, matrix by matrix.
        for (again, first) in [(3, 1), (4, 2)] {
            for part in ["attn_q", "attn_output"] {
                let bytes = |layer: u32| {
                    let name = format!("blk.{layer}.{part}.weight");
                    let info = plain.gguf.tensor(&name).unwrap();
                    plain.bytes(plain.gguf.data_range(info)).to_vec()
                };
                assert!(bytes(again) == bytes(first), "{name}: {part} of {again}");
            }
        }
    }
}

/// The preset `name` with matrices in F16.
fn in_f16(name: &str) -> ModelSpec {
    ModelSpec {
        weight_type: type_named("f16").unwrap(),
        ..preset(name)
    }
}

/// A self-merge of `layers` of a model in F16.
fn merged(folder: &Path, layers: &[u32]) -> PathBuf {
    let (once, merged) = (folder.join("once"), folder.join("merged"));
    in_f16("tiny-gqa").write(&once).unwrap();
    headshare_testmodels::self_merge(&once, layers, &merged).unwrap();
    merged
}

#[test]
fn heads_share_in_a_model_whose_layers_are_equal_when_it_is_quantized() {
    let folder = tempfile::tempdir().unwrap();
    // Its layers are all one.
    let merged = merged(folder.path(), &[1, 1, 1, 1]);
    let file = |name: &str| folder.path().join(name);
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    for (name, more) in [
        ("matched", vec!["--ratio", "0.3"]),
        (
            "repaired",
            vec!["--ratio", "0.3", "--repair", text, "--choose", "match"],
        ),
    ] {
        let out = file(name);
        let done = quantized(&merged, "q4_0", &out, &more);
        assert!(
            done["duplicates"]["tensors"].as_u64().unwrap() > 8,
            "{name}: {done}"
        );
        tokens_both_ways(&out);
        verify(&out, &merged);
    }
}

#[test]
fn an_output_head_that_is_the_embedding_once_more_is_encoded_as_a_tied_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (tied, twice) = (file("tied.gguf"), file("twice.gguf"));
    let of = |is_tied: bool| ModelSpec {
        tied_output: is_tied,
        ..in_f16("tiny-gqa")
    };
    of(true).write(&tied).unwrap();
    of(false).write(&twice).unwrap();
    let mut bytes = read(&twice);
    let source = ModelFile::open(&twice).unwrap();
    let [table, head] = ["token_embd.weight", "output.weight"]
        .map(|name| source.gguf.data_range(source.gguf.tensor(name).unwrap()))
        .map(|range| range.start as usize..range.end as usize);
    bytes.copy_within(table, head.start);
    std::fs::write(&twice, bytes).unwrap();
    let of_tied = quantized(&tied, "q4_0", &file("of-tied"), &["--pure"]);
    let of_twice = quantized(&twice, "q4_0", &file("of-twice"), &["--pure"]);
    assert_eq!(
        of_tied["quantized"]["matrices"],
        of_twice["quantized"]["matrices"]
    );
    assert_eq!(
        divergence(&file("of-tied"), &tied),
        divergence(&file("of-twice"), &twice)
    );
}

#[test]
fn what_is_equal_stays_as_often_as_it_is_there_if_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (out, shared) = (file("out"), file("shared"));
    let merged = merged(folder.path(), &[0, 1, 2, 1, 2, 3]);
    let done = quantized(&merged, "q4_0", &out, &["--pure", "--keep-duplicates"]);
    assert_eq!(done["duplicates"]["tensors"], 0, "{done}");
    assert_eq!(done["plan"]["keep_duplicates"], true, "{done}");
    quantized(&merged, "q4_0", &shared, &["--pure"]);
    // A plain file, in which each copy is fitted to its own place.
    let plain = ModelFile::open(&out).unwrap();
    assert!(plain.table.is_none());
    let bytes = |layer: u32| {
        let info = plain.gguf.tensor(&format!("blk.{layer}.ffn_down.weight"));
        plain.bytes(plain.gguf.data_range(info.unwrap())).to_vec()
    };
    assert!(bytes(1) != bytes(3) && bytes(2) != bytes(4));
    tokens(&out);
    verify(&out, &merged);
    // The plan says it for a conversion by it, too.
    let plan = file("plan.json");
    std::fs::write(&plan, done["plan"].to_string()).unwrap();
    let mut command = program();
    command.arg("convert").arg(&merged).arg("--plan").arg(&plan);
    json(command.arg("-o").arg(file("again")).args(["--json"]));
    assert!(ModelFile::open(&file("again")).unwrap().table.is_none());
    let [own, common] = [&out, &shared].map(|file| divergence(file, &merged));
    assert!(own < 1.1 * common, "{own} nats, {common} encoded once");
    let mut command = program();
    command
        .arg("convert")
        .arg(&merged)
        .arg("-o")
        .arg(file("no"));
    command.args(["--lossless", "--keep-duplicates"]);
    let ran = Ran::of(&mut command, "convert".to_owned()).exits(2);
    assert!(ran.stderr.contains("--keep-duplicates"), "{ran:?}");
}

#[test]
fn what_is_left_after_dropping_and_narrowing_is_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-llama");
    let edits = serde_json::json!([
        {"drop": {"layer": 1, "unit": 2}},
        {"narrow": {"layer": 2, "channels": [[0, 64], [96, 128]]}},
        {"share": {"layer": 3, "unit": 1, "donor_layer": 0, "donor_unit": 2,
                   "parts": ["q", "k", "v"]}},
        {"store": {"tensor": "blk.0.ffn_up.weight", "type": "q8_0"}},
    ]);
    let plan = plan_of(&source, &edits);
    let out = file("out.gguf");
    quantized(
        &source,
        "q5_0",
        &out,
        &["--pure", "--plan", plan.to_str().unwrap()],
    );
    tokens_both_ways(&out);
    verify(&out, &source);
    let plain = ModelFile::open(&out.with_extension("plain")).unwrap();
    let of = |name: &str| {
        let info = plain.gguf.tensor(name).unwrap();
        (info.ggml_type.name(), info.dims.clone())
    };
    assert_eq!(of("blk.1.attn_q.weight"), ("q5_0", vec![64, 48]));
    assert_eq!(of("blk.2.ffn_down.weight"), ("q5_0", vec![96, 64]));
    assert_eq!(of("blk.0.ffn_up.weight").0, "q8_0");
}

#[test]
fn what_keeps_its_type_makes_up_for_what_others_lose() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plain = written(folder.path(), "tiny-gqa");
    let source = at("source.gguf");
    json(quantizing(&plain, "q5_1", &source, &["--pure"]).arg("--json"));
    let coarser = ["--pure", "--allow-requantize", "--tensor-type"];
    let embedding = [&coarser[..], &["token_embd=q4_0"]].concat();
    let fitted = at("fitted.gguf");
    let done = quantized(&source, "q5_1", &fitted, &embedding);
    let refitted = &done["quantized"]["matrices"]["refitted"];
    assert!(refitted.as_u64().unwrap() > 8, "{done}");
    verify(&fitted, &source);
    tokens_both_ways(&fitted);
    // Without a text, one tensor changes and the others stay.
    let rounded = at("rounded.gguf");
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&rounded);
    json(
        command
            .args(["--quantize", "q5_1", "--json"])
            .args(embedding),
    );
    let (with, without) = (divergence(&fitted, &source), divergence(&rounded, &source));
    assert!(with < 0.9 * without, "{with} {without}");
    // What runs before all that changes keeps its bytes.
    let late = [&coarser[..], &["^output=q4_0"]].concat();
    let done = quantized(&source, "q5_1", &at("late.gguf"), &late);
    assert_eq!(done["quantized"]["matrices"]["refitted"], 0, "{done}");
}

#[test]
fn the_model_can_write_the_calibration_text_itself() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let (out, again) = (folder.path().join("out"), folder.path().join("again"));
    let run = |out: &Path, more: &[&str]| {
        let mut command = program();
        command.arg("convert").arg(&source).arg("-o").arg(out);
        command.args([
            "--quantize",
            "q4_0",
            "--pure",
            "--calibrate",
            "self",
            "--json",
        ]);
        json(command.args(SHORT).args(more))
    };
    let done = run(&out, &[]);
    let by = &done["quantized"]["by"]["calibration"];
    assert_eq!(by["windows"], 6, "{done}");
    run(&again, &[]);
    assert!(read(&out) == read(&again), "other bytes");
    tokens_both_ways(&out);
    verify(&out, &source);
    let dry = run(&folder.path().join("dry"), &["--dry-run"]);
    assert_eq!(dry["output"]["bytes"], done["output"]["bytes"]);
    assert_eq!(dry["quantized"]["by"]["calibration"]["windows"], 6, "{dry}");
    // What it wrote is another text than the one for tests, and does as well on it.
    let (given, rounded) = (folder.path().join("given"), folder.path().join("rounded"));
    quantized(&source, "q4_0", &given, &["--pure"]);
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&rounded);
    json(command.args(["--quantize", "q4_0", "--pure", "--json"]));
    let [own, given, rounded] = [&out, &given, &rounded].map(|file| divergence(file, &source));
    assert!(
        own < rounded,
        "{own} nats, {given} with the text, {rounded} rounded"
    );
}

#[test]
fn patterns_give_single_tensors_other_types() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let out = folder.path().join("out.gguf");
    let more = [
        "--tensor-type",
        r"blk\.0\..*down=q8_0",
        "--tensor-type",
        "down=q5_0",
    ];
    quantized(&source, "q4_0", &out, &more);
    let file = ModelFile::open(&out).unwrap();
    let of = |name: &str| file.gguf.tensor(name).unwrap().ggml_type.name();
    assert_eq!(of("blk.0.ffn_down.weight"), "q8_0");
    assert_eq!(of("blk.1.ffn_down.weight"), "q5_0");
    assert_eq!(of("blk.1.ffn_up.weight"), "q4_0");
    assert_eq!(of("blk.1.ffn_norm.weight"), "f32");
}
