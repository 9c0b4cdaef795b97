//! `analyze`: numbers that agree with `plan`, pictures that can be opened, and
//! clear errors.

use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use headshare_testmodels::ModelSpec;
use serde_json::Value;

use super::plan_v1::plan_v1;
use crate::support::{Folder, SMOLLM2, needs, preset, read, small, smollm2};

const TEXT: &str = "The quick brown fox jumps over the lazy dog, and the dog does not mind.\n";

fn text(folder: &Folder) -> PathBuf {
    folder.write("text.txt", TEXT.repeat(8))
}

fn model(folder: &Folder, spec: &ModelSpec) -> PathBuf {
    let path = folder.file("model.gguf");
    spec.write(&path).unwrap();
    path
}

/// The words of an SVG, which must be well-formed as far as is easy to tell.
#[track_caller]
fn svg_texts(path: &Path) -> String {
    let svg = String::from_utf8(read(path)).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    let texts = svg.split("<text ").skip(1).map(|text| {
        let end = text.find("</text>").expect("the text ends");
        text[text.find('>').unwrap() + 1..end].trim()
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// Decodes a PNG; returns its size and how many colours it has.
#[track_caller]
fn png_size(path: &Path) -> (u32, u32, usize) {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(read(path)));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let colours: std::collections::BTreeSet<&[u8]> = pixels.chunks(3).collect();
    (info.width, info.height, colours.len())
}

/// Shape and numbers of an `.npy` file.
fn npy(path: &Path) -> (String, Vec<f32>) {
    let file = read(path);
    let len = usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = String::from_utf8(file[10..10 + len].to_vec()).unwrap();
    let shape = header.split('(').nth(1).unwrap().split(')').next().unwrap();
    let numbers = file[10 + len..].chunks_exact(4);
    let numbers = numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (shape.to_owned(), numbers.collect())
}

fn numbers(matrix: &Value) -> Vec<f32> {
    let rows = matrix.as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap())
        .map(|v| v.as_f64().map_or(f32::NAN, |v| v as f32))
        .collect()
}

#[test]
fn weights_agree_with_the_plan_and_between_outputs() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let (svg, png, array) = (
        folder.file("w.svg"),
        folder.file("w.png"),
        folder.file("w.npy"),
    );
    let source = smollm2();
    let plan = run!["plan", source, "--ratio", "0.2", "--json"].ok().json();
    let ran = run![
        "analyze", "weights", source, "--ratio", "0.2", "-o", svg, "--npy", array, "--json"
    ];
    let found = ran.ok().json();
    let view = &found["views"][0];
    assert_eq!(found["units"].as_array().unwrap().len(), 90);
    assert_eq!(view["parts"], serde_json::json!(["q", "k"]));
    let (matches, aliases) = (&view["matches"], plan["edits"].as_array().unwrap());
    assert_eq!(matches.as_array().unwrap().len(), aliases.len());
    let scores = numbers(&view["scores"]);
    for (m, alias) in matches.as_array().unwrap().iter().zip(aliases) {
        for key in ["layer", "unit", "matched_layer", "matched_unit", "score"] {
            assert_eq!(m[key], alias["share"][key], "{m}");
        }
        let at = |layer: &str, unit: &str| {
            (m[layer].as_u64().unwrap() * 3 + m[unit].as_u64().unwrap()) as usize
        };
        let score = scores[at("layer", "unit") * 90 + at("matched_layer", "matched_unit")];
        assert!((f64::from(score) - m["score"].as_f64().unwrap()).abs() < 2e-6);
    }
    assert_eq!(npy(&array), ("90, 90".to_owned(), scores));
    assert_eq!(view["all"]["n"], 90 * 89 / 2);
    let counts = view["histogram"]["counts"].as_array().unwrap();
    let counted: u64 = counts.iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted, 90 * 89 / 2);

    let texts = svg_texts(&svg);
    for label in [
        "SmolLM2-135M-Instruct.Q4_1.gguf: how alike the weights are",
        "Cosine of q,k, 90 units",
        "marked: 18 matches, ratio 0.2",
        "layer of the unit that would share",
        "Distribution",
        "the 18 matches",
        "29",
    ] {
        assert!(
            texts.lines().any(|text| text.contains(label)),
            "{label}: {texts}"
        );
    }
    run!["analyze", "weights", source, "-o", png].ok();
    let (width, height, colours) = png_size(&png);
    assert!(width > 900 && height > 900 && colours > 100);
}

#[test]
fn separate_parts_are_three_matrices() {
    let folder = Folder::new();
    let (array, svg) = (folder.file("w.npy"), folder.file("w.svg"));
    let source = model(&folder, &preset("tiny-gqa"));
    let ran = run![
        "analyze", "weights", source, "--match", "separate", "--npy", array, "-o", svg, "--json"
    ];
    let found = ran.ok().json();
    let views = found["views"].as_array().unwrap();
    assert_eq!(views.len(), 3);
    let (shape, values) = npy(&array);
    assert_eq!(shape, "3, 8, 8");
    let expected: Vec<f32> = views.iter().flat_map(|v| numbers(&v["scores"])).collect();
    assert_eq!(values, expected);
    let texts = svg_texts(&svg);
    for part in ["q", "k", "v"] {
        assert!(
            texts.contains(&format!("Cosine of {part}, 8 units")),
            "{texts}"
        );
    }
    let ran = run!["analyze", "weights", source, "--match", "separate"].ok();
    assert_eq!(ran.stdout.matches("cosine of").count(), 3, "{ran:#?}");
}

#[test]
fn a_converted_file_is_looked_at_as_what_it_stands_for() {
    let folder = Folder::new();
    let spec = ModelSpec {
        repeat: 2,
        ..preset("tiny-gqa")
    };
    let source = model(&folder, &spec);
    let converted = folder.file("converted.gguf");
    run!["convert", source, "--lossless", "-o", converted].ok();
    let result = |path: &Path| {
        let mut found = run!["analyze", "weights", path, "--json"].ok().json();
        found["path"].take();
        found
    };
    let found = result(&source);
    assert_eq!(found, result(&converted));
    // The second copy of each layer is the first.
    assert_eq!(found["views"][0]["matched"]["min"], 1.0);
}

#[test]
fn attention_is_reported_in_text_json_and_pictures() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let (text, svg, png) = (text(&folder), folder.file("a.svg"), folder.file("a.png"));
    let source = smollm2();
    let ran = run![
        "analyze",
        "attention",
        source,
        "--text",
        text,
        "--ctx",
        "32",
        "--windows",
        "2",
        "-t",
        "1",
        "-o",
        svg,
        "--json"
    ];
    let found = ran.ok().json();
    assert_eq!((&found["ctx"], &found["windows"]), (&32.into(), &2.into()));
    let layers = numbers(&found["layer_similarity"]);
    let heads = numbers(&found["head_similarity"]);
    assert_eq!((layers.len(), heads.len()), (30 * 30, 270 * 270));
    for (matrix, n) in [(&layers, 30), (&heads, 270)] {
        for i in 0..n {
            assert!((matrix[i * n + i] - 1.0).abs() < 1e-6);
        }
        // Attention is never negative.
        assert!(matrix.iter().all(|s| (0.0..=1.0).contains(s)));
    }
    let comparison = &found["comparisons"][0];
    assert_eq!(comparison["all"]["pairs"], 90 * 89 / 2);
    assert_eq!(comparison["across_layers"]["pairs"], 90 * 89 / 2 - 30 * 3);
    assert_eq!(comparison["matched"]["n"], 27);
    let texts = svg_texts(&svg);
    for label in [
        "2 windows of 32 tokens",
        "Layers: cosine",
        "Heads: cosine of their maps, 270 heads",
        "Units against weights (q,k): Pearson",
        "cosine of the attention maps",
        "the 27 matches at ratio 0.3",
    ] {
        assert!(texts.contains(label), "{label}: {texts}");
    }
    let tiny = model(&folder, &preset("tiny-gqa"));
    let ran = run![
        "analyze",
        "attention",
        tiny,
        "--text",
        text,
        "--ctx",
        "64",
        "--windows",
        "1000",
        "-t",
        "1",
        "--match",
        "qk,separate",
        "-o",
        png
    ];
    let ran = ran.ok();
    assert!(ran.stdout.contains("pairs of heads"), "{ran:#?}");
    assert_eq!(ran.stdout.matches("against weights").count(), 4, "{ran:#?}");
    assert!(ran.stderr.contains("note: the text has"), "{ran:#?}");
    assert!(png_size(&png).2 > 50);
}

#[test]
fn ratios_are_those_of_the_plans() {
    let folder = Folder::new();
    let (qk, separate) = (folder.file("qk.gguf"), folder.file("separate.gguf"));
    let lossless = folder.file("lossless.gguf");
    let eight = ModelSpec {
        n_layer: 8,
        ..preset("tiny-gqa")
    };
    let source = model(&folder, &eight);
    run!["convert", source, "--ratio", "0.5", "-o", qk].ok();
    run![
        "convert", source, "--ratio", "0.3", "--match", "separate", "-o", separate
    ]
    .ok();
    let twice_four = ModelSpec {
        repeat: 2,
        ..preset("tiny-gqa")
    };
    let source = model(&folder, &twice_four);
    run!["convert", source, "--lossless", "-o", lossless].ok();
    let svg = folder.file("r.svg");
    let ran = run![
        "analyze", "ratios", qk, separate, lossless, "-o", svg, "--json"
    ];
    let found = ran.ok().json();
    let files = found["files"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    for (file, path) in files.iter().zip([&qk, &separate]) {
        let plan = &run!["inspect", path, "--json"].ok().json()["sharing"]["plan"];
        assert_eq!(
            (&file["match"], &file["ratio"]),
            (&plan["choice"]["by"], &plan["choice"]["ratio"])
        );
        let layers = file["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 8);
        for layer in layers {
            assert_eq!(layer["units"], 2);
            for part in ["q", "k", "v"] {
                let shares = plan["edits"].as_array().unwrap().iter();
                let aliases = shares.map(|edit| &edit["share"]).filter(|alias| {
                    alias["layer"] == layer["layer"]
                        && alias["parts"].as_array().unwrap().contains(&part.into())
                });
                assert_eq!(layer["aliased"][part], aliases.count(), "{layer}");
            }
        }
    }
    assert_eq!(files[2]["planned"], false);
    for (i, layer) in files[2]["layers"].as_array().unwrap().iter().enumerate() {
        let shared = if i < 4 { &0.into() } else { &layer["bytes"] };
        assert_eq!(&layer["shared_bytes"], shared, "layer {i}");
    }
    let texts = svg_texts(&svg);
    for label in [
        "units: qk.gguf (match qk, ratio 0.5)",
        "k: separate.gguf (match separate, ratio 0.3)",
        "bytes: lossless.gguf (lossless)",
        "layer",
    ] {
        assert!(texts.contains(label), "{label}: {texts}");
    }
    let table = run!["analyze", "ratios", qk, lossless].ok().stdout;
    assert_eq!(table.lines().count(), 2 + 2 + 8, "{table}");
    let last = table.lines().last().unwrap();
    assert!(
        last.starts_with("    7") && last.ends_with(" 100.0%"),
        "{table}"
    );
}

#[test]
fn what_a_plan_does_not_explain_has_a_column_of_its_own() {
    let folder = Folder::new();
    let (planned, cut) = (folder.file("planned.gguf"), folder.file("cut.gguf"));
    // Layers written twice: a plan for a few units, the rest is byte-equal.
    let twice_four = ModelSpec {
        repeat: 2,
        ..preset("tiny-gqa")
    };
    let source = model(&folder, &twice_four);
    run!["convert", source, "--ratio", "0.2", "-o", planned].ok();
    // Two units go, one shares.
    let source = model(&folder, &preset("tiny-gqa"));
    let plan = run!["plan", source, "--ratio", "0", "--json"].ok().json();
    let mut plan = plan_v1(&plan);
    let unit =
        |layer: u32, unit: u32| serde_json::json!({"layer": layer, "unit": unit, "score": 0.0});
    plan["dropped"] = [unit(1, 0), unit(3, 1)].into();
    plan["aliases"] = serde_json::json!([{"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 0,
        "matched_layer": 0, "matched_unit": 0, "parts": ["q", "k", "v"], "score": 0.5}]);
    let plan = folder.write("plan.json", plan.to_string());
    run!["convert", source, "--plan", plan, "-o", cut].ok();

    let svg = folder.file("r.svg");
    let found = run!["analyze", "ratios", planned, cut, "-o", svg, "--json"];
    let found = found.ok().json();
    let dropped = found["files"][1]["layers"].as_array().unwrap();
    let dropped: Vec<u64> = dropped
        .iter()
        .map(|l| l["dropped"].as_u64().unwrap())
        .collect();
    assert_eq!(dropped, [0, 1, 0, 1]);
    let texts = svg_texts(&svg);
    for label in [
        "units: planned.gguf",
        "bytes: planned.gguf",
        "units: cut.gguf",
        "dropped: cut.gguf",
    ] {
        assert!(texts.contains(label), "{label}: {texts}");
    }
    for label in ["dropped: planned.gguf", "bytes: cut.gguf"] {
        assert!(!texts.contains(label), "{label}: {texts}");
    }
    let table = run!["analyze", "ratios", cut].ok().stdout;
    let last = table.lines().last().unwrap();
    assert_eq!(last, "    3    0.0%   50.0%", "{table}");
}

#[test]
fn outputs_are_never_replaced_unasked() {
    let folder = Folder::new();
    let source = model(&folder, &small("tiny-gqa"));
    let converted = folder.file("converted.gguf");
    run!["convert", source, "--lossless", "-o", converted].ok();
    let (text, taken) = (text(&folder), folder.write("taken.svg", "mine"));
    for command in [
        vec!["analyze", "weights", source.to_str().unwrap()],
        vec![
            "analyze",
            "attention",
            source.to_str().unwrap(),
            "--text",
            text.to_str().unwrap(),
            "--ctx",
            "16",
            "-t",
            "1",
        ],
        vec!["analyze", "ratios", converted.to_str().unwrap()],
    ] {
        let run = |more: &[&str]| {
            let args: Vec<_> = command
                .iter()
                .chain(more)
                .map(std::ffi::OsStr::new)
                .collect();
            crate::support::run(&args)
        };
        let path = taken.to_str().unwrap();
        std::fs::write(&taken, "mine").unwrap();
        run(&["-o", path]).refused(2, &["taken.svg"]);
        assert_eq!(read(&taken), b"mine");
        run(&["-o", path, "--force"]).ok();
        assert!(read(&taken).starts_with(b"<svg"));
        for (name, says) in [("a.gif", "unknown extension .gif"), ("a", "no extension")] {
            let path = folder.file(name);
            let ran = run(&["-o", path.to_str().unwrap()]).exits(2);
            assert!(
                ran.stderr.contains(says) && ran.stderr.contains(".png"),
                "{ran:#?}"
            );
            assert!(!path.exists());
        }
    }
    let array = folder.write("taken.npy", "mine");
    run!["analyze", "weights", source, "--npy", array].refused(2, &["taken.npy"]);
}

#[test]
fn what_cannot_be_analysed_is_refused_with_a_reason() {
    let folder = Folder::new();
    let text = text(&folder);
    let source = model(&folder, &small("tiny-gqa"));
    let short = folder.write("short.txt", "short");
    let attention = |path: &Path, text: &Path| {
        run![
            "analyze",
            "attention",
            path,
            "--text",
            text,
            "--ctx",
            "64",
            "-t",
            "1"
        ]
    };
    let ran = attention(&source, &short).refused(3, &["short.txt", "too short", "64"]);
    assert!(ran.hint().contains("--ctx"), "{ran:#?}");
    // Before all weights are compared: these are no numbers.
    let nan = folder.file("nan.gguf");
    small("tiny-gqa").write(&nan).unwrap();
    let weights = {
        let file = ModelFile::open_plain(&nan).unwrap();
        let info = file.gguf.tensor("blk.1.attn_k.weight").unwrap();
        file.gguf.data_range(info)
    };
    let mut bytes = read(&nan);
    bytes[weights.start as usize..weights.end as usize].fill(0xff);
    std::fs::write(&nan, bytes).unwrap();
    attention(&nan, &short).refused(3, &["short.txt", "too short"]);
    attention(&nan, &text).refused(1, &["nan.gguf"]);
    let ran = run![
        "analyze",
        "attention",
        source,
        "--text",
        text,
        "--ctx",
        "1024",
        "-t",
        "1"
    ];
    let ran = ran.refused(2, &["--ctx 1024", "model.gguf", "256 tokens"]);
    assert!(ran.hint().contains("--ctx"), "{ran:#?}");
    attention(&source, &folder.file("none.txt")).refused(3, &["none.txt (--text)"]);
    attention(&text, &text).refused(3, &["text.txt"]);
    run!["analyze", "ratios", source].refused(3, &["model.gguf", "plain GGUF"]);
    run!["analyze", "ratios"].exits(2);
    run!["analyze", "attention", source].exits(2);
    run!["analyze", "weights", source, "--ratio", "2"].exits(2);
    run!["analyze"].exits(2);

    let bert = model(&folder, &small("tiny-bert"));
    run!["analyze", "weights", bert].ok();
    attention(&bert, &text).refused(3, &["model.gguf", "encoder"]);
    let mamba = model(&folder, &small("tiny-mamba"));
    run!["analyze", "weights", mamba].refused(1, &["model.gguf", "recurrent"]);
    attention(&mamba, &text).refused(1, &["model.gguf", "recurrent"]);
}
