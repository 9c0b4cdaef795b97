//! What is said about quantizing.

use headshare_jobs::Quantized;

use crate::quantize::{By, Counts, TooFew, Unfitted};

/// What `convert` says about quantizing; `chosen` where each tensor's type was.
pub(super) fn render(done: Option<&Quantized>, chosen: bool) -> String {
    let Some(done) = done else {
        return String::new();
    };
    let changes_none = done
        .matrices
        .is_some_and(|counts| counts == Counts::default());
    let mut text = match (chosen, done.by_plan) {
        _ if changes_none => "every matrix keeps its type".to_owned(),
        (true, _) => "quantized to the types that were chosen".to_owned(),
        (false, true) => "quantized to the types of the plan".to_owned(),
        (false, false) => format!("quantized to {}", done.record.to),
    };
    match &done.record.by {
        By::Rounding => text += ", rounded without a calibration text",
        By::Imatrix { .. } => text += ", rounded with an importance matrix",
        By::Calibration(by) => {
            text += &format!(", fitted to {} windows of {} tokens", by.windows, by.window);
        }
    }
    match (&done.record.by, done.matrices.filter(|_| !changes_none)) {
        (By::Calibration(_), Some(counts)) => text += &format!("\n  matrices: {}", counted(counts)),
        (
            By::Imatrix { .. },
            Some(Counts {
                weighted, rounded, ..
            }),
        ) => {
            text += &format!("\n  matrices: {weighted} with importances, {rounded} without");
        }
        _ => (),
    }
    text.push('\n');
    text += &unfitted(&done.unfitted);
    for other in &done.fell_back {
        text += &format!(
            "  tensors whose rows are no whole blocks of {}: {}, stored as {}\n",
            other.from, other.tensors, other.to
        );
    }
    text
}

/// How many matrices were not fitted, and why: with one of each kind for all.
fn unfitted(of: &Unfitted) -> String {
    let mut text = String::new();
    let most_lacking = |few: &&TooFew| few.needed.saturating_sub(few.tokens);
    let least = (of.too_few.iter().rev()).max_by_key(|(_, few)| most_lacking(few));
    if let Some((name, few)) = least {
        text += &format!(
            "  too few tokens came to matrices of {}. {name} has had {} and needs {}: more \
             or longer windows help\n",
            super::numbers::counted(of.too_few.len() as u64, "tensor", "tensors"),
            few.tokens,
            few.needed
        );
    }
    if let Some(why) = of.no_target.values().next() {
        let n = of.no_target.len();
        text += &format!("  matrices without a target: {n}, since {why}, for example\n");
    }
    text
}

fn counted(counts: Counts) -> String {
    let all = [
        (counts.fitted, "fitted"),
        (counts.refitted, "fitted anew at their type"),
        (counts.encoded, "encoded without a target"),
        (
            counts.weighted,
            "rounded with importances, for want of tokens",
        ),
        (counts.looked_up, "looked up, with scales of their own"),
        (counts.rounded, "rounded, because no token came to them"),
        (counts.plain, "stored as plain numbers"),
    ];
    let all = all.iter().filter(|(n, _)| *n > 0);
    let parts: Vec<String> = all.map(|(n, how)| format!("{n} {how}")).collect();
    parts.join(", ")
}
