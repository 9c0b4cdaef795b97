//! What is made to fit, beside llama.cpp's files of the same size.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use serde_json::Value;

use super::resumed::kept_and_new;
use super::{backwards, model, report};
use crate::support::{Folder, Ran, read, valley};

/// Sizes of `percent` of the model, as they are given.
fn sizes(model: &Path, percent: &[u64]) -> (Vec<u64>, String) {
    let whole = read(model).len() as u64;
    let sizes: Vec<u64> = percent.iter().map(|part| whole * part / 100).collect();
    let given: Vec<String> = sizes.iter().map(u64::to_string).collect();
    (sizes, given.join(","))
}

fn fitted(model: &Path, folder: &Folder, sizes: &str, text: &Path, more: &[&str]) -> Ran {
    let calibrate = ["--fit", sizes, "--calibrate", text.to_str().unwrap()];
    let windows = ["--windows", "6", "--window", "32"];
    report(model, folder, &[&calibrate, &windows[..], more].concat())
}

/// Words that the report is not measured on, in this order.
fn text(folder: &Folder) -> PathBuf {
    let all = String::from_utf8(read(&valley())).unwrap();
    folder.write("fit.txt", backwards(&all))
}

fn bytes(row: &Value) -> u64 {
    row["made"]["file_bytes"].as_u64().unwrap()
}

fn names(folder: &Folder, under: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder.file(under)).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

#[test]
fn each_size_has_ours_and_what_llama_cpp_makes() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = text(&folder);
    let (wanted, given) = sizes(&model, &[30, 55]);
    let more = ["--json", "--keep"];
    let json = fitted(&model, &folder, &given, &text, &more).ok().json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(
        json["settings"]["sizes"],
        serde_json::json!([wanted[1], wanted[0]])
    );
    assert_eq!(json["calibration"]["path"], text.to_str().unwrap());
    for (&size, percent) in wanted.iter().zip([30, 55]) {
        let here: Vec<&Value> = rows.iter().filter(|row| row["size"] == size).collect();
        let forms: Vec<&str> = here
            .iter()
            .map(|row| row["form"].as_str().unwrap())
            .collect();
        assert_eq!(forms[..3], ["converted", "plain", "imatrix"], "{percent}%");
        assert!(forms.len() == 3 || forms[3..] == ["mixture"], "{forms:?}");
        for row in &here {
            assert!(bytes(row) <= size, "{percent}%: {row}");
            assert!(row["quality"]["base"]["kl_mean"].is_number());
            assert!(row["speed"]["weights_pss_bytes"].is_number(), "{row}");
        }
        // Nearly all the room is used: a tensor of the tiny model is 4% of it.
        let whole = bytes(&rows[0]);
        assert!(
            here[..3].iter().all(|row| bytes(row) + whole / 20 > size),
            "{percent}%"
        );
        // The same types with and without importances.
        assert_eq!(here[1]["made"]["how"], here[2]["made"]["how"]);
        // The best of them is the rival.
        let rival = &rows[here[0]["rival"].as_u64().unwrap() as usize];
        assert_eq!(rival["size"], size);
        let perplexity = |row: &Value| row["quality"]["perplexity"].as_f64().unwrap();
        let kl = |row: &Value| row["quality"]["base"]["kl_mean"].as_f64().unwrap();
        assert!(here[1..].iter().all(|row| kl(row) >= kl(rival)));
        let to_rival = here[0]["to_rival"]["ratio"].as_f64().unwrap();
        let ratio = perplexity(here[0]) / perplexity(rival);
        assert!((to_rival / ratio - 1.0).abs() < 1e-6, "{to_rival} {ratio}");
    }
    let verdicts = json["verdicts"].as_array().unwrap();
    let of: Vec<u64> = verdicts
        .iter()
        .map(|v| v["size"].as_u64().unwrap())
        .collect();
    assert_eq!(of, [wanted[1], wanted[0]]);
    let written = String::from_utf8(read(&folder.file("out/report.md"))).unwrap();
    assert!(
        written.starts_with("# model.gguf in fewer bytes"),
        "{written}"
    );
    assert!(
        written.contains(&format!("| {} |", grouped(bytes(&rows[1])))),
        "{written}"
    );

    // Really written are plain files of that size.
    let files = names(&folder, "out/files");
    assert!(
        files.iter().any(|name| name.starts_with("imatrix-")),
        "{files:?}"
    );
    for name in files {
        let path = folder.file(&format!("out/files/{name}"));
        let size = wanted.iter().find(|size| name.contains(&size.to_string()));
        let file = ModelFile::open(&path).unwrap();
        assert!(file.table.is_none(), "{name}");
        let at_most = size.unwrap_or(&wanted[1]);
        assert!(file.len() <= *at_most, "{name}");
    }

    // What is measured is measured once: the second size reads it.
    let cells = names(&folder, "out/cells");
    let count = |begin: &str| cells.iter().filter(|name| name.starts_with(begin)).count();
    assert_eq!(
        (count("choice-"), count("imatrix-")),
        (1, 1 + tried(&cells))
    );
    let command = |size: u64| -> Vec<String> {
        let name = format!("fit-{size}.file.");
        let cell = cells.iter().find(|cell| cell.starts_with(&name)).unwrap();
        let cell: Value =
            serde_json::from_slice(&read(&folder.file(&format!("out/cells/{cell}")))).unwrap();
        serde_json::from_value(cell["command"].clone()).unwrap()
    };
    assert!(command(wanted[1]).contains(&"--save-stats".to_owned()));
    assert!(command(wanted[0]).contains(&"--stats".to_owned()));
}

/// Cells of files that were rounded with the importance matrix.
fn tried(cells: &BTreeSet<String>) -> usize {
    let of_files = |name: &&String| name.starts_with("imatrix-") && name.ends_with(".json");
    cells.iter().filter(of_files).count()
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let parts: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    let parts: Vec<&str> = parts
        .iter()
        .map(|p| std::str::from_utf8(p).unwrap())
        .collect();
    parts.join(",")
}

#[test]
fn another_size_measures_only_itself() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = text(&folder);
    let (wanted, both) = sizes(&model, &[55, 40]);
    let run = |sizes: &str| fitted(&model, &folder, sizes, &text, &[]).ok();
    let anew = |ran: &Ran| -> Vec<String> {
        let made = [": converted", ": rounded", ": tried,", "matrix: measured"];
        let is_new =
            |line: &&str| !line.ends_with("(kept)") && made.iter().any(|made| line.contains(made));
        ran.stderr
            .lines()
            .filter(is_new)
            .map(str::to_owned)
            .collect()
    };
    let first = run(&wanted[0].to_string());
    let (kept, new) = kept_and_new(&first);
    assert!(kept == 0 && new >= 9, "{first:#?}");
    assert!(anew(&first).len() >= 4, "{first:#?}");
    assert!(!folder.file("out/files").exists());
    let second = run(&both);
    let (kept, others) = kept_and_new(&second);
    assert!(kept >= new && others > 0, "{second:#?}");
    let of_first = format!("fit into {}: converted", grouped(wanted[0]));
    assert!(!second.stderr.contains(&of_first), "{second:#?}");
    assert!(
        !anew(&second)
            .iter()
            .any(|line| line.contains("matrix: measured"))
    );
    // Once it is done, nothing is left to do.
    let third = run(&both);
    assert_eq!(kept_and_new(&third), (kept + others, 0), "{third:#?}");
    assert_eq!(anew(&third), Vec::<String>::new());
    assert_eq!(third.stdout, second.stdout);
    // A single measure that is missing is taken again, of a file that is made again.
    let lost = format!("fit-{}.speed.", wanted[1]);
    let cells = names(&folder, "out/cells");
    let cell = cells.iter().find(|name| name.starts_with(&lost)).unwrap();
    std::fs::remove_file(folder.file(&format!("out/cells/{cell}"))).unwrap();
    let fourth = run(&both);
    assert_eq!(kept_and_new(&fourth), (kept + others - 1, 1), "{fourth:#?}");
    assert_eq!(anew(&fourth).len(), 1, "{fourth:#?}");
}

#[test]
fn statistics_of_the_user_are_read_and_a_text_of_both_is_warned_of() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = valley();
    let stats = folder.file("stats.json");
    let (wanted, given) = sizes(&model, &[50]);
    let ran = fitted(
        &model,
        &folder,
        &given,
        &text,
        &["-q", "--save-stats", stats.to_str().unwrap()],
    );
    let warning = ran.ok().stderr;
    assert!(
        warning.contains("of the text is in what the model is fitted to"),
        "{warning}"
    );
    let measured = read(&stats);
    // Another report reads them, and is the same.
    let before = read(&folder.file("out/report.md"));
    let more = ["-q", "--stats", stats.to_str().unwrap()];
    fitted(&model, &folder, &given, &text, &more).ok();
    assert_eq!(read(&folder.file("out/report.md")), before);
    assert_eq!(read(&stats), measured);
    let cells = names(&folder, "out/cells");
    assert!(
        !cells.iter().any(|name| name.starts_with("choice-")),
        "{cells:?}"
    );
    let ours = format!("fit-{}.file.", wanted[0]);
    assert_eq!(
        cells.iter().filter(|name| name.starts_with(&ours)).count(),
        1
    );
}
