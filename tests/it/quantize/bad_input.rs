//! What cannot be quantized, and what is said of it.

use std::ffi::OsStr;
use std::path::Path;

use super::quantizing;
use crate::repair::steps::{filled, rows, tokens, with_numbers, words};
use crate::support::{Ran, run, written};

#[track_caller]
fn refused(source: &Path, more: &[&str], code: i32, says: &[&str]) -> Ran {
    let out = source.with_extension("out");
    let mut args: Vec<&OsStr> = vec!["convert".as_ref(), source.as_ref(), "-o".as_ref()];
    args.push(out.as_ref());
    args.extend(more.iter().map(OsStr::new));
    let ran = run(&args).refused(code, says);
    assert!(!out.exists(), "{more:?}: something was written");
    ran
}

/// What is no command line.
#[track_caller]
fn no_such(source: &Path, more: &[&str], says: &str) {
    let out = source.with_extension("out");
    let mut args: Vec<&OsStr> = vec!["convert".as_ref(), source.as_ref(), "-o".as_ref()];
    args.push(out.as_ref());
    args.extend(more.iter().map(OsStr::new));
    let ran = run(&args).exits(2);
    assert!(ran.stderr.contains(says), "{ran:?}");
}

#[test]
fn unknown_types_are_refused_with_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let all = ["\"q4\"", "q4_K_M", "iq4_nl", "mxfp4"];
    refused(&source, &["--quantize", "q4"], 2, &all);
    let pattern = ["--quantize", "q4_0", "--tensor-type", "down=q17"];
    refused(&source, &pattern, 2, &["\"q17\"", "q5_0"]);
    let pattern = ["--quantize", "q4_0", "--tensor-type", "down=q4_K_M"];
    refused(&source, &pattern, 2, &["\"q4_K_M\"", "\"down\"", "q5_0"]);
    let pattern = ["--quantize", "q4_0", "--tensor-type", "a(=q5_0"];
    refused(&source, &pattern, 2, &["\"a(\"", "regular expression"]);
    let pattern = ["--quantize", "q4_0", "--tensor-type", "down"];
    no_such(&source, &pattern, "such as ffn_down=q6_K");
}

#[test]
fn types_that_need_importances_are_not_rounded_to_without_any() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wide.gguf");
    let spec = headshare_testmodels::ModelSpec {
        n_embd: 256,
        ..crate::support::preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let says = ["wide.gguf", "iq2_xxs", "importances"];
    refused(&source, &["--quantize", "iq2_xxs"], 2, &says);
}

#[test]
fn a_pattern_that_no_name_matches_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let out = folder.path().join("out");
    let mut args: Vec<&OsStr> = vec!["convert".as_ref(), source.as_ref(), "-o".as_ref()];
    args.push(out.as_ref());
    let more = ["--quantize", "q4_0", "--tensor-type", "FFN_DAWN=q8_0"];
    args.extend(more.iter().map(OsStr::new));
    let ran = run(&args).ok();
    assert!(ran.stderr.contains("ffn_dawn"), "{ran:?}");
}

#[test]
fn a_model_of_these_types_already_is_not_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("f16.gguf");
    let spec = headshare_testmodels::ModelSpec {
        weight_type: headshare_testmodels::type_named("f16").unwrap(),
        ..crate::support::preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    refused(
        &source,
        &["--quantize", "f16"],
        2,
        &["f16.gguf", "already", "f16"],
    );
}

#[test]
fn weights_that_a_type_cannot_hold_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let large = folder.path().join("large.gguf");
    let name = "blk.1.ffn_up.weight";
    filled(&source, &large, &[name], 1e8);
    let rounded = ["--quantize", "q4_0"];
    let says = [name, "q4_0", "too large"];
    refused(&large, &rounded, 3, &says);
    let text = words(folder.path());
    let mut fitted = [&rounded[..], &super::SHORT[..]].concat();
    fitted.extend(["--pure", "--calibrate", text.to_str().unwrap()]);
    refused(&large, &fitted, 3, &says);
}

#[test]
fn what_is_quantized_already_is_refused_unless_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let once = folder.path().join("once.gguf");
    crate::support::json(quantizing(&source, "q8_0", &once, &["--pure"]).arg("--json"));
    let says = ["once.gguf", "q8_0 already"];
    refused(&once, &["--quantize", "q4_0"], 2, &says);
    let again = folder.path().join("again.gguf");
    let allowed = ["--allow-requantize", "--json"];
    crate::support::json(&mut quantizing(&once, "q4_0", &again, &allowed));
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let broken = folder.path().join("broken.gguf");
    let text = words(folder.path());
    let rounded = ["--quantize", "q4_0"];
    let text = ["--calibrate", text.to_str().unwrap()];
    let fitted = [&rounded[..], &text, &super::SHORT].concat();
    let says = ["broken.gguf", "blk.1.ffn_down.weight"];
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        with_numbers(&source, &broken, "blk.1.ffn_down.weight", [value]);
        refused(&broken, &rounded, 3, &says);
        refused(&broken, &fitted, 3, &says);
    }
}

/// Also where passes beforehand sum up what goes into heads and shared blocks, in matrices that
/// keep their type, and where nothing is quantized.
#[test]
fn whatever_is_no_number_is_named_by_whatever_computes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let merged = folder.path().join("merged.gguf");
    let plain = written(folder.path(), "tiny-gqa");
    headshare_testmodels::self_merge(&plain, &[0, 1, 2, 1, 2, 3], &merged).unwrap();
    let round = ["--quantize", "q4_0"];
    let fit = ["--quantize", "q4_0", "--calibrate", text];
    let shared = ["--ratio", "0.3", "--repair", text];
    let matched = ["--ratio", "0.3", "--choose", "match", "--repair", text];
    let budget = ["--fit", "200000", "--calibrate", text];
    for (model, tensor) in [
        ("tiny-gemma3", "blk.1.ffn_down.weight"),
        ("tiny-gpt2", "blk.1.ffn_down.weight"),
        ("tiny-gpt2", "position_embd.weight"),
        ("tiny-moe", "blk.1.ffn_gate_inp.weight"),
        ("merged", "blk.1.ffn_down.weight"),
        ("tiny-gqa", "blk.2.ffn_up.weight"),
    ] {
        let source = match model {
            "merged" => merged.clone(),
            preset => written(folder.path(), preset),
        };
        let broken = folder.path().join("broken.gguf");
        filled(&source, &broken, &[tensor], f32::NAN);
        let mut runs = vec![&round[..], &fit];
        if model == "tiny-gqa" {
            runs.extend([&shared[..], &matched, &budget]);
        }
        for run in runs {
            let run: Vec<&str> = match run.len() {
                2 => run.to_vec(),
                _ => run.iter().copied().chain(super::SHORT).collect(),
            };
            let ran = refused(&broken, &run, 3, &["broken.gguf", tensor]);
            assert!(ran.hint().contains("a good copy"), "{run:?} {ran:?}");
        }
    }
}

#[test]
fn norms_that_are_no_numbers_are_named_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let broken = folder.path().join("broken.gguf");
    let norm = "blk.1.attn_norm.weight";
    filled(&source, &broken, &[norm], f32::NAN);
    let rounded = ["--quantize", "q4_0"];
    refused(&broken, &rounded, 3, &["broken.gguf", norm]);
    let text = words(folder.path());
    let imatrix = folder.path().join("imatrix.gguf");
    let mut fitted = [&rounded[..], &super::SHORT[..]].concat();
    fitted.extend(["--calibrate", text.to_str().unwrap()]);
    fitted.extend(["--save-imatrix", imatrix.to_str().unwrap()]);
    refused(&broken, &fitted, 3, &["broken.gguf", norm]);
    assert!(!imatrix.exists());
}

#[test]
fn windows_that_the_model_has_no_positions_for_are_refused_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gpt2");
    let text = words(folder.path());
    let long = [
        "--quantize",
        "q4_0",
        "--calibrate",
        text.to_str().unwrap(),
        "--window",
        "512",
        "--dry-run",
    ];
    let says = ["tiny-gpt2.gguf", "positions beyond 256"];
    let ran = refused(&source, &long, 2, &says);
    assert!(ran.hint().contains("--window 256"), "{ran:?}");
}

#[test]
fn a_wrong_type_is_found_before_units_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let text = words(folder.path());
    let stats = folder.path().join("stats.json");
    let mut args = vec!["--ratio", "0.3", "--repair", text.to_str().unwrap()];
    args.extend(["--save-stats", stats.to_str().unwrap(), "--quantize", "q9"]);
    args.extend(super::SHORT);
    refused(&source, &args, 2, &["\"q9\"", "q4_K_M"]);
    assert!(!stats.exists(), "units were measured");
}

#[test]
fn rows_that_have_no_other_type_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let says = ["token_embd.weight", "rows of 64", "q1_0 (128)"];
    let ran = refused(&source, &["--quantize", "q1_0"], 2, &says);
    assert!(ran.hint().contains("--tensor-type"), "{ran:?}");
    // Also where a pattern gives it.
    let says = ["blk.0.attn_q.weight", "rows of 64", "q1_0 (128)"];
    let pattern = ["--quantize", "q4_0", "--tensor-type", "attn_q=q1_0"];
    refused(&source, &pattern, 2, &says);
}

#[test]
fn dead_columns_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let dead = folder.path().join("dead.gguf");
    // Norms of zeros: nothing goes into the matrices after them.
    filled(&source, &dead, &["blk.1.ffn_norm.weight"], 0.0);
    let out = folder.path().join("out.gguf");
    crate::support::json(quantizing(&dead, "q4_0", &out, &["--pure", "--json"]).arg("--force"));
    // One dead column: what its weights are says nothing, and the others are what they were.
    let mut bytes = std::fs::read(&source).unwrap();
    let file = headshare_gguf::input::ModelFile::open_plain(&source).unwrap();
    let of = |name: &str| file.gguf.data_range(file.gguf.tensor(name).unwrap()).start as usize;
    let norm = of("blk.1.ffn_norm.weight");
    bytes[norm + 4 * 5..norm + 4 * 6].copy_from_slice(&0f32.to_le_bytes());
    let columns = file.gguf.tensor("blk.1.ffn_up.weight").unwrap().row_elems() as usize;
    let up = of("blk.1.ffn_up.weight");
    for (name, value) in [("one", 0.25f32), ("other", -0.125)] {
        for row in bytes[up..].chunks_exact_mut(4 * columns).take(8) {
            row[4 * 5..4 * 6].copy_from_slice(&value.to_le_bytes());
        }
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let out = folder.path().join(format!("{name}.out"));
        crate::support::json(&mut quantizing(&path, "q4_0", &out, &["--pure", "--json"]));
        let text = tokens(&out);
        assert!(!text.as_array().unwrap().is_empty());
    }
    let both = |tensor: &str| {
        let of = |name: &str| rows(&folder.path().join(name), tensor);
        (of("one.out"), of("other.out"))
    };
    for tensor in [
        "token_embd.weight",
        "blk.0.ffn_down.weight",
        "blk.1.attn_output.weight",
    ] {
        let (one, other) = both(tensor);
        assert!(one == other, "{tensor}");
    }
    // The block with the dead column may get another scale. Of the others, no more is lost than
    // rounding loses twice.
    let (one, other) = both("blk.1.ffn_up.weight");
    assert!(one[8..] == other[8..]);
    let (mut apart, mut all) = (0.0, 0.0);
    for (one, other) in one[..8].iter().zip(&other[..8]) {
        for i in (0..one.len()).filter(|&i| i != 5) {
            apart += f64::from(one[i] - other[i]).powi(2);
            all += f64::from(one[i]).powi(2);
        }
    }
    assert!(apart < 0.015 * all, "{apart} of {all}");
}

#[test]
fn too_little_text_says_how_much_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let text = folder.path().join("short.txt");
    std::fs::write(&text, "a few words").unwrap();
    let text = ["--quantize", "q4_0", "--calibrate", text.to_str().unwrap()];
    refused(&source, &text, 3, &["tokens", "at least"]);
}

#[test]
fn an_importance_matrix_must_be_one_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let model = source.to_str().unwrap();
    let none = ["--quantize", "q4_0", "--imatrix", model];
    refused(&source, &none, 3, &["general.type", "imatrix"]);
    let other = written(folder.path(), "tiny-gpt2");
    let imatrix = folder.path().join("imatrix.gguf");
    let save = ["--save-imatrix", imatrix.to_str().unwrap(), "--json"];
    let out = folder.path().join("out.gguf");
    crate::support::json(&mut quantizing(&other, "q4_0", &out, &save));
    let of_another = ["--quantize", "q4_0", "--imatrix", imatrix.to_str().unwrap()];
    refused(&source, &of_another, 3, &["imatrix.gguf", "another model"]);
    // Nothing that is read is overwritten.
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let over = [
        "--quantize",
        "q4_0",
        "--calibrate",
        text,
        "--save-imatrix",
        text,
        "--force",
    ];
    refused(&source, &over, 2, &["text.txt"]);
    let stdout = [
        "--quantize",
        "q4_0",
        "--calibrate",
        text,
        "--save-imatrix",
        "-",
    ];
    refused(&source, &stdout, 2, &["--save-imatrix -"]);
    let both = ["--quantize", "q4_0", "--imatrix", "a", "--calibrate", "b"];
    no_such(&source, &both, "--imatrix");
}

#[test]
fn an_importance_matrix_of_some_layers_is_named_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let layers = |n_layer: u32, name: &str| {
        let spec = headshare_testmodels::ModelSpec {
            n_embd: 256,
            n_ff: 256,
            n_layer,
            ..crate::support::preset("tiny-gqa")
        };
        let path = folder.path().join(name);
        spec.write(&path).unwrap();
        path
    };
    let (two, three) = (layers(2, "two.gguf"), layers(3, "three.gguf"));
    let imatrix = folder.path().join("imatrix.gguf");
    let mut command = quantizing(&two, "q4_0", &folder.path().join("of-two"), &["--json"]);
    crate::support::json(command.arg("--save-imatrix").arg(&imatrix));
    let given = imatrix.to_str().unwrap();
    let low = ["--quantize", "iq2_xxs", "--imatrix", given];
    refused(&three, &low, 2, &["blk.2.", "importances"]);
    let out = folder.path().join("of-three");
    let mut args: Vec<&OsStr> = vec!["convert".as_ref(), three.as_ref(), "-o".as_ref()];
    args.push(out.as_ref());
    args.extend(["--quantize", "q4_0", "--imatrix", given].map(OsStr::new));
    let ran = run(&args).ok();
    assert!(
        ran.stderr
            .contains("imatrix.gguf has no importances of 7 tensors"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("14 with importances"), "{ran:?}");
    // An older file of llama-imatrix.
    let old = folder.path().join("imatrix.dat");
    std::fs::write(&old, [7u8; 64]).unwrap();
    let old = ["--quantize", "q4_0", "--imatrix", old.to_str().unwrap()];
    refused(&three, &old, 3, &["imatrix.dat", "GGUF", ".dat"]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    for (flag, value) in [
        ("--strength", "1.5"),
        ("--ridge", "0"),
        ("--damping", "nan"),
    ] {
        let args = ["--quantize", "q4_0", "--calibrate", "t", flag, value];
        no_such(&source, &args, flag);
    }
    no_such(
        &source,
        &["--calibrate", "t", "--ratio", "0.1"],
        "--quantize",
    );
    no_such(
        &source,
        &["--quantize", "q4_0", "--windows", "8"],
        "--calibrate",
    );
    no_such(
        &source,
        &["--quantize", "q4_0", "--strength", "0.5"],
        "--calibrate",
    );
}
