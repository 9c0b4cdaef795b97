//! The report as Markdown.

use super::rows::{Report, Row, RowKind, SeriesTitle, Speed, TaskScore, Throughput};
use super::words::{accuracy, escaped, grouped, line, title};
use super::{functions, subjects};
use crate::eval::choice::Metric;

/// The whole report; `picture` is the picture's file name.
pub fn render(report: &Report, picture: &str) -> String {
    let title = escaped(&title(report));
    let mut text = format!("# {title}\n\n{}\n\n", report.summary);
    for verdict in &report.verdicts {
        text += &match verdict.ratio {
            Some(ratio) => format!("- Ratio {ratio}: {}\n", verdict.words),
            None => format!("- {}\n", escaped(&verdict.words)),
        };
    }
    text += &format!("\n![Perplexity against file size]({picture})\n\n");
    text += &table(report);
    if !report.functions.is_empty() {
        text += &format!(
            "\n## By match function\n\n![Perplexity over ratio, by match function]({})\n\n{}",
            functions::PICTURE,
            functions::tables(report)
        );
    }
    let subjects = subjects::tables(report);
    if !subjects.is_empty() {
        text += &format!(
            "\n## By subject\n\n![Accuracy by subject]({})\n\n{subjects}",
            subjects::PICTURE
        );
    }
    text += "\n";
    text += &notes(report);
    text
}

/// One line for each form.
pub fn table(report: &Report) -> String {
    let mut head = vec![
        ("", "---"),
        ("file bytes", "---:"),
        ("saved", "---:"),
        ("weights in memory", "---:"),
        ("perplexity", "---:"),
        ("KL mean", "---:"),
        ("KL 99%", "---:"),
        ("same top", "---:"),
    ];
    let tasks: Vec<String> = report.rows.first().map_or_else(Vec::new, |row| {
        row.tasks.iter().map(|task| escaped(&task.task)).collect()
    });
    head.extend(tasks.iter().map(|task| (task.as_str(), "---:")));
    head.extend([("prefill", "---:"), ("decode", "---:")]);
    let names: Vec<String> = head.iter().map(|column| column.0.to_owned()).collect();
    let rules: Vec<String> = head.iter().map(|column| column.1.to_owned()).collect();
    let mut lines = vec![line(&names), line(&rules)];
    for row in &report.rows {
        let label = match row.form {
            RowKind::Source => "**source**, as `run` loads it".to_owned(),
            RowKind::Converted => format!("**{}**", escaped(&row.label)),
            _ => escaped(&row.label),
        };
        let mut cells = vec![label];
        cells.extend(sizes(report, row));
        cells.extend(quality(row));
        cells.extend(speed(&row.speed));
        lines.push(line(&cells));
        if row.form != RowKind::Source {
            continue;
        }
        for mode in &report.source_load_modes {
            let mut cells = vec![format!("source, {}", escaped(&mode.name))];
            cells.push(grouped(row.made.file_bytes));
            cells.push(String::new());
            cells.push(memory(&mode.speed));
            cells.extend(vec![String::new(); 4 + tasks.len()]);
            cells.extend(speed(&mode.speed));
            lines.push(line(&cells));
        }
    }
    lines.concat()
}

fn sizes(report: &Report, row: &Row) -> [String; 3] {
    let saved = row.saved(&report.rows[0]);
    let percent = saved as f64 * 100.0 / report.source.bytes.max(1) as f64;
    let saved = match row.form {
        RowKind::Source => String::new(),
        _ => format!("{percent:.1}%"),
    };
    [grouped(row.made.file_bytes), saved, memory(&row.speed)]
}

fn quality(row: &Row) -> Vec<String> {
    let quality = &row.quality;
    let mut cells = vec![format!("{:.3} ± {:.3}", quality.perplexity, quality.stderr)];
    cells.extend(match &quality.against {
        Some(a) => [
            format!("{:.4}", a.kl_mean),
            format!("{:.3}", a.kl_p99),
            format!("{:.1}%", a.same_top * 100.0),
        ],
        None => Default::default(),
    });
    let tasks = row.tasks.iter();
    cells.extend(tasks.map(|task| {
        let (share, error) = task.accuracy.by(task.metric);
        accuracy(share, error)
    }));
    cells
}

fn memory(speed: &Speed) -> String {
    speed
        .weights_pss_bytes
        .map_or_else(|| "?".to_owned(), grouped)
}

fn speed(speed: &Speed) -> [String; 2] {
    [speed.prefill, speed.decode].map(|throughput| match throughput {
        Some(Throughput { tps, ratio, .. }) => format!("{tps:.1} ({ratio:.2})"),
        None => String::new(),
    })
}

/// What lines of a series are called, by its match function where `several` are
/// compared.
fn series_name(series: &SeriesTitle, several: bool) -> String {
    match series.function.filter(|_| several) {
        Some(function) => format!("{} by {function}", series.name),
        None => series.name.to_string(),
    }
}

/// What stands beside conversions at ratios.
const PLAIN_ALTERNATIVE: &str = "- A line that is not bold is the plain alternative to the bold ones \
    above it: a plain GGUF that is at most as large, because part of the body's tensors are \
    requantized to the next type below, by llama.cpp's quantizer and from this source. Layers are \
    spread evenly; attn_v and ffn_down, which llama.cpp's mixtures keep higher, go last, and of both \
    kinds those of layer 0, which all other layers build on.\n";

/// What stands beside what was made to fit.
const RIVALS: &str = "- A line that is not bold is a file of llama.cpp's that is no larger than the bold \
    one above it was to be, made by llama.cpp's quantizer from this source: plain types, one for the \
    token embedding and the output head and one for the body, as many of whose tensors as it takes \
    are one type lower; the same with an importance matrix; and one of the three largest of llama.cpp's \
    mixtures that are no larger, with an importance matrix. No tensor gets more bits than it has, but \
    in mixtures. Types of the embedding were tried from the smallest on, until two in a row did no \
    better. Of them and of the mixtures those were taken that diverge least on the calibration \
    text, rounded with the importance matrix.\n";

/// What the numbers are.
fn notes(report: &Report) -> String {
    let settings = &report.settings;
    let mut text = String::from("How to read it:\n\n");
    for series in &report.series {
        let name = series_name(series, report.compares());
        text += &format!("- \"{name}\": {}.\n", series.title);
    }
    text += match settings.sizes.is_empty() {
        true => PLAIN_ALTERNATIVE,
        false => RIVALS,
    };
    if let Some(calibration) = &report.calibration {
        text += &format!(
            "- What is fitted, and the importance matrix, is of {}.\n",
            code(&calibration.path)
        );
    }
    for row in report.rows.iter().filter(|row| row.form != RowKind::Source) {
        text += &format!("  - {}: {}.\n", escaped(&row.label), row.made.how);
    }
    let chunks = report.rows.first().map_or(0, |row| row.quality.chunks);
    text += &format!(
        "- Perplexity is of {} ({chunks} windows of {} tokens), KL the divergence from the source on \
         the same tokens, \"same top\" how often both find the same token most probable.\n",
        code(&report.text.path),
        settings.ctx
    );
    if !report.tasks.is_empty() {
        let limit = match settings.limit {
            Some(limit) => format!(", the first {limit} questions of each"),
            None => String::new(),
        };
        text += &format!(
            "- Tasks show {} with its standard error, as lm-evaluation-harness reports them{limit}.\n",
            metrics(&report.rows[0].tasks)
        );
    }
    text += &format!(
        "- Memory is the PSS of the weights after generation, in a process of its own. Speed is \
         tokens a second ({} tokens of prompt, {} generated; medians of {}), in brackets the ratio \
         to the source as `run` loads it, measured in turns. \"As `run` loads it\" drops the file's \
         pages once they are copied; llama.cpp by itself does not.\n",
        settings.n_prompt, settings.n_gen, settings.repetitions
    );
    text += &format!(
        "- {}; {}{}.\n",
        report.tool,
        report.llama_cpp,
        if settings.cpu.is_empty() {
            String::new()
        } else {
            format!("; {}", settings.cpu)
        }
    );
    text
}

/// Which accuracy is shown of which of `tasks`.
fn metrics(tasks: &[TaskScore]) -> String {
    let named = |metric: Metric| {
        let of = tasks.iter().filter(|task| task.metric == metric);
        let names: Vec<String> = of.map(|task| escaped(&task.task)).collect();
        (!names.is_empty()).then(|| (metric.name(), names.join(", ")))
    };
    match [Metric::AccuracyNorm, Metric::Accuracy].map(named) {
        [Some((norm, of_norm)), Some((plain, of_plain))] => {
            format!("{norm} ({of_norm}) or {plain} ({of_plain})")
        }
        [one, other] => one
            .or(other)
            .map_or_else(String::new, |(name, _)| name.to_owned()),
    }
}

fn code(text: &str) -> String {
    let plain = |c: char| if c == '`' || c.is_control() { ' ' } else { c };
    format!("`{}`", text.chars().map(plain).collect::<String>())
}
