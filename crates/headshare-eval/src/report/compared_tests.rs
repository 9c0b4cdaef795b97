//! Match functions over ratios, and subjects of tasks, side by side.

use headshare_convert::matching::MatchFunction;

use super::rows::*;
use super::tests::{report, row};
use super::{functions, markdown, subjects};
use crate::analyze::picture::{Format, Scene};
use crate::eval::choice::Metric;
use crate::eval::choice::summary::{Accuracy, SubjectSummary};

const RATIOS: [f64; 2] = [0.1, 0.3];

/// What stands in the picture as text.
fn svg(scene: &Scene) -> String {
    String::from_utf8(scene.encode(Format::Svg)).unwrap()
}

/// Thick lines of a picture: their points, with the colour.
fn lines(svg: &str) -> Vec<(&str, usize)> {
    let lines = svg.lines().filter(|line| line.starts_with("<polyline"));
    let thick = lines.filter(|line| line.contains("stroke-width=\"2\""));
    thick
        .map(|line| {
            let of = |name: &str| {
                let from = line.split_once(&format!("{name}=\"")).unwrap().1;
                from.split_once('"').unwrap().0
            };
            (of("stroke"), of("points").split_whitespace().count())
        })
        .collect()
}

/// A report that compares all match functions at two ratios: each costs more than the
/// one before it; with repair, half of that.
fn compared(repair: bool) -> Report {
    let mut rows = vec![row(RowKind::Source, "source", 100_000, 0.0)];
    let mut series = Vec::new();
    for (i, function) in MatchFunction::ALL.into_iter().enumerate() {
        let all = [(Series::Shared, 1.0), (Series::Repaired, 0.5)];
        for (name, part) in all.into_iter().take(1 + usize::from(repair)) {
            series.push(SeriesTitle {
                name,
                function: Some(function),
                title: format!("{name} match {function}"),
            });
            for ratio in RATIOS {
                let cost = part * ratio * (i + 1) as f64;
                rows.push(Row {
                    series: Some(name),
                    function: Some(function),
                    ratio: Some(ratio),
                    ..row(RowKind::Converted, "x", 90_000, cost)
                });
            }
        }
    }
    let mut report = report(rows);
    report.settings.ratios = RATIOS.to_vec();
    report.functions = functions::curves(&series, &report.rows);
    report.series = series;
    report
}

#[test]
fn each_match_function_has_a_curve_over_the_ratios() {
    let report = compared(true);
    assert!(report.compares());
    assert_eq!(report.functions.len(), 12);
    for (i, curve) in report.functions.iter().enumerate() {
        // What only shares comes first.
        let name = [Series::Shared, Series::Repaired][i / 6];
        assert_eq!(
            (curve.series, curve.function),
            (name, MatchFunction::ALL[i % 6])
        );
        let ratios: Vec<f64> = curve.points.iter().map(|point| point.ratio).collect();
        assert_eq!(ratios, RATIOS);
        for point in &curve.points {
            let row = &report.rows[point.row];
            assert_eq!(
                (row.function, row.ratio),
                (Some(curve.function), Some(point.ratio))
            );
            assert_eq!(row.series, Some(curve.series));
            assert_eq!(point.perplexity, row.quality.perplexity);
        }
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["by_match"][5]["match"], "separate");
    assert_eq!(json["rows"][1]["match"], "qk");
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    // One function is nothing to compare.
    let one = SeriesTitle {
        name: Series::Shared,
        function: Some(MatchFunction::Q),
        title: String::new(),
    };
    assert!(functions::curves(&[one], &report.rows).is_empty());
}

#[test]
fn the_table_by_match_function_has_a_number_for_each_ratio() {
    let report = compared(false);
    let text = markdown::render(&report, "quality.svg");
    let (_, text) = text.split_once("## By match function").unwrap();
    assert!(text.contains("![Perplexity over ratio, by match function](match.svg)"));
    let tables: Vec<Vec<&str>> = (text.split("\n\n"))
        .map(|part| part.lines().filter(|line| line.starts_with('|')).collect())
        .filter(|lines: &Vec<_>| !lines.is_empty())
        .collect();
    // Perplexity, and the one task: head, rule, source, six functions.
    assert_eq!(tables.len(), 2, "{text}");
    for (table, name) in tables.iter().zip(["perplexity", "a\\|b"]) {
        assert_eq!(table.len(), 3 + 6);
        assert_eq!(table[0], format!("| {name} at ratio | 0.1 | 0.3 |"));
    }
    assert_eq!(tables[0][2], "| source | 20.000 ± 0.500 | 20.000 ± 0.500 |");
    // The best at each ratio is bold: 20 exp 0.1, 20 exp 0.3.
    assert_eq!(
        tables[0][3],
        "| qk | **22.103 ± 0.500** | **26.997 ± 0.500** |"
    );
    assert_eq!(tables[0][4], "| q | 24.428 ± 0.500 | 36.442 ± 0.500 |");
    assert_eq!(
        tables[1][8],
        "| separate | **0.625 ± 0.030** | **0.625 ± 0.030** |"
    );
    // A report of one function has none of this.
    let text = markdown::render(&super::tests::report(report.rows[..1].to_vec()), "q.svg");
    assert!(!text.contains("By match function"));
}

#[test]
fn the_picture_has_a_line_for_each_match_function() {
    let report = compared(false);
    let svg = svg(&functions::picture(&report).unwrap());
    for function in MatchFunction::ALL {
        assert!(svg.contains(&format!("match {function}\n")), "{function}");
    }
    // Six in the legend, and six through the source and the two ratios.
    let lines = lines(&svg);
    let curves: Vec<_> = lines.iter().filter(|(_, points)| *points == 3).collect();
    assert_eq!((lines.len(), curves.len()), (12, 6), "{lines:?}");
    let colours: std::collections::BTreeSet<_> = curves.iter().map(|(of, _)| of).collect();
    assert_eq!(colours.len(), 6);
    // From 20 to 121.
    assert!(svg.contains("perplexity (logarithmic)"));
    // With repair, a plot for each.
    let both = functions::picture(&compared(true)).unwrap();
    assert_eq!(self::lines(&self::svg(&both)).len(), 24);
    assert!(self::svg(&both).contains("match v, repaired\n"));
    // Also beside all other files, one colour for each.
    let all = self::svg(&super::picture::picture(&compared(true)));
    assert!(all.contains("shared match separate"), "{all}");
    let nothing = super::tests::report(report.rows[..1].to_vec());
    assert!(functions::picture(&nothing).is_none());
}

/// The source and two forms, with a task of two subjects and one of none.
fn with_subjects() -> Report {
    let subject = |name: &str, share, n| SubjectSummary {
        subject: name.into(),
        shots: None,
        accuracy: Accuracy {
            accuracy: share,
            accuracy_norm: share,
            stderr: Some(0.1),
            stderr_norm: Some(0.1),
            n,
        },
    };
    let mut rows = vec![
        row(RowKind::Source, "source", 100_000, 0.0),
        row(RowKind::Converted, "10% shared", 90_000, 0.1),
        row(RowKind::Lower, "lower", 90_000, 0.1),
        row(RowKind::Converted, "30% shared", 80_000, 0.1),
    ];
    for (row, share) in rows.iter_mut().zip([0.5, 0.4, 0.45, 0.3]) {
        let mut task = row.tasks[0].clone();
        task.task = "mmlu".into();
        task.metric = Metric::Accuracy;
        task.accuracy.accuracy = share;
        task.subjects = vec![
            subject("world_religions", share + 0.05, 60),
            subject("anatomy", share - 0.05, 40),
        ];
        row.tasks.push(task);
    }
    report(rows)
}

#[test]
fn the_table_by_subject_has_the_source_and_what_is_converted() {
    let text = markdown::render(&with_subjects(), "quality.svg");
    let (_, text) = text.split_once("## By subject").unwrap();
    assert!(text.contains("![Accuracy by subject](subjects.svg)"));
    let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(
        table,
        [
            "| mmlu | questions | source | 10% shared | 30% shared |",
            "| --- | ---: | ---: | ---: | ---: |",
            "| **all** | 100 | 0.500 ± 0.020 | 0.400 ± 0.020 | 0.300 ± 0.020 |",
            "| world\\_religions | 60 | 0.550 ± 0.100 | 0.450 ± 0.100 | 0.350 ± 0.100 |",
            "| anatomy | 40 | 0.450 ± 0.100 | 0.350 ± 0.100 | 0.250 ± 0.100 |",
        ]
    );
    let shown = "- Tasks show accuracy_norm (a\\|b) or accuracy (mmlu) with its standard error";
    assert!(text.contains(shown), "{text}");
    let json = serde_json::to_value(with_subjects()).unwrap();
    assert_eq!(json["rows"][0]["tasks"][1]["accuracy"], 0.5);
    let subjects = &json["rows"][3]["tasks"][1]["subjects"];
    assert_eq!(subjects[1]["subject"], "anatomy");
    assert_eq!(json["rows"][0]["tasks"][0].get("subjects"), None);
    let none = super::tests::report(vec![row(RowKind::Source, "source", 100_000, 0.0)]);
    assert!(!markdown::render(&none, "quality.svg").contains("By subject"));
}

#[test]
fn the_picture_by_subject_has_two_bars_for_each_in_each_panel() {
    let report = with_subjects();
    let svg = svg(&subjects::picture(&report).unwrap());
    for text in [
        "mmlu",
        "world religions",
        "anatomy",
        "10% shared",
        "30% shared",
    ] {
        assert!(svg.contains(&format!("{text}\n")), "{text}: {svg}");
    }
    assert!(!svg.contains("lower\n"), "{svg}");
    let bars = |colour: &str| {
        let rects = svg.lines().filter(|line| line.starts_with("<rect"));
        let filled = rects.filter(|line| line.contains(&format!("fill=\"{colour}\"")));
        let width = |line: &str| {
            let from = line.split_once("width=\"").unwrap().1;
            from.split_once('"').unwrap().0.parse::<u32>().unwrap()
        };
        filled.map(width).collect::<Vec<_>>()
    };
    // What the colour means; then all questions and two subjects in 300 pixels, twice.
    assert_eq!(bars("#6F9BC4"), [26, 150, 165, 135, 150, 165, 135]);
    assert_eq!(bars("#D95F02"), [26, 120, 135, 105, 90, 105, 75]);
    let mut plain = report;
    plain.rows.truncate(1);
    assert!(subjects::picture(&plain).is_none());
    for row in &mut plain.rows {
        row.tasks.pop();
    }
    assert!(subjects::picture(&plain).is_none());
}
