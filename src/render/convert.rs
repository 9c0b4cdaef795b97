//! What `convert` says.

use headshare_jobs::Converted;

use super::fit::render as render_fit;
use super::numbers::{counted, grouped, percent};
use super::plan::{bounds, render_saved, render_shared};
use super::quantize::render as render_quantized;
use super::repair::render as render_repair;
use crate::plan::Plan;

/// What was made of a model, or would be.
pub(crate) fn render(done: &Converted) -> String {
    let quantized = render_quantized(done.quantized.as_ref(), done.fit.is_some());
    let fitted = quantized + &render_repair(done.repair.as_ref());
    let fit = (done.fit.as_ref()).map_or_else(String::new, |fit| render_fit(fit, done.dry_run));
    fit + &fitted
        + &match &done.plan {
            Some(plan) if plan.reshapes() => render_variant(done, plan),
            Some(plan) if plan.choice.units.is_some() || !plan.edits.is_empty() => {
                render_shared(plan, &done.sizes())
            }
            _ => format!(
                "{}: byte-equal tensors and head blocks are stored once\n{}",
                done.source.path,
                render_saved(&done.sizes())
            ),
        }
}

/// What is said about a model with other shapes or types.
fn render_variant(done: &Converted, plan: &Plan) -> String {
    let mut doings = Vec::new();
    let mut say = |n: usize, one: &str, several: &str| {
        if n > 0 {
            doings.push(counted(n as u64, one, several));
        }
    };
    say(
        plan.narrows().count(),
        "feed-forward layer is narrower",
        "feed-forward layers are narrower",
    );
    say(
        plan.stores().count(),
        "tensor is stored at another type",
        "tensors are stored at another type",
    );
    let weights = ["uses another unit's weights", "use another unit's weights"];
    let units = [
        (plan.drops().count(), ["goes", "go"]),
        (plan.shares().count(), weights),
        (
            plan.silences().count(),
            ["does nothing any more", "do nothing any more"],
        ),
    ];
    let units = units.into_iter().filter(|(n, _)| *n > 0);
    let units: Vec<String> = units
        .map(|(n, [one, several])| counted(n as u64, one, several))
        .collect();
    if !units.is_empty() {
        let of_all = match plan.choice.units {
            Some(all) => format!("of {all} units "),
            None => "units: ".to_owned(),
        };
        doings.insert(0, of_all + &units.join(" and "));
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
