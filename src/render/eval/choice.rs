//! What `eval choice` says.

use headshare_jobs::{ChoiceFigures, ChoiceResults, TaskFigures};

use super::{line, with_error};
use crate::eval::choice::summary::Summary;
use crate::render::numbers::grouped;

/// How well a model answers the questions of one task, or of several.
pub(crate) fn render(figures: &ChoiceFigures) -> String {
    let results = match &figures.results {
        ChoiceResults::One(task) => render_task(task),
        ChoiceResults::Several(all) => {
            let tasks: Vec<_> = all.tasks.iter().map(render_task).collect();
            format!(
                "{}\n\nmean of {} tasks: accuracy {}, accuracy_norm {:.4}",
                tasks.join("\n\n"),
                all.tasks.len(),
                accuracy_with(all.accuracy, all.stderr),
                all.accuracy_norm
            )
        }
    };
    format!("{}\n\n{results}", line(&figures.measured))
}

fn render_task(task: &TaskFigures) -> String {
    let Summary { accuracy, kind, .. } = &task.summary;
    let mut lines = vec![
        format!(
            "{}: {} questions, scored as {}",
            task.summary.task,
            grouped(accuracy.n as i128),
            kind.name()
        ),
        format!(
            "accuracy       {}",
            accuracy_with(accuracy.accuracy, accuracy.stderr)
        ),
        format!(
            "accuracy_norm  {}",
            accuracy_with(accuracy.accuracy_norm, accuracy.stderr_norm)
        ),
    ];
    if let Some(perplexity) = task.summary.perplexity {
        lines.push(format!("perplexity     {perplexity:.4}"));
    }
    if let Some(mean) = task.summary.mean_of_subjects {
        lines.push(format!(
            "subjects       {mean:.4} (mean of their accuracies)"
        ));
    }
    let width = |subject: &String| subject.chars().count();
    let names = task.summary.subjects.iter().map(|s| &s.subject);
    let widest = names.map(width).max().unwrap_or(0);
    for subject in &task.summary.subjects {
        lines.push(format!(
            "  {:widest$}  {}  of {}",
            subject.subject,
            accuracy_with(subject.accuracy.accuracy, subject.accuracy.stderr),
            subject.accuracy.n
        ));
    }
    lines.join("\n")
}

fn accuracy_with(value: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => with_error(value, stderr, 4),
        None => format!("{value:.4}"),
    }
}
