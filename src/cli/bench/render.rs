//! The result as text.

use super::report::{Ratio, Report, Row, mean, median, stddev};
use super::worker::{Measured, Test};

/// One measurement in a line, for those who wait.
pub(super) fn progress(one: &Measured, test: &Test) -> String {
    let mut line = format!("loaded in {:.0} ms", one.loaded.load.ms());
    for (what, count, took) in [
        ("pp", test.n_prompt, one.prefill),
        ("tg", test.n_gen, one.decode),
    ] {
        if let Some(took) = took {
            let ts = f64::from(count) * 1e9 / took.ns.max(1) as f64;
            line += &format!(", {what}{count} {ts:.2} t/s");
        }
    }
    line
}

/// Two tables, of speeds and of memory, and what the numbers mean.
pub(super) fn table(report: &Report) -> String {
    let kinds = report.kinds();
    let mut head = ["configuration", "load ms", "ratio", "cpu"]
        .map(str::to_owned)
        .to_vec();
    for &kind in &kinds {
        let name = format!("{} t/s", report.name(kind));
        head.extend([name, "ratio".into(), "cpu".into()]);
    }
    let mut speeds = vec![head];
    for row in &report.rows {
        let mut cells = vec![
            row.label.clone(),
            format!("{:.0}", median(&row.load_ms())),
            spread(report.load_ratio(row)),
            middle(report.load_cpu_ratio(row)),
        ];
        for &kind in &kinds {
            let speed = report.speed(row, kind);
            let (ratio, cpu) = (spread(speed.ratio), middle(speed.cpu_ratio));
            cells.extend([plus_minus(&speed.ts), ratio, cpu]);
        }
        speeds.push(cells);
    }
    let mut memory = vec![
        [
            "configuration",
            "resolve",
            "file MiB",
            "weights MiB, loaded",
            "generated",
            "process MiB",
            "shared MiB",
            "mappings",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for row in &report.rows {
        let after = &row.memory;
        memory.push(vec![
            row.label.clone(),
            row.loaded.resolve.clone(),
            mib(Some(row.file_bytes)),
            mib(row.memory_after_load.weights_pss_bytes),
            mib(after.weights_pss_bytes),
            mib(after.pss_bytes),
            mib(Some(after.shared_bytes)),
            after.vmas.map_or_else(unknown, |n| n.to_string()),
        ]);
    }
    let first = &report.rows[0];
    format!(
        "{}, {} threads, {}{} rounds\n\n{}\n{}\n\
         load and ratio are medians; ratio (smallest..largest) is to \"{}\" in the same round.\n\
         cpu is the same ratio by processor time, which other programs change less. t/s is mean\n\
         ± standard deviation. Memory is PSS: the weights' after loading and after generating,\n\
         the process's after generating.\n",
        model(first),
        first.loaded.n_threads,
        match report.busy {
            0 => String::new(),
            1 => "1 busy neighbour, ".to_owned(),
            n => format!("{n} busy neighbours, "),
        },
        first.rounds(),
        aligned(&speeds, 1),
        aligned(&memory, 2),
        first.label,
    )
}

/// One row for each configuration and test, as llama-bench prints them.
pub(super) fn markdown(report: &Report) -> String {
    let head = [
        ("model", "---"),
        ("size", "---:"),
        ("params", "---:"),
        ("backend", "---"),
        ("threads", "---:"),
        ("configuration", "---"),
        ("load ms", "---:"),
        ("weights PSS MiB", "---:"),
        ("test", "---:"),
        ("t/s", "---:"),
        ("ratio", "---:"),
    ];
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.map(|(name, _)| name.to_owned()));
    text += &line(&head.map(|(_, rule)| rule.to_owned()));
    for row in &report.rows {
        for kind in report.kinds() {
            let speed = report.speed(row, kind);
            text += &line(&[
                escaped(&row.loaded.model_type),
                gib(row.loaded.model_size),
                format!("{:.2} B", row.loaded.model_n_params as f64 / 1e9),
                "CPU".to_owned(),
                row.loaded.n_threads.to_string(),
                escaped(&row.label),
                format!("{:.0}", median(&row.load_ms())),
                mib(row.memory.weights_pss_bytes),
                speed.name.clone(),
                plus_minus(&speed.ts),
                spread(speed.ratio),
            ]);
        }
    }
    text
}

fn model(row: &Row) -> String {
    format!(
        "{}, {}, {:.2} B parameters",
        row.loaded.model_type,
        gib(row.loaded.model_size),
        row.loaded.model_n_params as f64 / 1e9
    )
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn mib(bytes: Option<u64>) -> String {
    bytes.map_or_else(unknown, |bytes| {
        format!("{:.1}", bytes as f64 / f64::from(1 << 20))
    })
}

fn unknown() -> String {
    "-".to_owned()
}

fn plus_minus(samples: &[f64]) -> String {
    format!("{:.2} ± {:.2}", mean(samples), stddev(samples))
}

fn spread(ratio: Ratio) -> String {
    if ratio.min == 1.0 && ratio.max == 1.0 {
        return "1".to_owned(); // the reference
    }
    format!("{:.3} ({:.3}..{:.3})", ratio.median, ratio.min, ratio.max)
}

fn middle(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(unknown, |ratio| format!("{:.3}", ratio.median))
}

/// A cell's text: a bar would end the cell, a line end the table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Columns side by side; the first `left` of them begin at the left, the others
/// end at the right.
fn aligned(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width - cell.chars().count());
            if column > 0 {
                line += "  ";
            }
            if column < left {
                line += cell;
                line += &space;
            } else {
                line += &space;
                line += cell;
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".to_owned(), "12".into()],
            vec!["±bc".into(), "3".into()],
        ];
        assert_eq!(aligned(&rows, 1), "a    12\n±bc   3\n");
    }

    #[test]
    fn markdown_cells_hold_any_name() {
        assert_eq!(escaped("a|b\nc"), "a\\|b c");
    }
}
