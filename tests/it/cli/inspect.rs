//! What `inspect` says.

use headshare_format::Gguf;
use headshare_testmodels::ModelSpec;
use serde_json::{Value, json};

use super::raw::{self, Raw, tensor};
use crate::support::{Folder, SMOLLM2, needs, preset, read, smollm2};

#[test]
fn a_plain_file_in_numbers() {
    needs!(SMOLLM2);
    let ran = run!["inspect", smollm2(), "--json"].ok();
    // gguf-rs reads its header the same.
    assert_eq!(ran.stderr, "");
    assert_eq!(
        ran.json(),
        json!({
            "path": smollm2().to_str().unwrap(),
            "bytes": 98_362_432,
            "gguf_version": 3,
            "architecture": "llama",
            "alignment": 32,
            "keys": 33,
            "tensors": 272,
            "tensor_bytes": 96_576_768,
            "types": {
                "f32": {"tensors": 61, "bytes": 140_544},
                "q4_1": {"tensors": 210, "bytes": 66_355_200},
                "q8_0": {"tensors": 1, "bytes": 30_081_024},
            },
            "sharing": null,
        })
    );
}

#[test]
fn a_converted_file_in_numbers() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let out = folder.file("out.gguf");
    let result = run!["convert", smollm2(), "--ratio", "0.3", "-o", out, "--json"]
        .ok()
        .json();
    let ran = run!["inspect", out, "--json"].ok();
    assert_eq!(ran.stderr, "");
    let found = ran.json();
    let gguf = Gguf::parse(&read(&out)).unwrap();
    assert_eq!(found["bytes"], std::fs::metadata(&out).unwrap().len());
    assert_eq!(found["architecture"], "llama");
    assert_eq!(found["alignment"], 4096);
    assert_eq!(found["keys"], gguf.kvs().len());
    assert_eq!(found["tensors"], gguf.tensors().len());
    // The types are the logical tensors'.
    assert_eq!(
        found["types"]["q4_1"],
        json!({"tensors": 210, "bytes": 66_355_200})
    );
    assert_eq!(found["types"]["i8"], Value::Null);

    let sharing = &found["sharing"];
    assert_eq!(sharing["format_version"], 1);
    assert_eq!(
        sharing["tool"],
        format!("headshare-gguf {}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(sharing["lossless"], false);
    assert_eq!(sharing["page_size"], 4096);
    assert_eq!(sharing["source_bytes"], 98_362_432);
    assert_eq!(sharing["source_digest"], result["plan"]["source"]);
    assert_eq!(sharing["logical_tensors"], 272);
    assert_eq!(sharing["logical_bytes"], 96_576_768);
    // 27 units of 5 x 64 rows of 576 weights.
    let unit = 5 * 64 * 576 / 32 * 20;
    assert_eq!(sharing["shared_bytes"], 27 * unit);
    assert_eq!(sharing["saved"], result["saved"]);
    assert_eq!(sharing["plan"], result["plan"]);
    let layers = sharing["layers"].as_array().unwrap();
    let aliases = sharing["plan"]["edits"].as_array().unwrap();
    let mut total = 0;
    for layer in layers {
        let n = aliases
            .iter()
            .filter(|a| a["share"]["layer"] == layer["layer"])
            .count();
        assert!(n > 0, "{layer}");
        assert_eq!(layer["aliases"], n);
        assert_eq!(layer["shared_bytes"], n * unit);
        total += n;
    }
    assert_eq!(total, aliases.len());
    let numbers: Vec<u64> = layers
        .iter()
        .map(|l| l["layer"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[test]
fn a_lossless_file_says_which_layers_repeat() {
    let folder = Folder::new();
    let (source, out) = (folder.file("source.gguf"), folder.file("out.gguf"));
    ModelSpec {
        repeat: 2,
        ..preset("tiny-gqa")
    }
    .write(&source)
    .unwrap();
    run![
        "convert",
        source,
        "--lossless",
        "-o",
        out,
        "--page-size",
        "16384"
    ]
    .ok();
    let found = run!["inspect", out, "--json"].ok().json();
    let sharing = &found["sharing"];
    assert_eq!(
        (&sharing["lossless"], &sharing["page_size"]),
        (&json!(true), &json!(16384))
    );
    assert_eq!(sharing["plan"], Value::Null);
    let layers = sharing["layers"].as_array().unwrap();
    let numbers: Vec<u64> = layers
        .iter()
        .map(|l| l["layer"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [4, 5, 6, 7]);
    for layer in layers {
        assert_eq!(layer["bytes"], layer["shared_bytes"], "{layer}");
        assert_eq!(layer["aliases"], 0);
    }
    let text = run!["inspect", out].ok().stdout;
    assert!(
        text.contains("lossless: expand gives the source back"),
        "{text}"
    );
}

#[test]
fn text_from_the_file_does_not_command_the_terminal() {
    let folder = Folder::new();
    let raw = Raw::new(
        vec![raw::string(
            "general.architecture",
            "\u{1b}]0;title\u{7}llama",
        )],
        vec![tensor("t", 24, &[4], vec![0; 4])],
    );
    let path = folder.write("model.gguf", raw.bytes());
    let text = run!["inspect", path].ok().stdout;
    assert!(text.contains("\\u{1b}]0;title\\u{7}llama"), "{text:?}");
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    let json = run!["inspect", path, "--json"].ok().json();
    assert_eq!(json["architecture"], "\u{1b}]0;title\u{7}llama");
}
