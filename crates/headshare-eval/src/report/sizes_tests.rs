//! Made-up rows of files that were made to fit, and of llama.cpp's.

use super::markdown;
use super::picture::picture;
use super::rows::*;
use super::sizes::{best_rival, label, summary, verdicts};
use super::tests::{paired, report, row};
use crate::analyze::picture::Format;

const SIZE: u64 = 90 << 20;

/// At one size: what was made to fit, plain types with and without importances, and a
/// mixture where there is one.
fn at(bytes: u64, fitted: f64, rivals: [Option<f64>; 3], rows: &mut Vec<Row>) {
    let first = rows.len();
    rows.push(Row {
        series: Some(Series::Fitted),
        size: Some(bytes),
        ..row(RowKind::Converted, &label(bytes), bytes - 100, fitted)
    });
    let forms = [
        (RowKind::Plain, "embedding q5_0, body q4_1"),
        (RowKind::Imatrix, "embedding q5_0, body q4_1, with imatrix"),
        (RowKind::Mixture, "q4_0, with imatrix"),
    ];
    for ((form, label), ln_ratio) in forms.into_iter().zip(rivals) {
        if let Some(ln_ratio) = ln_ratio {
            rows.push(Row {
                size: Some(bytes),
                ..row(form, label, bytes - 1000, ln_ratio)
            });
        }
    }
    if let Some(best) = best_rival(rows, bytes) {
        rows[first].to_rival = paired(fitted - rows[best].ln_ratio());
        rows[first].rival = Some(best);
    }
}

fn rows() -> Vec<Row> {
    vec![row(RowKind::Source, "source", 100 << 20, 0.0)]
}

fn of_sizes(rows: Vec<Row>) -> Report {
    let verdicts = verdicts(&rows);
    let mut report = report(rows);
    report.settings.sizes = verdicts.iter().filter_map(|v| v.size).collect();
    report.settings.ratios.clear();
    report.series[0] = SeriesTitle {
        name: Series::Fitted,
        function: None,
        title: "made to fit".into(),
    };
    report.summary = summary(&verdicts);
    report.verdicts = verdicts;
    report
}

#[test]
fn the_best_of_the_rivals_is_the_one_that_counts() {
    for (fitted, rivals, winner, best) in [
        (
            0.01,
            [Some(0.2), Some(0.1), Some(0.15)],
            Winner::Converted,
            3,
        ),
        (0.15, [Some(0.2), Some(0.18), Some(0.1)], Winner::Rival, 4),
        (0.1, [Some(0.105), Some(0.2), None], Winner::Neither, 2),
    ] {
        let mut rows = rows();
        at(SIZE, fitted, rivals, &mut rows);
        let all = verdicts(&rows);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].winner, all[0].row), (winner, 1));
        assert_eq!(rows[1].rival, Some(best));
        assert_eq!((all[0].size, all[0].ratio), (Some(SIZE), None));
        let none = all[0].words.contains("No mixture of llama.cpp is as small");
        assert_eq!(none, rivals[2].is_none(), "{}", all[0].words);
    }
}

/// A file can predict the text better and be further from the source: then neither wins.
#[test]
fn perplexity_alone_does_not_decide() {
    let mut rows = rows();
    at(SIZE, 0.15, [Some(0.2), Some(0.18), Some(0.1)], &mut rows);
    let mut change = |row: usize, kl: f64| {
        let against = rows[row].quality.against.as_mut().unwrap();
        against.kl_mean = kl;
        let winner = verdicts(&rows)[0].winner;
        (winner, best_rival(&rows, SIZE))
    };
    assert_eq!(change(4, 0.5), (Winner::Neither, Some(3)));
    assert_eq!(change(4, 0.16), (Winner::Neither, Some(4)));
    assert_eq!(change(1, 0.2), (Winner::Rival, Some(4)));
}

#[test]
fn the_outcome_is_said_in_words() {
    let mut all = rows();
    at(SIZE, 0.01, [Some(0.2), Some(0.1), Some(0.15)], &mut all);
    let words = &verdicts(&all)[0].words;
    assert_eq!(
        words,
        "Fit into 90M: fitting wins. Perplexity 20.20 (94,371,740 bytes) against 22.10 (embedding \
         q5_0, body q4_1, with imatrix; 94,370,840 bytes), 0.914 ± 0.009 of it; the source has 20.00. \
         Divergence 0.0100 against 0.1000. Embedding q5_0, body q4_1: 24.43. Q4_0, with imatrix: \
         23.24. In memory, the weights take 10,485,860 bytes less than the source's, those of \
         embedding q5_0, body q4_1, with imatrix 10,486,760 bytes less."
    );
    let one = summary(&verdicts(&all));
    assert!(
        one.contains("fitting is better") && one.contains("every size"),
        "{one}"
    );
    at(81_000_000, 0.3, [Some(0.4), Some(0.1), None], &mut all);
    at(1 << 20, 0.5, [None; 3], &mut all);
    let found = verdicts(&all);
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].winner, Winner::Alone);
    assert!(found[2].words.contains("make a file as small"), "{found:?}");
    let several = summary(&found);
    for part in [
        "better than the best of llama.cpp's files at 90M;",
        "fitting at 81,000,000 bytes;",
    ] {
        assert!(several.contains(part), "{several}");
    }
    assert!(
        several.ends_with("llama.cpp makes no file as small as fitting at 1M."),
        "{several}"
    );
}

#[test]
fn table_and_picture_show_ours_beside_theirs() {
    let mut all = rows();
    at(SIZE, 0.01, [Some(0.2), Some(0.1), Some(0.15)], &mut all);
    at(80 << 20, 0.1, [Some(0.4), Some(0.3), None], &mut all);
    let report = of_sizes(all);
    let text = markdown::render(&report, "quality.svg");
    assert!(text.starts_with("# m.gguf in fewer bytes\n"), "{text}");
    assert!(text.contains("| **fit into 90M** |"), "{text}");
    assert!(
        text.contains("| embedding q5\\_0, body q4\\_1, with imatrix |"),
        "{text}"
    );
    assert!(
        text.contains("one of the three largest of llama.cpp's mixtures"),
        "{text}"
    );
    let svg = picture(&report).encode(Format::Svg);
    let svg = String::from_utf8(svg).unwrap();
    let names = [
        "made to fit (points: size)",
        "plain types",
        "importance matrix",
        "mixtures",
    ];
    for text in names.into_iter().chain(["90M", "80M", "q4_0"]) {
        assert!(svg.contains(text), "{text}: {svg}");
    }
}
