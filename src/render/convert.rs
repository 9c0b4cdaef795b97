//! What `convert` says.

use headshare_jobs::{Converted, MadeToFit, Tried};

use super::numbers::{grouped, percent};
use super::plan::{bounds, render as render_plan, render_saved};
use super::quantize::render as render_quantized;
use super::repair::render as render_repair;
use crate::plan::Plan;

/// What was made of a model, or would be.
pub(crate) fn render(done: &Converted) -> String {
    let fitted = render_quantized(done.quantized.as_ref()) + &render_repair(done.repair.as_ref());
    render_fit(done.fit.as_ref(), done.dry_run)
        + &fitted
        + &match &done.plan {
            Some(plan) if plan.reshapes() => render_variant(done, plan),
            Some(plan) => render_plan(plan, &done.sizes()),
            None => format!(
                "{}: byte-equal tensors and head blocks are stored once\n{}",
                done.source.path,
                render_saved(&done.sizes())
            ),
        }
}

/// What was chosen for so many bytes.
fn render_fit(fit: Option<&MadeToFit>, dry_run: bool) -> String {
    let Some(fit) = fit else {
        return String::new();
    };
    let mut text = format!(
        "at most {} bytes: of {} tensors",
        grouped(fit.wanted),
        fit.tensors
    );
    for (i, kind) in fit.types.iter().enumerate() {
        let comma = if i == 0 { " " } else { ", " };
        text += &match kind.from == kind.to {
            true => format!("{comma}{} stay {}", kind.tensors, kind.from),
            false => format!(
                "{comma}{} go from {} to {}",
                kind.tensors, kind.from, kind.to
            ),
        };
    }
    for (count, what) in [
        (fit.units, "units are dropped"),
        (fit.channels, "feed-forward channels go"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if let Some(to) = &fit.output_head {
        text += &format!(", the output head has weights of its own, {to}");
    }
    text += &format!(
        "\n  predicted divergence before they make up for each other: {:.4} nats a token\n",
        fit.predicted
    );
    if !fit.tried.is_empty() {
        let of = |t: &Tried| format!("{:.4} ({:.4})", t.measured, t.predicted);
        let all: Vec<String> = fit.tried.iter().map(of).collect();
        text += &format!(
            "  best of plans that were made, measured (predicted): {}\n",
            all.join(", ")
        );
    }
    if dry_run {
        text += "  what other sizes would cost:\n";
        let every = fit.frontier.len().div_ceil(FRONTIER_LINES).max(1);
        let last = fit.frontier.len().saturating_sub(1);
        for (i, point) in fit.frontier.iter().enumerate() {
            if i % every == 0 || i == last {
                text += &format!("  {:>16} bytes {:>9.4}\n", grouped(point.bytes), point.cost);
            }
        }
    }
    text
}

/// Lines that the frontier is shown in, about.
const FRONTIER_LINES: usize = 16;

/// What is said about a model with other shapes or types.
fn render_variant(done: &Converted, plan: &Plan) -> String {
    let mut doings = Vec::new();
    let mut say = |n: usize, what: &str| {
        if n > 0 {
            doings.push(format!("{n} {what}"));
        }
    };
    say(plan.narrows().count(), "feed-forward layers are narrower");
    say(plan.stores().count(), "tensors are stored at another type");
    let units = [
        (plan.drops().count(), "go"),
        (plan.shares().count(), "use another unit's weights"),
        (plan.silences().count(), "do nothing any more"),
    ];
    let units = units.into_iter().filter(|(n, _)| *n > 0);
    let units: Vec<String> = units.map(|(n, what)| format!("{n} {what}")).collect();
    if let Some(all) = plan.choice.units.filter(|_| !units.is_empty()) {
        doings.insert(0, format!("of {all} units {}", units.join(" and ")));
    }
    let mut text = format!("{}: {}", done.source.path, doings.join(", "));
    // A mixture is nobody's choice of tensors.
    if done.quantized.is_none() || plan.is_about_units() {
        text += &format!(" ({})", plan.choice);
    }
    text.push('\n');
    let [most, least] = bounds(done.at_most);
    text += &format!(
        "  file:     {} -> {most}{} bytes ({least}{} saved)\n  resident: {least}{} bytes saved\n",
        grouped(done.source.bytes),
        grouped(done.output.bytes),
        percent(done.saved.file_bytes, done.source.bytes),
        grouped(done.saved.resident_bytes)
    );
    if let Some(architecture) = &done.plain {
        text += &format!(
            "  a plain GGUF of llama.cpp's {architecture} architecture: any llama.cpp runs it\n"
        );
    }
    text
}
