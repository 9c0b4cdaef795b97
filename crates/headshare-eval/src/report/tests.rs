//! Rows made up for the words, the table and the picture.

use super::markdown;
use super::picture::picture;
use super::rows::*;
use super::verdict::{summary, verdicts};
use crate::analyze::picture::Format;
use crate::eval::choice::Metric;
use crate::eval::choice::summary::Accuracy;

fn against(ln_ratio: f64, kl: f64) -> Against {
    Against {
        ratio: ln_ratio.exp(),
        ratio_stderr: 0.01,
        ln_ratio,
        ln_ratio_stderr: 0.01,
        kl_mean: kl,
        kl_stderr: 0.001,
        kl_p99: kl * 9.0,
        same_top: 0.9,
    }
}

pub(super) fn row(form: RowKind, label: &str, file_bytes: u64, ln_ratio: f64) -> Row {
    let against = (form != RowKind::Source).then(|| against(ln_ratio, ln_ratio.abs()));
    Row {
        form,
        series: None,
        function: None,
        ratio: None,
        size: None,
        label: label.into(),
        rival: None,
        to_rival: None,
        made: FileFacts {
            file_bytes,
            digest: "blake3:0".into(),
            changed: 1,
            dropped: 0,
            of: 4,
            share: 0.25,
            how: "made up".into(),
        },
        quality: Quality {
            perplexity: 20.0 * ln_ratio.exp(),
            stderr: 0.5,
            tokens: 255,
            chunks: 1,
            against,
        },
        tasks: vec![TaskScore {
            task: "a|b".into(),
            metric: Metric::AccuracyNorm,
            accuracy: Accuracy {
                accuracy: 0.6,
                accuracy_norm: 0.625,
                stderr: Some(0.02),
                stderr_norm: Some(0.03),
                n: 100,
            },
            subjects: Vec::new(),
        }],
        speed: Speed {
            prefill: Some(Throughput {
                tps: 100.0,
                ratio: 1.0,
                ratio_min: 0.9,
                ratio_max: 1.1,
            }),
            decode: None,
            load_ms: 3.0,
            resolve: "none".into(),
            weights_pss_bytes: Some(file_bytes - 10),
            pss_bytes: None,
            shared_bytes: 0,
        },
    }
}

/// Against a plain alternative that is worse by this much.
pub(super) fn paired(ln_ratio: f64) -> Option<Paired> {
    Some(Paired {
        ratio: ln_ratio.exp(),
        ratio_stderr: 0.01 * ln_ratio.exp(),
        ln_ratio,
        ln_ratio_stderr: 0.01,
    })
}

/// The source, one conversion at ratio 0.1, and its plain alternative.
fn contest(shared: f64, rival: Option<f64>, bytes: u64) -> Vec<Row> {
    let mut rows = vec![row(RowKind::Source, "source", 100_000, 0.0)];
    rows.push(Row {
        series: Some(Series::Shared),
        ratio: Some(0.1),
        rival: rival.map(|_| 2),
        to_rival: rival.and_then(|rival| paired(shared - rival)),
        ..row(RowKind::Converted, "10% shared", bytes, shared)
    });
    if let Some(rival) = rival {
        rows.push(row(
            RowKind::Lower,
            "40% of the body one type lower",
            89_000,
            rival,
        ));
    }
    rows
}

#[track_caller]
fn outcome(rows: &[Row]) -> (Winner, String, String) {
    let all = verdicts(rows);
    let [verdict] = &all[..] else {
        panic!("{all:?}")
    };
    (verdict.winner, verdict.words.clone(), summary(rows, &all))
}

#[test]
fn the_lower_perplexity_wins_where_the_difference_counts() {
    let (winner, words, all) = outcome(&contest(0.3, Some(0.05), 90_000));
    assert_eq!(winner, Winner::Lower);
    assert_eq!(
        words,
        "10,000 bytes saved (10.0%): 40% of the body one type lower wins over sharing heads. \
         Perplexity 27.00 (10% shared) against 21.03 (40% of the body one type lower; 89,000 \
         bytes, which saves another 1,000 bytes), 1.284 ± 0.013 of it; the source has 20.00. Divergence 0.3000 against 0.0500. In memory, the weights \
         take 10,000 bytes less than the source's, those of the plain alternative 11,000 bytes less."
    );
    assert!(
        all.contains("at lower types is better than sharing"),
        "{all}"
    );

    let (winner, words, all) = outcome(&contest(0.05, Some(0.3), 90_000));
    assert_eq!(winner, Winner::Converted);
    assert!(words.contains(": sharing heads wins."), "{words}");
    assert!(all.contains("sharing heads is better"), "{all}");

    // The text is predicted better by the one that is further away.
    for (mut rows, further) in [
        (contest(0.05, Some(0.3), 90_000), 1),
        (contest(0.3, Some(0.05), 90_000), 2),
    ] {
        rows[further].quality.against.as_mut().unwrap().kl_mean = 0.5;
        let (winner, words, all) = outcome(&rows);
        assert_eq!(winner, Winner::Neither, "{words}");
        assert!(
            words.contains("Divergence 0.") && words.contains("0.5000"),
            "{words}"
        );
        assert!(all.contains("is clearly better"), "{all}");
    }

    // 0.01 apart, with an error of 0.01.
    let (winner, words, all) = outcome(&contest(0.05, Some(0.06), 90_000));
    assert_eq!(winner, Winner::Neither);
    assert!(words.contains("is clearly better"), "{words}");
    assert!(all.contains("is clearly better at ratio 0.1"), "{all}");
}

#[test]
fn the_error_is_that_of_the_pair() {
    // Errors against the source say nothing: both are of the same tokens.
    let mut rows = contest(0.05, Some(0.06), 90_000);
    rows[1].to_rival.as_mut().unwrap().ln_ratio_stderr = 0.004;
    let all = verdicts(&rows);
    assert_eq!(all[0].winner, Winner::Converted);
    let paired = rows[1].to_rival.as_ref().unwrap();
    assert_eq!(all[0].ratio_to_rival, Some(paired.ratio));
    assert_eq!(all[0].ratio_to_rival_stderr, Some(paired.ratio_stderr));
    rows[1].to_rival.as_mut().unwrap().ln_ratio_stderr = 0.006;
    assert_eq!(verdicts(&rows)[0].winner, Winner::Neither);
}

#[test]
fn what_wins_is_called_what_it_is() {
    for (changed, dropped, deed) in [
        (3, 0, "sharing heads"),
        (0, 3, "dropping heads"),
        (1, 2, "sharing and dropping heads"),
    ] {
        for (rival, outcome_of) in [
            (0.3, format!("{deed} is better than storing")),
            (0.01, format!("lower types is better than {deed},")),
        ] {
            let mut rows = contest(0.05, Some(rival), 90_000);
            rows[1].made.changed = changed;
            rows[1].made.dropped = dropped;
            let (_, words, all) = outcome(&rows);
            assert!(words.contains(deed), "{words}");
            assert!(all.contains(&outcome_of), "{all}");
        }
    }
    // One ratio is won by the one, another by the other.
    let mut rows = contest(0.05, Some(0.3), 90_000);
    rows.push(Row {
        ratio: Some(0.2),
        rival: Some(2),
        to_rival: paired(0.05 - 0.3),
        ..row(RowKind::Converted, "20% dropped", 90_000, 0.05)
    });
    (rows[3].made.changed, rows[3].made.dropped) = (0, 4);
    let all = summary(&rows, &verdicts(&rows));
    assert!(
        all.contains("sharing heads is better at ratio 0.1;"),
        "{all}"
    );
    assert!(
        all.contains("dropping heads is better at ratio 0.2."),
        "{all}"
    );
}

#[test]
fn what_saves_nothing_or_has_no_rival_is_said() {
    let (winner, words, all) = outcome(&contest(0.0, None, 100_500));
    assert_eq!(winner, Winner::Source);
    assert!(
        words.contains("500 bytes larger than the source"),
        "{words}"
    );
    assert!(all.contains("keep the source"), "{all}");
    let (winner, words, _) = outcome(&contest(0.0, None, 100_000));
    assert_eq!(winner, Winner::Source);
    assert!(words.contains("nothing is saved"), "{words}");

    // Exact, and the plain alternative is not: however small the difference.
    let (winner, words, all) = outcome(&contest(0.0, Some(0.001), 90_000));
    assert_eq!(winner, Winner::Converted);
    assert!(words.contains("because it changes nothing"), "{words}");
    assert!(all.contains("costs nothing"), "{all}");
}

#[test]
fn a_rival_that_is_much_smaller_is_not_of_equal_bytes() {
    // 5% of what is saved are 500 bytes.
    for (bytes, size, more) in [
        (89_400, "lower; 89,400 bytes", Some("another 600 bytes")),
        (89_500, "lower; 89,500 bytes", None),
    ] {
        for rival in [0.06, 0.3] {
            // Also where one wins everywhere.
            let mut rows = contest(0.05, Some(rival), 90_000);
            rows[2].made.file_bytes = bytes;
            let (_, _, all) = outcome(&rows);
            assert_eq!(all.contains("at equal bytes"), more.is_none(), "{all}");
        }
        let mut rows = contest(0.05, Some(0.06), 90_000);
        rows[2].made.file_bytes = bytes;
        let (_, words, _) = outcome(&rows);
        assert!(words.contains(size), "{words}");
        match more {
            Some(more) => assert!(words.contains(more), "{words}"),
            None => assert!(!words.contains("another"), "{words}"),
        }
    }
}

#[test]
fn nobody_wins_without_a_rival() {
    let mut rows = contest(0.1, None, 50_000);
    let (winner, words, all) = outcome(&rows);
    assert_eq!(winner, Winner::Alone);
    assert!(words.contains("has no plain alternative,"), "{words}");
    assert!(
        all.contains("nothing to compare sharing heads with"),
        "{all}"
    );
    assert!(!all.contains("better"), "{all}");

    // Another ratio has one, and wins.
    rows.push(Row {
        ratio: Some(0.05),
        rival: Some(3),
        to_rival: paired(0.05 - 0.3),
        ..row(RowKind::Converted, "5% shared", 95_000, 0.05)
    });
    rows.push(row(RowKind::Lower, "all one type lower", 95_000, 0.3));
    let all = summary(&rows, &verdicts(&rows));
    assert!(
        all.contains("sharing heads is better at ratio 0.05;"),
        "{all}"
    );
    assert!(
        all.contains("nothing to compare sharing heads with at ratio 0.1."),
        "{all}"
    );
}

#[test]
fn of_several_conversions_the_best_is_held_against_its_own_rival() {
    let mut rows = contest(0.5, Some(0.05), 90_000);
    rows.push(Row {
        series: Some(Series::Repaired),
        ratio: Some(0.1),
        rival: Some(2),
        to_rival: paired(0.2 - 0.05),
        ..row(RowKind::Converted, "10% shared, repaired", 90_000, 0.2)
    });
    let all = verdicts(&rows);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].row, all[0].winner), (3, Winner::Lower));
    assert!(
        all[0].words.contains("24.43 (10% shared, repaired)"),
        "{all:?}"
    );
    assert!(all[0].words.contains(" 10% shared: 32.97."), "{all:?}");
    // A smaller file has another plain alternative.
    rows.push(Row {
        series: Some(Series::Dropped),
        ratio: Some(0.1),
        rival: Some(5),
        to_rival: paired(0.4 - 0.6),
        ..row(RowKind::Converted, "10% dropped", 70_000, 0.4)
    });
    rows.push(row(
        RowKind::Lower,
        "90% of the body one type lower",
        69_000,
        0.6,
    ));
    let all = verdicts(&rows);
    assert_eq!((all[0].row, all[0].winner), (4, Winner::Converted));
}

#[test]
fn what_cannot_be_compared_is_not_the_best() {
    // Worse than its plain alternative by more than the others are than the
    // source.
    let mut rows = contest(0.5, Some(0.05), 90_000);
    let other = |label, bytes, ln_ratio| Row {
        series: Some(Series::Repaired),
        ratio: Some(0.1),
        ..row(RowKind::Converted, label, bytes, ln_ratio)
    };
    // Larger than the source, and smaller than any plain file.
    rows.push(other("larger", 100_500, 0.0));
    rows.push(other("tiny", 10_000, 0.1));
    let all = verdicts(&rows);
    assert_eq!((all[0].row, all[0].winner), (1, Winner::Lower));
    // Without a plain alternative for any, the best of those that save something.
    (rows[1].rival, rows[1].to_rival) = (None, None);
    let all = verdicts(&rows);
    assert_eq!((all[0].row, all[0].winner), (4, Winner::Alone));
}

pub(super) fn report(rows: Vec<Row>) -> Report {
    let file = |path: &str| File {
        path: path.into(),
        bytes: 100_000,
        digest: "blake3:0".into(),
    };
    let verdicts = verdicts(&rows);
    Report {
        tool: "headshare-gguf".into(),
        llama_cpp: "llama.cpp".into(),
        source: file("folder/m.gguf"),
        text: file("t.txt"),
        tasks: vec![file("a|b.jsonl")],
        calibration: None,
        settings: Settings {
            function: "qk".into(),
            ratios: vec![0.1],
            sizes: Vec::new(),
            ctx: 512,
            chunks: None,
            limit: None,
            kind: None,
            n_prompt: 8,
            n_gen: 0,
            repetitions: 2,
            threads: None,
            cpu: String::new(),
        },
        series: vec![SeriesTitle {
            name: Series::Shared,
            function: None,
            title: "DirectShare".into(),
        }],
        source_load_modes: vec![LoadModeSpeed {
            name: "stock, mmap".into(),
            speed: rows[0].speed.clone(),
        }],
        summary: summary(&rows, &verdicts),
        functions: Vec::new(),
        verdicts,
        rows,
    }
}

#[test]
fn the_table_has_a_line_for_each_row_and_way() {
    let report = report(contest(0.3, Some(0.05), 90_000));
    let table = markdown::table(&report);
    let lines: Vec<&str> = table.lines().collect();
    // Two of head, one a row, one a mode of loading.
    assert_eq!(lines.len(), 2 + 3 + 1);
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    assert!(lines.iter().all(|l| cells(l) == cells(lines[0])), "{table}");
    assert!(lines[0].contains("a\\|b"), "{table}");
    assert!(lines[4].contains("| 10.0% |"), "{table}");
    // The error of the accuracy that is shown.
    assert!(lines[4].contains("| 0.625 ± 0.030 |"), "{table}");
    let text = markdown::render(&report, "quality.svg");
    assert!(text.contains("![Perplexity against file size](quality.svg)"));
    assert!(text.contains(&report.verdicts[0].words));
}

#[test]
fn names_are_text_and_nothing_else() {
    let mut report = report(contest(0.3, Some(0.05), 90_000));
    report.source.path = "folder/my_[model](x)<b>\u{1b}[31m|&\nend.gguf".into();
    report.rows[0].tasks[0].task = "a_b|<i>\u{7}".into();
    let text = markdown::render(&report, "quality.svg");
    let heading = text.lines().next().unwrap();
    assert_eq!(
        heading,
        "# Sharing heads of my\\_\\[model\\](x)&lt;b&gt;?\\[31m\\|&amp;?end.gguf"
    );
    assert!(text.contains("| a\\_b\\|&lt;i&gt;  |"), "{text}");
    let svg = String::from_utf8(picture(&report).encode(Format::Svg)).unwrap();
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!svg.contains(control) && !svg.contains("<b>"), "{svg}");
    assert!(svg.contains("my_[model](x)&lt;b&gt;?"), "{svg}");
}

#[test]
fn the_picture_names_its_axes_and_series() {
    let narrow = report(contest(0.3, Some(0.05), 90_000));
    let svg = picture(&narrow).encode(Format::Svg);
    let svg = String::from_utf8(svg).unwrap();
    for text in [
        "file size, MB",
        "perplexity",
        "DirectShare",
        "plain: part",
        "source",
        "25%",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(!svg.contains("logarithmic"));
    let wide = report(contest(3.0, Some(0.05), 90_000));
    let svg = picture(&wide).encode(Format::Svg);
    assert!(String::from_utf8(svg).unwrap().contains("logarithmic"));
    // Nothing finite breaks nothing.
    let broken = report(contest(f64::INFINITY, None, 90_000));
    picture(&broken).encode(Format::Png);
}
