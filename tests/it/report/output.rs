//! What a report says and writes.

use serde_json::Value;

use super::{backwards, model, report};
use crate::support::{Folder, preset, questions, read, valley};

#[test]
fn one_table_one_picture_and_who_wins() {
    let folder = Folder::new();
    let model = model(&folder);
    let task = questions();
    let task = task.to_str().unwrap();
    let valley_text = String::from_utf8(read(&valley())).unwrap();
    let text = folder.write("fit.txt", backwards(&valley_text));
    let repair = [
        "--repair",
        text.to_str().unwrap(),
        "--windows",
        "2",
        "--window",
        "32",
    ];
    let more = [
        &["--ratios", "0.5,0.25,0.5", "--task", task, "--json", "-q"],
        &repair[..],
    ]
    .concat();
    let ran = report(&model, &folder, &more).ok();
    assert_eq!(ran.stderr, "");
    let json = ran.json();
    let written: Value = serde_json::from_slice(&read(&folder.file("out/report.json"))).unwrap();
    assert_eq!(json, written);

    let rows = json["rows"].as_array().unwrap();
    let names: Vec<(&str, Option<&str>, Option<f64>)> = rows
        .iter()
        .map(|row| {
            let form = row["form"].as_str().unwrap();
            (form, row["series"].as_str(), row["ratio"].as_f64())
        })
        .filter(|(form, ..)| *form != "lower")
        .collect();
    assert_eq!(
        names,
        [
            ("source", None, None),
            ("converted", Some("shared"), Some(0.25)),
            ("converted", Some("repaired"), Some(0.25)),
            ("converted", Some("shared"), Some(0.5)),
            ("converted", Some("repaired"), Some(0.5)),
        ]
    );
    let bytes = |row: &Value| row["made"]["file_bytes"].as_u64().unwrap();
    for row in rows {
        assert!(row["quality"]["perplexity"].as_f64().unwrap() > 1.0);
        let against = &row["quality"]["base"];
        assert_eq!(against.is_null(), row["form"] == "source", "{row}");
        assert!(row["tasks"][0]["accuracy_norm"].is_number(), "{row}");
        for pace in ["prefill", "decode"] {
            assert!(row["speed"][pace]["ratio"].as_f64().unwrap() > 0.0);
        }
        if row["form"] != "converted" {
            continue;
        }
        // As small as the file that it is held against, or smaller.
        let rival = &rows[row["rival"].as_u64().unwrap() as usize];
        assert_eq!(rival["form"], "lower");
        assert!(bytes(rival) <= bytes(row), "{row} {rival}");
        assert!(bytes(row) < bytes(&rows[0]));
    }
    let ways = json["source_ways"].as_array().unwrap();
    let ways: Vec<&str> = ways.iter().map(|w| w["name"].as_str().unwrap()).collect();
    assert_eq!(ways, ["stock, mmap", "stock, no mmap"]);
    let verdicts = json["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 2);
    assert_eq!(verdicts[0]["ratio"], 0.25);

    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.file("out")).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "cells",
            "quality.png",
            "quality.svg",
            "report.json",
            "report.md"
        ]
    );
    let markdown = String::from_utf8(read(&folder.file("out/report.md"))).unwrap();
    assert!(markdown.contains(json["summary"].as_str().unwrap()));
    let svg = String::from_utf8(read(&folder.file("out/quality.svg"))).unwrap();
    assert!(svg.contains("perplexity") && svg.contains("file size, MB"));
    assert!(read(&folder.file("out/quality.png")).starts_with(b"\x89PNG"));

    // Printed instead, the report is the Markdown; the models are kept.
    let more = [
        &["--ratios", "0.25,0.5", "--task", task, "-q", "--keep"],
        &repair[..],
    ]
    .concat();
    let ran = report(&model, &folder, &more).ok();
    assert_eq!(ran.stdout, markdown);
    let json: Value = serde_json::from_slice(&read(&folder.file("out/report.json"))).unwrap();
    assert_eq!(json, written);
    for (name, row) in [("shared-0.25", 1), ("repaired-0.25", 2)] {
        let file = folder.file(&format!("out/files/{name}.gguf"));
        assert_eq!(read(&file).len() as u64, bytes(&rows[row]), "{name}");
        run!("verify", file).ok();
    }
    // Any llama.cpp program reads the plain alternative.
    let files = std::fs::read_dir(folder.file("out/files")).unwrap();
    let rivals: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("lower-"))
        .collect();
    assert!(!rivals.is_empty());
    for rival in rivals {
        run!("run", rival, "-p", "a", "-n", "3", "--temp", "0", "-q").ok();
        run!(
            "eval",
            "perplexity",
            rival,
            "--text",
            valley(),
            "--ctx",
            "64",
            "-t",
            "1",
            "-q"
        )
        .ok();
    }
}

#[test]
fn what_is_byte_equal_wins_at_no_cost() {
    let folder = Folder::new();
    let path = folder.file("merge.gguf");
    let spec = headshare_testmodels::ModelSpec {
        repeat: 2,
        n_embd: 128,
        ..preset("tiny-llama")
    };
    spec.write(&path).unwrap();
    let json = report(&path, &folder, &["--ratios", "0", "--json", "-q"])
        .ok()
        .json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows[1]["made"]["changed"], 0);
    assert_eq!(rows[1]["quality"]["base"]["kl_mean"], 0.0);
    assert_eq!(json["verdicts"][0]["winner"], "converted", "{json}");
    let summary = json["summary"].as_str().unwrap();
    assert!(summary.contains("costs nothing"), "{summary}");
}
