//! What `plan` says.

use headshare_jobs::{Planned, Sizes};

use super::fit::render as render_fit;
use super::numbers::{counted, grouped, percent};
use crate::plan::Plan;

/// What `plan` says.
pub(crate) fn render(planned: &Planned) -> String {
    match &planned.fit {
        Some(fit) => render_fit(fit, false) + &render_saved(&planned.sizes),
        None => render_shared(&planned.plan, &planned.sizes),
    }
}

/// What `plan` and `convert --dry-run` say about a plan and its savings.
pub(super) fn render_shared(plan: &Plan, sizes: &Sizes) -> String {
    let mut text = format!("{}: {}\n", sizes.source, shared_units(plan));
    text += &render_saved(sizes);
    if plan.shares().next().is_some() {
        text += "\nlayer unit  donor: layer unit  best match: layer unit  parts  score\n";
    }
    for share in plan.shares() {
        let parts: Vec<&str> = share.parts.iter().map(|p| p.as_str()).collect();
        let score = share
            .score
            .map_or("-".to_owned(), |score| format!("{score:.6}"));
        text += &format!(
            "{:5} {:4}         {:5} {:4}              {:5} {:4}  {:5}  {score}\n",
            share.layer,
            share.unit,
            share.donor_layer,
            share.donor_unit,
            share.matched().layer,
            share.matched().unit,
            parts.join(","),
        );
    }
    text
}

/// How many units use others, and how they were chosen.
pub(super) fn shared_units(plan: &Plan) -> String {
    let n = plan.shares().count() as u64;
    let units = match plan.choice.units {
        Some(all) => {
            let of_all = |verb: &str| format!("of {all} units {verb}");
            counted(n, &of_all("uses"), &of_all("use"))
        }
        None => counted(n, "unit uses", "units use"),
    };
    format!("{units} another unit's weights ({})", plan.choice)
}

/// What stands before sizes, and before savings, that depend on a repair.
pub(super) fn bounds(at_most: bool) -> [&'static str; 2] {
    match at_most {
        true => ["at most ", "at least "],
        false => ["", ""],
    }
}

/// The savings in words.
pub(super) fn render_saved(sizes: &Sizes) -> String {
    let saved = sizes.saved;
    let [most, least] = bounds(sizes.at_most);
    let (change, how) = match saved.file_bytes {
        more @ ..0 => (-more, "larger"),
        less => (less, "saved"),
    };
    let mut text = format!(
        "file:     {} -> {most}{} bytes, {least}{} ({}) {how}\n",
        grouped(sizes.source_bytes),
        grouped(sizes.output_bytes),
        grouped(change),
        percent(change, sizes.source_bytes)
    );
    text += &format!(
        "resident: {least}{} bytes ({}) saved\n",
        grouped(saved.resident_bytes),
        percent(saved.resident_bytes as i64, sizes.source_bytes)
    );
    let duplicates = &sizes.duplicates;
    let counts = [
        (duplicates.tensors, "tensors"),
        (duplicates.blocks, "head blocks"),
        (duplicates.experts, "experts"),
        (duplicates.runs, "runs of rows"),
    ];
    let counts: Vec<String> = (counts.into_iter())
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    if !counts.is_empty() {
        text += &format!(
            "exact duplicates: {least}{}, {} bytes\n",
            counts.join(", "),
            grouped(duplicates.bytes)
        );
    }
    text
}
