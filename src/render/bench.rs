//! What `bench` says.

use headshare_jobs::BenchRow;

use super::numbers;

/// llama-bench's name of a test: `pp512`.
fn test(row: &BenchRow) -> String {
    match row.n_gen {
        0 => format!("pp{}", row.n_prompt),
        n => format!("tg{n}"),
    }
}

/// Two tables, of speeds and of memory, and what the numbers mean.
pub(crate) fn table(rows: &[BenchRow]) -> String {
    let configurations: Vec<&[BenchRow]> = rows.chunk_by(|a, b| a.label == b.label).collect();
    let [first, ..] = rows else {
        return String::new();
    };
    let mut head = ["configuration", "load ms", "ratio", "cpu"]
        .map(str::to_owned)
        .to_vec();
    for row in configurations[0] {
        let name = format!("{} t/s", test(row));
        head.extend([name, "ratio".into(), "cpu".into()]);
    }
    let mut speeds = vec![head];
    for tests in &configurations {
        let row = &tests[0];
        let ratio = [
            row.load_ratio_median,
            row.load_ratio_min,
            row.load_ratio_max,
        ];
        let mut cells = vec![
            row.label.clone(),
            format!("{:.0}", row.load_ms),
            spread(ratio),
            middle(row.load_cpu_ratio_median),
        ];
        for test in *tests {
            let cpu = middle(test.cpu_ratio_median);
            cells.extend([plus_minus(test), speed_ratio(test), cpu]);
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
    for tests in &configurations {
        let row = &tests[0];
        let after = &row.memory;
        memory.push(vec![
            row.label.clone(),
            row.resolve.as_str().to_owned(),
            mib(Some(row.file_bytes)),
            mib(row.memory_after_load.weights_pss_bytes),
            mib(after.weights_pss_bytes),
            mib(after.pss_bytes),
            mib(Some(after.shared_bytes)),
            after.vmas.map_or_else(unknown, |n| n.to_string()),
        ]);
    }
    format!(
        "{}, {} threads, {}{} rounds\n\n{}\n{}\n\
         load and ratio are medians; ratio (smallest..largest) is to \"{}\" in the same round.\n\
         cpu is the same ratio by processor time, which other programs change less. t/s is mean\n\
         ± standard deviation. Memory is PSS: the weights' after loading and after generating,\n\
         the process's after generating.\n",
        model(first),
        first.n_threads,
        match first.n_busy {
            0 => String::new(),
            1 => "1 busy neighbour, ".to_owned(),
            n => format!("{n} busy neighbours, "),
        },
        first.samples_load_ms.len(),
        aligned(&speeds, 1),
        aligned(&memory, 2),
        first.label,
    )
}

/// One row for each configuration and test, as llama-bench prints them.
pub(crate) fn markdown(rows: &[BenchRow]) -> String {
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
    for row in rows {
        text += &line(&[
            escaped(&row.model_type),
            gib(row.model_size),
            format!("{:.2} B", row.model_n_params as f64 / 1e9),
            row.backends.clone(),
            row.n_threads.to_string(),
            escaped(&row.label),
            format!("{:.0}", row.load_ms),
            mib(row.memory.weights_pss_bytes),
            test(row),
            plus_minus(row),
            speed_ratio(row),
        ]);
    }
    text
}

fn model(row: &BenchRow) -> String {
    format!(
        "{}, {}, {:.2} B parameters",
        row.model_type,
        gib(row.model_size),
        row.model_n_params as f64 / 1e9
    )
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn mib(bytes: Option<u64>) -> String {
    bytes.map_or_else(unknown, numbers::mib)
}

fn unknown() -> String {
    "-".to_owned()
}

fn plus_minus(row: &BenchRow) -> String {
    format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts)
}

/// Median, smallest and largest.
fn spread([median, min, max]: [f64; 3]) -> String {
    if min == 1.0 && max == 1.0 {
        return "1".to_owned(); // the reference
    }
    format!("{median:.3} ({min:.3}..{max:.3})")
}

fn speed_ratio(row: &BenchRow) -> String {
    spread([row.ratio_median, row.ratio_min, row.ratio_max])
}

fn middle(ratio: Option<f64>) -> String {
    ratio.map_or_else(unknown, |ratio| format!("{ratio:.3}"))
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
