//! Quality over ratio, a line for each match function: the like of the paper's
//! Figure 3 and Table 12.

use super::rows::{FunctionCurve, FunctionPoint, Report, Row, Series, SeriesTitle};
use super::words::{accuracy, escaped, line, title};
use crate::analyze::picture::{LinePlot, LineSeries, MARGIN, Marks, Point, Scene, TITLE_SPACE};

/// The picture's name in the report's folder.
pub const PICTURE: &str = "match.svg";
/// Pixels between two plots.
const GAP: u32 = 24;

/// The curve of each match function, those that only share first; none where one
/// function is all there is. The first of `rows` is the source.
pub fn curves(series: &[SeriesTitle], rows: &[Row]) -> Vec<FunctionCurve> {
    let chosen = |of: &&SeriesTitle| of.function.is_some();
    let mut all: Vec<&SeriesTitle> = series.iter().filter(chosen).collect();
    if all.iter().all(|of| of.function == all[0].function) {
        return Vec::new();
    }
    all.sort_by_key(|of| of.name);
    let curve = |of: &SeriesTitle| {
        let points = rows.iter().enumerate().filter(|(_, row)| of.has(row));
        Some(FunctionCurve {
            function: of.function?,
            series: of.name,
            points: points.filter_map(|(i, row)| point(i, row)).collect(),
        })
    };
    all.into_iter().filter_map(curve).collect()
}

fn point(at: usize, row: &Row) -> Option<FunctionPoint> {
    let against = row.quality.against.as_ref()?;
    Some(FunctionPoint {
        ratio: row.ratio?,
        row: at,
        changed: row.made.changed,
        perplexity: row.quality.perplexity,
        stderr: row.quality.stderr,
        ratio_to_source: against.ratio,
        kl_mean: against.kl_mean,
    })
}

/// What a table of curves has in its cells.
enum Measure {
    Perplexity,
    /// The accuracy in the task at this place.
    Task(usize),
}

impl Measure {
    /// A row's number, and how it is written.
    fn of(&self, row: &Row) -> Option<(f64, String)> {
        match self {
            Self::Perplexity => {
                let quality = &row.quality;
                let text = format!("{:.3} ± {:.3}", quality.perplexity, quality.stderr);
                Some((quality.perplexity, text))
            }
            Self::Task(i) => {
                let task = row.tasks.get(*i)?;
                let (share, error) = task.accuracy.by(task.metric);
                Some((share, accuracy(share, error)))
            }
        }
    }

    /// What the number has to be multiplied by, so that less is better.
    fn sign(&self) -> f64 {
        match self {
            Self::Perplexity => 1.0,
            Self::Task(_) => -1.0,
        }
    }
}

/// A table of ratios for perplexity, and one for each task: the best number at
/// each ratio is bold.
pub(super) fn tables(report: &Report) -> String {
    let tasks = report.rows.first().map_or(&[][..], |row| &row.tasks);
    let mut tables = vec![table(report, "perplexity", &Measure::Perplexity)];
    for (i, task) in tasks.iter().enumerate() {
        tables.push(table(report, &task.task, &Measure::Task(i)));
    }
    tables.join("\n")
}

fn table(report: &Report, name: &str, measure: &Measure) -> String {
    let ratios = &report.settings.ratios;
    let mut head = vec![format!("{} at ratio", escaped(name))];
    head.extend(ratios.iter().map(f64::to_string));
    let mut rules = vec!["---".to_owned()];
    rules.extend(ratios.iter().map(|_| "---:".to_owned()));
    let found: Vec<Vec<Option<(f64, String)>>> = (report.functions.iter())
        .map(|curve| {
            let at = |ratio: &f64| {
                let point = curve.points.iter().find(|point| point.ratio == *ratio)?;
                measure.of(report.rows.get(point.row)?)
            };
            ratios.iter().map(at).collect()
        })
        .collect();
    let sign = measure.sign();
    let best = |column: usize| {
        let numbers = found.iter().filter_map(|row| row[column].as_ref());
        let numbers = numbers.map(|(number, _)| sign * number);
        numbers.fold(f64::INFINITY, f64::min)
    };
    let best: Vec<f64> = (0..ratios.len()).map(best).collect();
    let mut lines = vec![line(&head), line(&rules)];
    if let Some((_, text)) = report.rows.first().and_then(|row| measure.of(row)) {
        let mut cells = vec!["source".to_owned()];
        cells.extend(ratios.iter().map(|_| text.clone()));
        lines.push(line(&cells));
    }
    for (curve, found) in report.functions.iter().zip(&found) {
        let mut cells = vec![curve_name(curve)];
        cells.extend(found.iter().zip(&best).map(|(cell, best)| match cell {
            Some((number, text)) if sign * number == *best => format!("**{text}**"),
            Some((_, text)) => text.clone(),
            None => String::new(),
        }));
        lines.push(line(&cells));
    }
    lines.concat()
}

/// What a curve is called.
fn curve_name(curve: &FunctionCurve) -> String {
    match curve.series {
        Series::Shared => curve.function.to_string(),
        other => format!("{}, {other}", curve.function),
    }
}

/// Perplexity over ratio, a line for each match function; a plot for what only
/// shares and one for what is repaired. None where nothing is compared.
pub fn picture(report: &Report) -> Option<Scene> {
    let source = report.rows.first()?;
    let mut plots = Vec::new();
    for series in [Series::Shared, Series::Repaired] {
        let curves = || report.functions.iter().filter(move |c| c.series == series);
        if curves().next().is_none() {
            continue;
        }
        let lines = curves().enumerate().map(|(i, curve)| {
            let point = |ratio, perplexity| Point {
                at: (ratio, perplexity),
                label: String::new(),
            };
            let mut points: Vec<Point> = (curve.points.iter())
                .map(|at| point(at.ratio, at.perplexity))
                .collect();
            // At ratio 0 nothing is shared that is not the same.
            if points.first().is_none_or(|first| first.at.0 > 0.0) {
                points.insert(0, point(0.0, source.quality.perplexity));
            }
            LineSeries {
                name: format!("match {}", curve_name(curve)),
                points,
                colour: i,
                marks: Marks::Dots,
            }
        });
        plots.push(LinePlot {
            x_meaning: "ratio: share of the units that use another unit's weights".into(),
            y_meaning: "perplexity".into(),
            level: Some((source.quality.perplexity, "source".into())),
            series: lines.collect(),
            heading: None,
            counts: false,
        });
    }
    let sizes = plots.iter().map(LinePlot::size);
    let (width, height) = sizes.fold((0, 0), |(w, h), (width, height)| {
        (w.max(width), h + height + GAP)
    });
    if plots.is_empty() {
        return None;
    }
    let mut scene = Scene::new(
        width + 2 * MARGIN,
        TITLE_SPACE + 8 + height,
        &format!("{}: match functions", title(report)),
        &format!(
            "{} windows of {} tokens; lower is better",
            source.quality.chunks, report.settings.ctx
        ),
    );
    let mut top = TITLE_SPACE + 8;
    for plot in plots {
        plot.draw(&mut scene, (MARGIN, top));
        top += plot.size().1 + GAP;
    }
    Some(scene)
}
