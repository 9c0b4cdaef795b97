//! The picture: quality against bytes.

use super::rows::{Report, Row, RowKind, Series};
use super::words::{size, title};
use crate::analyze::picture::{LinePlot, LineSeries, MARGIN, Marks, Point, Scene, TITLE_SPACE};

/// Where points lie above this many times the source's perplexity, those below
/// are drawn once more by themselves.
const CLOSE: f64 = 2.0;
/// Pixels between two plots.
const GAP: u32 = 24;

/// Files of llama.cpp's beside what was made to fit: what a line of them is called.
const RIVALS: [(RowKind, &str); 3] = [
    (RowKind::Plain, "llama.cpp's plain types, rounded"),
    (RowKind::Imatrix, "the same, with an importance matrix"),
    (
        RowKind::Mixture,
        "llama.cpp's mixtures, with an importance matrix (points: which)",
    ),
];

/// Perplexity against file size, a line for each series and one for the plain
/// alternative, or one for each kind of llama.cpp's files. All begin at the source.
pub fn picture(report: &Report) -> Scene {
    let source = &report.rows[0];
    let point = |row: &Row, label: String| Point {
        at: (row.made.file_bytes as f64 / 1e6, row.quality.perplexity),
        label,
    };
    // Where match functions are compared, each has one colour, and there is no room to
    // say at each point which ratio it is.
    let compares = report.compares();
    let mut functions = Vec::new();
    for of in &report.series {
        if !functions.contains(&of.function) {
            functions.push(of.function);
        }
    }
    let label = |row: &Row| match (row.ratio, row.size) {
        (Some(ratio), _) if !compares => ratio.to_string(),
        (None, Some(bytes)) => size(bytes),
        _ => String::new(),
    };
    let mut series = Vec::new();
    for (i, of) in report.series.iter().enumerate() {
        let mut points: Vec<Point> = report
            .rows
            .iter()
            .filter(|row| of.has(row))
            .map(|row| point(row, label(row)))
            .collect();
        // Where nothing is shared the file is the source, differently laid out.
        if !report
            .rows
            .iter()
            .any(|row| of.has(row) && row.ratio == Some(0.0))
        {
            points.insert(0, point(source, String::new()));
        }
        let function = functions.iter().position(|f| *f == of.function);
        series.push(LineSeries {
            name: match of.name {
                _ if compares => of.title.clone(),
                Series::Fitted => format!("{} (points: size)", of.title),
                _ => format!("{} (points: ratio)", of.title),
            },
            points,
            colour: function.filter(|_| compares).unwrap_or(i),
            marks: match of.name {
                Series::Repaired if compares => Marks::Circles,
                _ => Marks::Dots,
            },
        });
    }
    let mut lower: Vec<&Row> = report
        .rows
        .iter()
        .filter(|row| row.form == RowKind::Lower)
        .collect();
    lower.sort_by_key(|row| std::cmp::Reverse(row.made.file_bytes));
    if !lower.is_empty() {
        let mut points = vec![point(source, String::new())];
        points.extend(
            lower
                .iter()
                .map(|row| point(row, format!("{:.0}%", row.made.share * 100.0))),
        );
        series.push(LineSeries {
            name: "plain: part of the body stored one type lower (points: share of the body)"
                .into(),
            points,
            colour: match compares {
                true => functions.len(),
                false => report.series.len(),
            },
            marks: Marks::Circles,
        });
    }
    for (form, name) in RIVALS {
        let rows = || report.rows.iter().filter(|row| row.form == form);
        if rows().next().is_none() {
            continue;
        }
        // Of mixtures there are few, and what they are is their name.
        let label = |row: &Row| match form {
            RowKind::Mixture => row.label.split(',').next().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        let mut points = vec![point(source, String::new())];
        points.extend(rows().map(|row| point(row, label(row))));
        points.dedup_by(|a, b| a.at == b.at);
        series.push(LineSeries {
            name: name.into(),
            points,
            colour: series.len(),
            marks: Marks::Circles,
        });
    }
    let plot = LinePlot {
        x_meaning: "file size, MB".into(),
        y_meaning: "perplexity".into(),
        level: Some((source.quality.perplexity, "source".into())),
        series,
        heading: None,
        counts: false,
    };
    let close = close_up(&plot, source.quality.perplexity * CLOSE);
    let (width, mut height) = plot.size();
    if let Some(close) = &close {
        height += GAP + close.size().1;
    }
    let small_print = format!(
        "{} windows of {} tokens; lower and further left is better",
        source.quality.chunks, report.settings.ctx
    );
    let mut scene = Scene::new(
        width + 2 * MARGIN,
        TITLE_SPACE + height + MARGIN,
        &format!("{}: quality against bytes", title(report)),
        &small_print,
    );
    plot.draw(&mut scene, (MARGIN, TITLE_SPACE + 8));
    if let Some(close) = close {
        let below = TITLE_SPACE + 8 + plot.size().1 + GAP;
        close.draw(&mut scene, (MARGIN, below));
    }
    scene
}

/// What of `plot` lies below `limit`; `None` if that is all, or nothing but the
/// source.
fn close_up(plot: &LinePlot, limit: f64) -> Option<LinePlot> {
    let points = |plot: &LinePlot| -> usize { plot.series.iter().map(|s| s.points.len()).sum() };
    let mut series = plot.series.clone();
    for series in &mut series {
        series.points.retain(|point| point.at.1 < limit);
    }
    series.retain(|series| series.points.len() > 1);
    let close = LinePlot {
        heading: Some(format!(
            "The same below {CLOSE} times the source's perplexity"
        )),
        series,
        ..plot.clone()
    };
    let left_out = points(&close) < points(plot);
    (left_out && !close.series.is_empty()).then_some(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(heights: &[&[f64]]) -> LinePlot {
        let series = heights.iter().map(|heights| LineSeries {
            name: String::new(),
            points: (heights.iter().zip(0..))
                .map(|(&y, x)| Point {
                    at: (f64::from(x), y),
                    label: String::new(),
                })
                .collect(),
            colour: 0,
            marks: Marks::Dots,
        });
        LinePlot {
            x_meaning: String::new(),
            y_meaning: String::new(),
            level: None,
            series: series.collect(),
            heading: None,
            counts: false,
        }
    }

    #[test]
    fn what_is_near_the_source_is_drawn_by_itself_where_not_all_is() {
        let close = close_up(&plot(&[&[10.0, 600.0], &[10.0, 12.0, 15.0]]), 20.0).unwrap();
        assert_eq!(close.series.len(), 1);
        assert_eq!(close.series[0].points.len(), 3);
        assert!(close_up(&plot(&[&[10.0, 15.0], &[10.0, 12.0]]), 20.0).is_none());
        assert!(close_up(&plot(&[&[10.0, 600.0]]), 20.0).is_none());
    }
}
