//! Match functions side by side, and accuracies by subject.

use serde_json::Value;

use super::resumed::kept_and_new;
use super::{backwards, model, report};
use crate::support::{Folder, archive, questions, read, svg_lines, valley};

fn picture(folder: &Folder, name: &str) -> String {
    String::from_utf8(read(&folder.file(&format!("out/{name}.svg")))).unwrap()
}

/// The report in the folder.
fn written(folder: &Folder) -> Value {
    serde_json::from_slice(&read(&folder.file("out/report.json"))).unwrap()
}

/// The match function, the series and the ratio of each row that is converted.
fn converted(report: &Value) -> Vec<(String, String, f64)> {
    let word = |row: &Value, field: &str| row[field].as_str().unwrap_or("none").to_owned();
    let rows = report["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["form"] == "converted")
        .map(|row| {
            let ratio = row["ratio"].as_f64().unwrap();
            (word(row, "match"), word(row, "series"), ratio)
        })
        .collect()
}

#[test]
fn match_functions_have_rows_at_every_ratio_and_a_line_each() {
    let folder = Folder::new();
    let model = model(&folder);
    let alone = ["--ratios", "0.5"];
    let (_, new) = kept_and_new(&report(&model, &folder, &alone).ok());
    assert_eq!(new, 7);
    let before = written(&folder);
    assert_eq!(before.get("by_match"), None);
    assert!(!folder.file("out/match.svg").exists());

    // What was measured for the default function serves the comparison.
    let more = ["--ratios", "0.5,0.25", "--match", "v,qk,separate,v"];
    let ran = report(&model, &folder, &more).ok();
    assert_eq!(kept_and_new(&ran).0, 7, "{ran:#?}");
    let json = written(&folder);
    let expected: Vec<_> = [0.25, 0.5]
        .into_iter()
        .flat_map(|ratio| {
            ["v", "qk", "separate"].map(|of| (of.to_owned(), "shared".to_owned(), ratio))
        })
        .collect();
    assert_eq!(converted(&json), expected);
    assert_eq!(json["settings"]["match"], "v,qk,separate");
    let rows = json["rows"].as_array().unwrap();
    let curves = json["by_match"].as_array().unwrap();
    assert_eq!(curves.len(), 3);
    let mut numbers = Vec::new();
    for (curve, function) in curves.iter().zip(["v", "qk", "separate"]) {
        assert_eq!(curve["match"], function);
        let points = curve["points"].as_array().unwrap();
        assert_eq!(points.len(), 2);
        for (point, ratio) in points.iter().zip([0.25, 0.5]) {
            let row = &rows[point["row"].as_u64().unwrap() as usize];
            assert_eq!(
                (&row["match"], &row["ratio"]),
                (&function.into(), &ratio.into())
            );
            assert_eq!(point["perplexity"], row["quality"]["perplexity"]);
            assert_eq!(point["ratio_to_source"], row["quality"]["base"]["ratio"]);
            // Held against a plain file, as ever.
            let rival = &rows[row["rival"].as_u64().unwrap() as usize];
            assert_eq!(rival["form"], "lower");
        }
        numbers.push(points[1]["perplexity"].as_f64().unwrap());
    }
    // The functions share other units.
    assert!(numbers[0] != numbers[1], "{numbers:?}");
    assert_eq!(
        curves[1]["points"][1]["perplexity"],
        before["rows"][1]["quality"]["perplexity"]
    );

    let svg = picture(&folder, "match");
    for function in ["v", "qk", "separate"] {
        assert!(svg.contains(&format!("match {function}\n")), "{svg}");
    }
    // From the source through both ratios.
    let lines = svg_lines(&svg, 3);
    assert_eq!(lines.len(), 3, "{svg}");
    let across: Vec<i32> = lines[0].iter().map(|point| point.0).collect();
    assert!(
        lines
            .iter()
            .all(|line| line.iter().map(|p| p.0).eq(across.iter().copied()))
    );
    assert!(read(&folder.file("out/match.png")).starts_with(b"\x89PNG"));
    assert!(
        ran.stdout.contains("| perplexity at ratio | 0.25 | 0.5 |"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("](match.svg)") && ran.stdout.contains("50% shared by separate"));
    assert_eq!(ran.stdout.as_bytes(), read(&folder.file("out/report.md")));

    // Done once, nothing is left to do; and without --match all is as before.
    let again = report(&model, &folder, &more).ok();
    assert_eq!(kept_and_new(&again).1, 0, "{again:#?}");
    assert_eq!(again.stdout, ran.stdout);
    let ran = report(&model, &folder, &alone).ok();
    assert_eq!(kept_and_new(&ran), (7, 0));
    assert_eq!(written(&folder), before);
    assert!(!folder.file("out/match.svg").exists() && !folder.file("out/match.png").exists());
    assert!(!ran.stdout.contains("match.svg"), "{}", ran.stdout);
}

#[test]
fn repaired_files_are_compared_by_match_function_too() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = String::from_utf8(read(&valley())).unwrap();
    let text = folder.write("fit.txt", backwards(&text));
    let more = [
        "--ratios",
        "0.5",
        "--match",
        "k,qkv",
        "--windows",
        "2",
        "--window",
        "32",
        "--json",
        "-q",
        "--keep",
        "--repair",
    ];
    let ran = report(
        &model,
        &folder,
        &[&more[..], &[text.to_str().unwrap()]].concat(),
    )
    .ok();
    let json = ran.json();
    let expected = [
        ("k", "shared"),
        ("k", "repaired"),
        ("qkv", "shared"),
        ("qkv", "repaired"),
    ];
    let expected = expected.map(|(of, series)| (of.to_owned(), series.to_owned(), 0.5));
    assert_eq!(converted(&json), expected);
    let series: Vec<&Value> = (json["by_match"].as_array().unwrap().iter())
        .map(|curve| &curve["series"])
        .collect();
    assert_eq!(series, ["shared", "shared", "repaired", "repaired"]);
    let svg = picture(&folder, "match");
    assert!(svg.contains("match qkv, repaired\n"), "{svg}");
    // Each function's files have names of their own.
    for name in [
        "shared-k-0.5",
        "repaired-k-0.5",
        "shared-qkv-0.5",
        "repaired-qkv-0.5",
    ] {
        run!("verify", folder.file(&format!("out/files/{name}.gguf"))).ok();
    }
}

/// RACE is published as two folders of articles.
#[test]
fn a_folder_of_articles_is_a_task() {
    let folder = Folder::new();
    let model = model(&folder);
    let task = folder.file("questions");
    let write = |level: &str, answer: &str| {
        let row = serde_json::json!({"article": "Tom ran.", "questions": ["Tom _ .", "Who?"],
            "options": [["sat", "ran"], ["Tom", "Tim"]], "answers": [answer, "A"],
            "id": format!("{level}1.txt")});
        std::fs::create_dir_all(task.join(level)).unwrap();
        std::fs::write(task.join(level).join("1.txt"), row.to_string()).unwrap();
    };
    write("middle", "B");
    write("high", "B");
    let more = [
        "--ratios",
        "0.5",
        "--task",
        task.to_str().unwrap(),
        "--subjects",
    ];
    report(&model, &folder, &more).ok();
    let json = written(&folder);
    let subjects = json["rows"][0]["tasks"][0]["subjects"].as_array().unwrap();
    let names: Vec<_> = subjects
        .iter()
        .map(|of| of["subject"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["high", "middle"]);
    // It is another task as soon as one of its articles is another.
    assert_eq!(kept_and_new(&report(&model, &folder, &more).ok()).1, 0);
    write("high", "A");
    assert!(kept_and_new(&report(&model, &folder, &more).ok()).1 > 0);
}

#[test]
fn subjects_stand_side_by_side() {
    let folder = Folder::new();
    let model = model(&folder);
    let (task, plain) = (folder.file("mmlu.zip"), questions());
    let files = [
        ("dev/world_religions_dev.csv", "Who,a,b,c,d,B\n"),
        (
            "test/world_religions_test.csv",
            "What,a,b,c,d,A\nWhere,a,b,c,d,B\nHow,e,f,g,h,C\n",
        ),
        ("test/anatomy_test.csv", "Which,a,b,c,d,C\nWhy,s,t,u,v,D\n"),
    ];
    archive(&task, &files);
    let (task, plain) = (task.to_str().unwrap(), plain.to_str().unwrap());
    let more = ["--ratios", "0.5", "--task", plain, "--task", task];
    let silent = report(&model, &folder, &[&more[..], &["-q"]].concat()).ok();
    assert!(!silent.stdout.contains("By subject"));
    let before = written(&folder);
    assert_eq!(before["rows"][0]["tasks"][1].get("subjects"), None);

    // Measured already, it is only told.
    let more = [&more[..], &["--subjects"]].concat();
    let ran = report(&model, &folder, &more).ok();
    assert_eq!(kept_and_new(&ran).1, 0, "{ran:#?}");
    let json = written(&folder);
    let choice = run!(
        "eval", "choice", model, "--task", task, "-t", "1", "--json", "-q"
    )
    .ok()
    .json();
    for row in json["rows"].as_array().unwrap() {
        assert_eq!(row["tasks"][0].get("subjects"), None);
        let subjects = row["tasks"][1]["subjects"].as_array().unwrap();
        let names: Vec<_> = subjects
            .iter()
            .map(|of| of["subject"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["anatomy", "world_religions"]);
        assert_eq!(
            (&subjects[0]["n"], &subjects[1]["n"]),
            (&2.into(), &3.into())
        );
        if row["form"] == "source" {
            assert_eq!(row["tasks"][1]["subjects"], choice["subjects"]);
        }
    }
    let svg = picture(&folder, "subjects");
    for text in [
        "anatomy",
        "world religions",
        "all questions",
        "mmlu",
        "50% shared",
        "source",
    ] {
        assert!(svg.contains(&format!("{text}\n")), "{text}: {svg}");
    }
    assert!(!svg.contains("question\n"), "{svg}");
    assert!(read(&folder.file("out/subjects.png")).starts_with(b"\x89PNG"));
    let line = "| mmlu | questions | source | 50% shared |";
    assert!(
        ran.stdout.contains(line) && ran.stdout.contains("](subjects.svg)"),
        "{}",
        ran.stdout
    );
    let of = |row: usize| {
        let subject = &json["rows"][row]["tasks"][1]["subjects"][1];
        let number = |name: &str| subject[name].as_f64().unwrap();
        format!(
            "{:.3} ± {:.3}",
            number("accuracy_norm"),
            number("stderr_norm")
        )
    };
    let line = format!("| world\\_religions | 3 | {} | {} |", of(0), of(1));
    assert!(ran.stdout.contains(&line), "{line}: {}", ran.stdout);
}
