//! Valid GGUF files that llama.cpp would end the process over: bad input like
//! any other, in one line that names the file.

use std::path::PathBuf;

use headshare_testmodels::{ModelSpec, type_named};

use super::raw::{self, Raw, record};
use crate::support::{Folder, assert_same, preset, small, valley};

/// What is wrong with a model, and what the message must say.
struct Unusable {
    name: &'static str,
    preset: &'static str,
    change: fn(&mut Raw),
    says: &'static str,
}

const EPSILON: &str = "llama.attention.layer_norm_rms_epsilon";
const BLOCKS: &str = "llama.block_count";
const USED: &str = "llama.expert_used_count";

fn put_f32(raw: &mut Raw, key: &str, x: f32) {
    raw.set(key, record(key, raw::F32, &x.to_le_bytes()));
}

fn put_u32(raw: &mut Raw, key: &str, n: u32) {
    raw.set(key, raw::u32(key, n));
}

/// Some that are found before llama.cpp is called, and some that it finds.
const ALL: &[Unusable] = &[
    Unusable {
        name: "no layers",
        preset: "tiny-llama",
        change: |raw| put_u32(raw, BLOCKS, 0),
        says: "key \"llama.block_count\": the model has no layers",
    },
    Unusable {
        name: "too many layers",
        preset: "tiny-llama",
        change: |raw| put_u32(raw, BLOCKS, 513),
        says: "key \"llama.block_count\": 513 layers; llama.cpp loads at most 512",
    },
    Unusable {
        name: "more layers that draft than layers",
        preset: "tiny-llama",
        change: |raw| raw.kvs.push(raw::u32("llama.nextn_predict_layers", 3)),
        says: "key \"llama.nextn_predict_layers\": 3 layers draft tokens, of 2",
    },
    Unusable {
        name: "the same token twice",
        preset: "tiny-llama",
        change: |raw| {
            raw.edit_strings("tokenizer.ggml.tokens", |tokens| {
                tokens[281] = tokens[270].clone();
            });
        },
        says: "key \"tokenizer.ggml.tokens\": tokens 270 and 281 are the same: \"k\"",
    },
    Unusable {
        name: "a number that is none",
        preset: "tiny-llama",
        change: |raw| put_f32(raw, EPSILON, f32::NAN),
        says: "_rms_epsilon\": is not a number (NaN)",
    },
    Unusable {
        name: "a negative epsilon",
        preset: "tiny-llama",
        change: |raw| put_f32(raw, EPSILON, -1e-5),
        says: "_rms_epsilon\": -0.00001 is negative",
    },
    Unusable {
        name: "an unknown way to stretch positions",
        preset: "tiny-llama",
        change: |raw| {
            raw.kvs
                .push(raw::string("llama.rope.scaling.type", "rubber"))
        },
        says: "key \"llama.rope.scaling.type\": llama.cpp knows no \"rubber\"",
    },
    Unusable {
        name: "positions without dimensions",
        preset: "tiny-phi3",
        change: |raw| put_u32(raw, "phi3.rope.dimension_count", 0),
        says: "key \"phi3.rope.dimension_count\": 0 dimensions hold a position",
    },
    Unusable {
        name: "more experts used than there are",
        preset: "tiny-moe",
        change: |raw| put_u32(raw, USED, 5),
        says: "key \"llama.expert_used_count\": 5 experts are used, of 4",
    },
    Unusable {
        name: "experts in groups of different size",
        preset: "tiny-moe",
        change: |raw| raw.kvs.push(raw::u32("llama.expert_group_count", 3)),
        says: "key \"llama.expert_group_count\": 4 experts cannot be in 3 groups",
    },
    Unusable {
        name: "a layer that uses none of its experts",
        preset: "tiny-moe",
        change: |raw| raw.set(USED, raw::u32s(USED, &[2, 0])),
        says: "key \"llama.expert_used_count\": layer 1 uses none of its experts",
    },
    Unusable {
        name: "a matrix of integers",
        preset: "tiny-llama",
        change: |raw| raw.tensor("blk.1.ffn_up.weight").ggml_type = 26,
        says: "tensor \"blk.1.ffn_up.weight\": llama.cpp cannot multiply by i32",
    },
    Unusable {
        name: "a norm of a type that nothing is scaled by",
        preset: "tiny-llama",
        change: |raw| {
            let norm = raw.tensor("blk.0.attn_norm.weight");
            norm.ggml_type = 1;
            norm.data.truncate(norm.data.len() / 2);
        },
        says: "llama.cpp cannot use it: binary-ops.cpp:",
    },
    Unusable {
        name: "a tokenizer of another kind",
        preset: "tiny-llama",
        change: |raw| {
            const MODEL: &str = "tokenizer.ggml.model";
            raw.set(MODEL, raw::string(MODEL, "bert"));
        },
        says: "llama.cpp cannot use it: llama-vocab.cpp:",
    },
    Unusable {
        name: "a tokenizer without bytes",
        preset: "tiny-llama",
        change: |raw| {
            raw.edit_strings("tokenizer.ggml.tokens", |tokens| {
                tokens.iter_mut().for_each(|token| token.push('.'));
            });
        },
        says: "llama.cpp's tokenizer failed",
    },
    Unusable {
        name: "weights that are no numbers",
        preset: "tiny-llama",
        change: |raw| {
            let weights = &mut raw.tensor("blk.1.ffn_down.weight").data;
            weights.fill(0xff);
        },
        says: "the model's output is not a number",
    },
];

impl Unusable {
    fn write(&self, folder: &Folder) -> PathBuf {
        let mut raw = Raw::parse(&small(self.preset).to_bytes().unwrap());
        (self.change)(&mut raw);
        folder.write("unusable.gguf", raw.bytes())
    }

    fn called(name: &str) -> &'static Self {
        let found = ALL.iter().find(|unusable| unusable.name == name);
        found.expect("it is in the table")
    }
}

#[test]
fn run_says_what_is_wrong_with_the_file() {
    let folder = Folder::new();
    for unusable in ALL {
        let path = unusable.write(&folder);
        run!["run", path, "-p", "The", "-n", "2", "-t", "1"]
            .refused(3, &["unusable.gguf: ", unusable.says]);
    }
    // What the files were made of works.
    for preset in ["tiny-llama", "tiny-moe"] {
        let path = folder.file("usable.gguf");
        small(preset).write(&path).unwrap();
        run!["run", path, "-p", "The", "-n", "2", "-t", "1"].ok();
    }
}

#[test]
fn so_does_everything_else_that_runs_a_model() {
    let folder = Folder::new();
    let out = folder.file("out");
    for name in [
        "too many layers",
        "a norm of a type that nothing is scaled by",
    ] {
        let unusable = Unusable::called(name);
        let path = unusable.write(&folder);
        let parts = ["unusable.gguf", unusable.says];
        let text = valley();
        let ran = run![
            "eval",
            "perplexity",
            path,
            "--text",
            text,
            "--ctx",
            "32",
            "--chunks",
            "1",
            "-t",
            "1"
        ];
        ran.refused(3, &parts);
        // A worker finds it, with llama.cpp's own loading and with ours.
        for files in [&["--stock"][..], &[]] {
            let mut bench = crate::support::program();
            bench.args(["-q", "bench", "-p", "4", "-n", "1", "-r", "1", "-t", "1"]);
            bench.args(files).arg(&path);
            crate::support::Ran::of(&mut bench, name.to_owned()).refused(3, &parts);
        }
        if name == "too many layers" {
            continue; // there are not as many to share, which is found first
        }
        let ran = run![
            "-q",
            "analyze",
            "attention",
            path,
            "--text",
            text,
            "--ctx",
            "16",
            "-t",
            "1"
        ];
        ran.refused(3, &parts);
        let ran = run![
            "-q", "convert", path, "-o", out, "--ratio", "0.5", "--repair", text, "--window", "32"
        ];
        ran.refused(3, &parts);
    }
    assert_eq!(folder.names(), ["unusable.gguf"]);
}

#[test]
fn converted_files_are_named_and_not_their_copies() {
    let folder = Folder::new();
    let converted = folder.file("converted.gguf");
    for name in [
        "more layers that draft than layers",
        "a norm of a type that nothing is scaled by",
    ] {
        let unusable = Unusable::called(name);
        let path = unusable.write(&folder);
        run!["convert", path, "--lossless", "-o", converted, "--force"].ok();
        for resolve in ["auto", "map", "expand"] {
            let ran = run![
                "run",
                converted,
                "-p",
                "The",
                "-n",
                "2",
                "-t",
                "1",
                "--resolve",
                resolve
            ];
            ran.refused(3, &["/converted.gguf: ", unusable.says]);
        }
    }
}

/// There are self-merges of more layers than llama.cpp has room for: only
/// running them is not possible.
#[test]
fn a_model_of_525_layers_is_converted_and_expanded_but_not_run() {
    let folder = Folder::new();
    let source = folder.file("source.gguf");
    let spec = ModelSpec {
        n_layer: 5,
        repeat: 105,
        n_embd: 128,
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    run!["plan", source, "--ratio", "0.3"].ok();
    for how in [&["--lossless"][..], &["--ratio", "0.3"]] {
        let (out, expanded) = (folder.file("out.gguf"), folder.file("expanded.gguf"));
        let mut convert = crate::support::program();
        convert.arg("convert").arg(&source).args(how);
        convert.arg("-o").arg(&out).arg("--force");
        crate::support::Ran::of(&mut convert, how.join(" ")).ok();
        run!["inspect", out].ok();
        run!["expand", out, "-o", expanded, "--force"].ok();
        if how == ["--lossless"] {
            run!["verify", out, "--source", source].ok();
            assert_same(&source, &expanded);
        } else {
            run!["verify", out].ok();
        }
        for path in [&source, &out, &expanded] {
            run!["run", path, "-p", "a"].refused(3, &["525 layers", "at most 512"]);
        }
    }
}
