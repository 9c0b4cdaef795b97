//! What `analyze predictions` says.

use crate::analyze::predictions::Predictions;
use crate::render::numbers::grouped;

/// The plans, and how predicted and measured divergences go together.
pub(crate) fn render(found: &Predictions) -> String {
    let mut text = format!(
        "{}: {} random plans of at most {} bytes\n{:>14} {:>10} {:>10}\n",
        found.source,
        found.plans.len(),
        grouped(found.wanted),
        "bytes",
        "predicted",
        "measured"
    );
    for plan in &found.plans {
        text += &format!(
            "{:>14} {:>10.4} {:>10.4}\n",
            grouped(plan.bytes),
            plan.predicted,
            plan.measured
        );
    }
    let number = |r: Option<f64>| r.map_or("none".to_owned(), |r| format!("{r:.3}"));
    text += &format!(
        "rank correlation {}, Pearson's {}\n",
        number(found.correlation.spearman),
        number(found.correlation.pearson)
    );
    text
}
