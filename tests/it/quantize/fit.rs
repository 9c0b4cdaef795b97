//! The best model for so many bytes.

use std::path::Path;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, self_merge, type_named};
use serde_json::{Value, json as json_of};

use super::{divergence, plan_of, quantizing, tokens_both_ways};
use crate::repair::steps::{verify, words};
use crate::support::{Ran, json, preset, program, read, run, written};

/// `convert SOURCE --fit BYTES`, of short windows.
pub fn fitting(source: &Path, bytes: u64, out: &Path, more: &[&str]) -> assert_cmd::Command {
    let text = words(out.parent().unwrap());
    let mut command = program();
    command.arg("convert").arg(source).arg("-o").arg(out);
    command.args(["--fit", &bytes.to_string(), "--calibrate"]);
    command.arg(text).args(["--windows", "6", "--window", "64"]);
    command.args(more);
    command
}

pub fn refused(source: &Path, bytes: u64, more: &[&str], code: i32, says: &[&str]) {
    let out = source.with_extension("no");
    let ran = fitting(source, bytes, &out, more).output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(code), "{stderr}");
    for part in says {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert!(!out.exists());
}

#[test]
fn a_model_is_made_to_fit_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let mut last: Option<(f64, f64)> = None;
    for part in [70, 45, 32] {
        let bytes = size * part / 100;
        let out = at(&format!("fit-{part}"));
        let dry = json(fitting(&source, bytes, &out, &["--json"]).arg("--dry-run"));
        assert!(!out.exists());
        let done = json(&mut fitting(&source, bytes, &out, &["--json"]));
        let len = read(&out).len() as u64;
        assert_eq!(done["output"]["bytes"], len);
        // Nearly all the room is used.
        assert!(
            len <= bytes && len + size / 20 > bytes,
            "{part}%: {len} of {bytes}"
        );
        let fit = &done["fit"];
        assert!(fit.get("frontier").is_none());
        // The best of what was made.
        let tried = fit["tried"].as_array().unwrap().iter();
        let tried: Vec<[f64; 2]> = tried
            .map(|t| ["measured", "predicted"].map(|name| t[name].as_f64().unwrap()))
            .collect();
        let best = tried.iter().min_by(|a, b| a[0].total_cmp(&b[0])).unwrap();
        assert!(tried.len() > 1 && fit["predicted"] == best[1], "{fit}");
        assert_eq!(dry["fit"]["predicted"], tried[0][1]);
        assert_eq!(fit["wanted"], bytes);
        let retyped = fit["types"].as_array().unwrap().iter();
        let tensors: u64 = retyped.map(|r| r["tensors"].as_u64().unwrap()).sum();
        assert_eq!(fit["tensors"], tensors);
        let frontier = dry["fit"]["frontier"].as_array().unwrap();
        let bytes_of = |point: &Value| point["bytes"].as_u64().unwrap();
        assert!(
            frontier
                .windows(2)
                .all(|p| bytes_of(&p[0]) > bytes_of(&p[1]))
        );
        // Fewer bytes are predicted, and measured, to cost more.
        let predicted = fit["predicted"].as_f64().unwrap();
        let measured = divergence(&out, &source);
        if let Some((before, lost)) = last {
            assert!(
                predicted > before && measured > lost,
                "{part}%: {predicted} {measured}"
            );
        }
        last = Some((predicted, measured));
        verify(&out, &source);
        tokens_both_ways(&out);
    }
    // Twice the same command, the same bytes.
    let again = at("again");
    json(&mut fitting(&source, size * 45 / 100, &again, &["--json"]));
    assert!(read(&again) == read(&at("fit-45")));
}

#[test]
fn units_and_channels_go_where_types_do_not_reach() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let out = folder.path().join("out");
    // q8_0 alone makes half of F16, and little more than a quarter of F32.
    let more = ["--types", "q8_0", "--json"];
    let bytes = size * 17 / 100;
    let dry = json(fitting(&source, bytes, &out, &more).arg("--dry-run"));
    let done = json(&mut fitting(&source, bytes, &out, &more));
    assert!(dry["fit"]["frontier"].as_array().unwrap().len() > 8);
    let gone = |what: &str| done["fit"][what].as_u64().unwrap();
    assert!(gone("units") > 0 && gone("channels") > 0, "{}", done["fit"]);
    let len = read(&out).len() as u64;
    assert!(len <= bytes && len > size * 15 / 100, "{len} of {size}");
    let file = ModelFile::open(&out).unwrap();
    assert!(file.table.is_none());
    assert_eq!(file.gguf.architecture().unwrap(), Some("deci"));
    verify(&out, &source);
    tokens_both_ways(&out);
}

/// Also where the columns that are left are no whole blocks of the type that it has.
#[test]
fn channels_go_from_a_quantized_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("q8.gguf");
    let spec = ModelSpec {
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let size = read(&source).len() as u64;
    let mut channels = 0;
    for part in [90, 70, 55, 48] {
        let (bytes, out) = (size * part / 100, folder.path().join(part.to_string()));
        let more = ["--types", "q4_0", "--json"];
        let done = json(&mut fitting(&source, bytes, &out, &more));
        assert!(read(&out).len() as u64 <= bytes, "{part}");
        verify(&out, &source);
        channels = done["fit"]["channels"].as_u64().unwrap();
    }
    assert!(channels > 0);
}

#[test]
fn units_share_where_none_can_go() {
    let folder = tempfile::tempdir().unwrap();
    // llama.cpp has one size for all layers of such a model. Blocks are some pages each.
    let source = folder.path().join("model.gguf");
    let spec = ModelSpec {
        n_layer: 6,
        n_embd: 256,
        ..preset("tiny-qwen2")
    };
    spec.write(&source).unwrap();
    let out = folder.path().join("out");
    let types = ["--types", "q8_0", "--json"];
    let rounded = folder.path().join("rounded");
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&rounded);
    json(command.args(["--quantize", "q8_0", "--pure", "--json"]));
    let smallest = read(&rounded).len() as u64;
    // A file of shared units begins each tensor on a page: what types alone reach stays plain.
    let plain = json(fitting(&source, smallest + 1024, &out, &types).arg("--force"));
    assert_eq!(plain["fit"]["shared"], 0, "{plain}");
    let wanted = smallest - 40_000;
    let done = json(fitting(&source, wanted, &out, &types).arg("--force"));
    let fit = &done["fit"];
    assert!(fit["shared"].as_u64().unwrap() > 0, "{fit}");
    assert!(read(&out).len() as u64 <= wanted);
    let file = ModelFile::open(&out).unwrap();
    assert!(file.table.is_some());
    verify(&out, &source);
    tokens_both_ways(&out);
    let say = "smallest that the moves reach";
    refused(&source, smallest / 2, &types, 2, &[say]);
}

#[test]
fn layers_that_are_there_twice_are_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (once, merged) = (at("once"), at("merged"));
    for (has, part) in [("f16", 60), ("q8_0", 90)] {
        let spec = ModelSpec {
            n_embd: 256,
            weight_type: type_named(has).unwrap(),
            ..preset("tiny-gqa")
        };
        spec.write(&once).unwrap();
        self_merge(&once, &[0, 1, 2, 1, 2, 3], &merged).unwrap();
        let lossless = at(&format!("{has}-lossless"));
        let mut command = program();
        command.arg("convert").arg(&merged).arg("-o").arg(&lossless);
        json(command.args(["--lossless", "--json"]));
        let least = read(&lossless).len() as u64;
        let (wanted, out) = (least * part / 100, at(&format!("{has}-fit")));
        let done = json(&mut fitting(&merged, wanted, &out, &["--json"]));
        let len = read(&out).len() as u64;
        assert!(
            len <= wanted && len + least / 20 > wanted,
            "{has}, {part}%: {len} of {wanted}"
        );
        // Two layers with all their matrices and norms, also where these keep their types.
        assert_eq!(done["duplicates"]["tensors"], 2 * 9, "{has}, {part}%");
        verify(&out, &merged);
        tokens_both_ways(&out);
        // Where it is enough to store them once, that is all. The text is read once.
        let out = at(&format!("{has}-once"));
        let text = std::fs::read(words(folder.path())).unwrap();
        let mut command = program();
        command.arg("convert").arg(&merged).arg("-o").arg(&out);
        command.args(["--fit", &(least + 4096).to_string(), "--calibrate", "-"]);
        command.args(["--windows", "6", "--window", "64", "--json"]);
        let done = json(command.write_stdin(text));
        assert_eq!(done["fit"]["predicted"], 0.0);
        assert_eq!(done["duplicates"]["tensors"], 2 * 9);
        assert!(read(&out).len() as u64 <= least + 4096);
        verify(&out, &merged);
    }
    refused(
        &merged,
        1,
        &["--keep-duplicates"],
        2,
        &["--keep-duplicates"],
    );
}

#[test]
fn nothing_that_a_single_move_makes_is_better() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let store = |tensor: &str, to: &str| json_of!({"store": {"tensor": tensor, "type": to}});
    let of_llama = vec![
        store("token_embd.weight", "q4_0"),
        store("blk.1.ffn_down.weight", "q4_0"),
        store("blk.2.attn_q.weight", "mxfp4"),
        json_of!({"drop": {"layer": 1, "unit": 0}}),
        json_of!({"narrow": {"layer": 2, "channels": [[0, 96]]}}),
    ];
    let parts = ["q", "k", "v"];
    let share =
        json_of!({"layer": 1, "unit": 1, "donor_layer": 0, "donor_unit": 0, "parts": parts});
    let of_others = vec![
        store("blk.0.ffn_up.weight", "q4_0"),
        json_of!({"share": share}),
    ];
    for (name, moves) in [("tiny-gqa", of_llama), ("tiny-qwen2", of_others)] {
        let source = written(folder.path(), name);
        let stats = at(&format!("{name}.json"));
        let stats = stats.to_str().unwrap();
        let dry = ["--dry-run", "--json", "--save-stats", stats];
        let size = read(&source).len() as u64;
        json(&mut fitting(&source, size / 2, &at("dry"), &dry));
        for (i, edit) in moves.iter().enumerate() {
            let (single, fit) = (
                at(&format!("{name}-single-{i}")),
                at(&format!("{name}-fit-{i}")),
            );
            let plan = plan_of(&source, &json_of!([edit]));
            // Fitted as well as it can be by itself.
            let mut command = program();
            command.arg("convert").arg(&source).arg("-o").arg(&single);
            command.arg("--plan").arg(plan).arg("--json");
            command.arg("--calibrate").arg(words(folder.path()));
            json(command.args(["--windows", "6", "--window", "64"]));
            let bytes = read(&single).len() as u64;
            let with = ["--stats", stats, "--json"];
            json(&mut fitting(&source, bytes, &fit, &with));
            assert!(read(&fit).len() as u64 <= bytes);
            let (ours, theirs) = (divergence(&fit, &source), divergence(&single, &source));
            println!("{name}: {edit}: {ours:.3e} and {theirs:.3e}");
            assert!(ours <= theirs, "{edit}: {ours} {theirs}");
        }
    }
}

#[test]
fn what_was_measured_serves_any_size() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let stats = at("stats.json");
    let file = stats.to_str().unwrap();
    let some = ["--types", "q8_0,q5_0,q4_0", "--json"];
    let with = |flag| [&some[..], &[flag, file]].concat();
    let dry = [&with("--save-stats")[..], &["--dry-run"]].concat();
    json(&mut fitting(&source, size / 2, &at("out"), &dry));
    json(&mut fitting(
        &source,
        size / 3,
        &at("read"),
        &with("--stats"),
    ));
    json(&mut fitting(&source, size / 3, &at("measured"), &some));
    assert!(read(&at("read")) == read(&at("measured")));
    // Only for what was measured.
    let more = ["--stats", file, "--types", "q8_0,q6_K,q5_1"];
    refused(&source, size / 2, &more, 2, &["q5_1", "was not measured"]);
    let other = written(folder.path(), "tiny-llama");
    let more = with("--stats");
    refused(
        &other,
        size / 3,
        &more,
        3,
        &["stats.json", "source: measured on"],
    );
    let cut = std::fs::read_to_string(&stats)
        .unwrap()
        .replace("\"divergence\":", "\"divergence\":-");
    std::fs::write(&stats, cut).unwrap();
    refused(
        &source,
        size / 3,
        &more,
        3,
        &["stats.json", "numbers that cannot be"],
    );
    std::fs::write(&stats, "{}").unwrap();
    refused(
        &source,
        size / 3,
        &more,
        3,
        &["stats.json", "not a file of what was measured"],
    );
    // Nor is any output another, or an input.
    let over = source.to_str().unwrap();
    refused(
        &source,
        size / 3,
        &["--save-stats", over, "--force"],
        2,
        &["input"],
    );
    let out = source.with_extension("no");
    let same = ["--save-stats", out.to_str().unwrap()];
    refused(&source, size / 3, &same, 2, &["same file"]);
}

/// What was measured of the token embedding in the file `stats`.
fn of_table(stats: &mut Value) -> &mut Value {
    let tensors = stats["tensors"].as_array_mut().unwrap().iter_mut();
    let mut of_table = tensors.filter(|of| of["name"] == "token_embd.weight");
    of_table.next().unwrap()
}

#[test]
fn a_tied_head_gets_weights_of_its_own_where_that_costs_less() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = at("tied.gguf");
    let spec = ModelSpec {
        tied_output: true,
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let size = read(&source).len() as u64;
    let stats = at("stats.json");
    let file = stats.to_str().unwrap();
    let types = ["--types", "q8_0,q4_0,q2_0"];
    let with = |flag, more: &[&'static str]| [&types[..], &[flag, file], more].concat();
    let measured = with("--save-stats", &["--dry-run", "--json"]);
    json(&mut fitting(&source, size / 3, &at("dry"), &measured));
    // What is probed apart makes what both make together, about.
    let mut statistics: Value = serde_json::from_slice(&read(&stats)).unwrap();
    let of = of_table(&mut statistics);
    let [all, table, head] =
        ["divergence", "of_table", "of_head"].map(|name| of[name].as_f64().unwrap());
    assert!(
        table > 0.0 && head > 0.0 && table < all && head < all,
        "{of}"
    );
    assert!((table + head - all).abs() < all / 2.0, "{of}");
    // A model in which it is the table that counts, whose rows are better by themselves.
    of["of_table"] = json_of!(0.03);
    of["of_head"] = json_of!(1e-6);
    std::fs::write(&stats, statistics.to_string()).unwrap();
    let out = at("out");
    let dry = with("--stats", &["--dry-run", "--json"]);
    let dry = json(&mut fitting(&source, size / 3, &out, &dry));
    let ran = fitting(&source, size / 3, &out, &with("--stats", &[])).output();
    let said = String::from_utf8(ran.unwrap().stdout).unwrap();
    let done = with("--stats", &["--json", "--force"]);
    let done = json(&mut fitting(&source, size / 3, &out, &done));
    let len = read(&out).len() as u64;
    assert!(dry["fit"]["output_head"].is_string(), "{}", dry["fit"]);
    assert!(done["output"]["bytes"] == len && len <= size / 3);
    let fit = &done["fit"];
    let head = fit["output_head"].as_str().unwrap();
    let says = format!("the output head has weights of its own, {head}");
    assert!(said.contains(&says), "{said}");
    let made = ModelFile::open(&out).unwrap();
    let type_of = |name: &str| made.gguf.tensor(name).unwrap().ggml_type.to_string();
    assert!(made.table.is_none());
    assert!(type_of("output.weight") == head, "{fit}");
    // The table is looked up, and the head fitted, as all others are.
    let matrices = &done["quantized"]["matrices"];
    assert_eq!(matrices["looked_up"], 1, "{matrices}");
    assert_eq!(matrices["encoded"], 0, "{matrices}");
    verify(&out, &source);
    tokens_both_ways(&out);
    // A plan by hand gives both their types, too, and they are rounded then.
    let store = |tensor: &str, to: &str| json_of!({"store": {"tensor": tensor, "type": to}});
    let edits = json_of!([
        store("output.weight", "q5_0"),
        store("token_embd.weight", "q4_0")
    ]);
    let plan = plan_of(&source, &edits);
    let by_hand = at("by-hand");
    let more = ["--pure", "--json", "--plan", plan.to_str().unwrap()];
    json(&mut quantizing(&source, "q8_0", &by_hand, &more));
    let made = ModelFile::open(&by_hand).unwrap();
    let type_of = |name: &str| made.gguf.tensor(name).unwrap().ggml_type.to_string();
    assert_eq!(type_of("output.weight"), "q5_0");
    assert_eq!(type_of("token_embd.weight"), "q4_0");
    verify(&by_hand, &source);
    tokens_both_ways(&by_hand);
}

#[test]
fn a_head_stays_tied_where_llama_cpp_reads_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("gemma.gguf");
    let spec = ModelSpec {
        arch: "gemma".to_owned(),
        tied_output: true,
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let size = read(&source).len() as u64;
    let stats = folder.path().join("stats.json");
    let more = [
        "--types",
        "q8_0,q4_0",
        "--dry-run",
        "--json",
        "--save-stats",
    ];
    let more = [&more[..], &[stats.to_str().unwrap()]].concat();
    let done = json(&mut fitting(
        &source,
        size / 3,
        &folder.path().join("out"),
        &more,
    ));
    assert!(done["fit"].get("output_head").is_none());
    let mut statistics: Value = serde_json::from_slice(&read(&stats)).unwrap();
    let of = of_table(&mut statistics);
    assert!(
        of["of_table"].is_null() && of.get("of_head").is_none(),
        "{of}"
    );
}

#[test]
fn types_can_be_restricted() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let bytes = read(&source).len() as u64 / 2;
    let out = folder.path().join("out");
    let more = ["--json", "--types", "q8_0,q4_0"];
    let done = json(&mut fitting(&source, bytes, &out, &more));
    for retyped in done["fit"]["types"].as_array().unwrap() {
        let to = retyped["to"].as_str().unwrap();
        assert!(
            [retyped["from"].as_str().unwrap(), "q8_0", "q4_0"].contains(&to),
            "{retyped}"
        );
    }
}

#[test]
fn what_cannot_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let name = source.file_name().unwrap().to_str().unwrap();
    refused(
        &source,
        1000,
        &[],
        2,
        &[name, "smallest that the moves reach"],
    );
    refused(
        &source,
        size,
        &[],
        2,
        &[name, "fits into", "nothing is written"],
    );
    refused(
        &source,
        size / 2,
        &["--types", "q8_0,q17"],
        2,
        &["\"q17\"", "q4_0"],
    );
    refused(
        &source,
        size / 2,
        &["--quantize", "q4_0"],
        2,
        &["--quantize"],
    );
    refused(&source, size / 2, &["--ratio", "0.5"], 2, &["--ratio"]);
    let out = source.with_extension("no");
    let ran: Ran = run(&[
        "convert".as_ref(),
        source.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
        "--fit".as_ref(),
        "20K".as_ref(),
    ]);
    assert!(ran.exits(2).stderr.contains("--calibrate"));
    assert!(!out.exists());
}
