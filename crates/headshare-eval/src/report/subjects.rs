//! Accuracy by subject, the source and each converted file side by side: the like
//! of the paper's Figure 4.

use super::rows::{Report, Row, RowKind, TaskScore};
use super::words::{accuracy, escaped, line, title};
use crate::analyze::picture::{Bar, BarPanel, MARGIN, PairedBars, Scene, TITLE_SPACE};
use crate::eval::choice::summary::{Accuracy, SubjectSummary};

/// The picture's name in the report's folder.
pub const PICTURE: &str = "subjects.svg";
/// Pixels between the plots of two tasks.
const GAP: u32 = 32;

/// The places of the tasks that have subjects.
fn tasks(report: &Report) -> Vec<usize> {
    let all = report.rows.first().map_or(&[][..], |row| &row.tasks);
    let with = all
        .iter()
        .enumerate()
        .filter(|(_, t)| !t.subjects.is_empty());
    with.map(|(i, _)| i).collect()
}

/// The forms that are compared: the source, then what is converted.
fn forms(report: &Report) -> impl Iterator<Item = &Row> {
    let compared = |row: &&Row| matches!(row.form, RowKind::Source | RowKind::Converted);
    report.rows.iter().filter(compared)
}

/// A subject's score in one form's.
fn of<'a>(task: Option<&'a TaskScore>, subject: &str) -> Option<&'a SubjectSummary> {
    (task?.subjects.iter()).find(|found| found.subject == subject)
}

/// A table for each task that has subjects: a line for each of them.
pub(super) fn tables(report: &Report) -> String {
    let tables: Vec<String> = (tasks(report).into_iter())
        .map(|task| table(report, task))
        .collect();
    tables.join("\n")
}

fn table(report: &Report, task: usize) -> String {
    let scored = &report.rows[0].tasks[task];
    let forms: Vec<&Row> = forms(report).collect();
    let mut head = vec![escaped(&scored.task), "questions".to_owned()];
    head.extend(forms.iter().map(|row| escaped(&row.label)));
    let mut rules = vec!["---".to_owned()];
    rules.extend(vec!["---:".to_owned(); 1 + forms.len()]);
    let shown = |of: &Accuracy| {
        let (share, error) = of.by(scored.metric);
        accuracy(share, error)
    };
    let mut all = vec!["**all**".to_owned(), scored.accuracy.n.to_string()];
    all.extend(forms.iter().map(|row| {
        let task = row.tasks.get(task);
        task.map_or_else(String::new, |task| shown(&task.accuracy))
    }));
    let mut lines = vec![line(&head), line(&rules), line(&all)];
    for subject in &scored.subjects {
        let mut cells = vec![escaped(&subject.subject), subject.accuracy.n.to_string()];
        cells.extend(forms.iter().map(|row| {
            let found = of(row.tasks.get(task), &subject.subject).map(|s| s.accuracy);
            found.map_or_else(String::new, |found| shown(&found))
        }));
        lines.push(line(&cells));
    }
    lines.concat()
}

/// Bars for each subject, a panel for each converted file. None where no task has
/// subjects, or nothing is converted.
pub fn picture(report: &Report) -> Option<Scene> {
    let plots: Vec<PairedBars> = (tasks(report).into_iter())
        .map(|task| plot(report, task))
        .filter(|plot| !plot.panels.is_empty())
        .collect();
    if plots.is_empty() {
        return None;
    }
    let sizes = plots.iter().map(PairedBars::size);
    let (width, height) = sizes.fold((0, 0), |(w, h), (width, height)| {
        (w.max(width), h + height + GAP)
    });
    let limit = match report.settings.limit {
        Some(limit) => format!("; the first {limit} questions of each subject"),
        None => String::new(),
    };
    let mut scene = Scene::new(
        width + 2 * MARGIN,
        TITLE_SPACE + height,
        &format!("{}: accuracy by subject", title(report)),
        &format!("thin lines: standard errors{limit}"),
    );
    let mut top = TITLE_SPACE;
    for plot in plots {
        plot.draw(&mut scene, (MARGIN, top));
        top += plot.size().1 + GAP;
    }
    Some(scene)
}

fn plot(report: &Report, task: usize) -> PairedBars {
    let source = &report.rows[0].tasks[task];
    let bar = |of: &Accuracy| {
        let (share, error) = of.by(source.metric);
        Bar { share, error }
    };
    let mut names = vec!["all questions".to_owned()];
    names.extend(source.subjects.iter().map(|s| s.subject.replace('_', " ")));
    let panel = |row: &Row| {
        let converted = row.tasks.get(task);
        let all = converted.map(|task| bar(&task.accuracy));
        let mut bars = vec![[Some(bar(&source.accuracy)), all]];
        bars.extend((source.subjects.iter()).map(|subject| {
            let other = of(converted, &subject.subject);
            [
                Some(bar(&subject.accuracy)),
                other.map(|other| bar(&other.accuracy)),
            ]
        }));
        BarPanel {
            heading: row.label.clone(),
            bars,
        }
    };
    PairedBars {
        heading: source.task.clone(),
        meaning: "accuracy".to_owned(),
        kinds: ["source".to_owned(), "converted".to_owned()],
        names,
        panels: forms(report).skip(1).map(panel).collect(),
    }
}
