//! Distributions as text.

use crate::analyze::Summary;

/// A table of distributions, one a line.
pub(super) fn render_summaries(lines: &[(&str, Option<Summary>)]) -> String {
    let width = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:width$}  {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}\n",
        "", "n", "mean", "min", "1%", "25%", "50%", "75%", "99%", "max"
    );
    for (name, summary) in lines {
        text += &format!("{name:width$}");
        match summary {
            Some(s) => {
                text += &format!("  {:8}", s.n);
                for value in [s.mean, s.min, s.p1, s.p25, s.p50, s.p75, s.p99, s.max] {
                    text += &format!(" {value:8.4}");
                }
                text.push('\n');
            }
            None => text += "  none\n",
        }
    }
    text
}
