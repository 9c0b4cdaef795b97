//! What `convert` says.

use headshare_format::GgmlType;
use headshare_jobs::{Converted, OfType};

use super::fit::render as render_fit;
use super::numbers::{counted, grouped};
use super::plan::{render_saved, render_shared};
use super::quantize::render as render_quantized;
use super::repair::render as render_repair;
use crate::plan::Plan;

/// What was made of a model, or would be.
pub(crate) fn render(done: &Converted) -> String {
    let quantized = render_quantized(done.quantized.as_ref(), done.fit.is_some());
    let fitted = quantized + &render_repair(done.repair.as_ref());
    let fit = (done.fit.as_ref()).map_or_else(String::new, |fit| render_fit(fit, done.dry_run));
    let changed = match &done.plan {
        Some(plan) if plan.reshapes() => render_variant(done, plan),
        Some(plan) if plan.choice.units.is_some() || !plan.edits.is_empty() => {
            render_shared(plan, &done.sizes())
        }
        _ => format!(
            "{}: byte-equal tensors and head blocks are stored once\n{}",
            done.source.path,
            render_saved(&done.sizes())
        ),
    };
    fit + &fitted + &changed + &render_output(done)
}

/// What the file is, and what runs it.
pub(super) fn render_output(done: &Converted) -> String {
    let what = match &done.plain {
        Some(architecture) => {
            let newest = newest(done);
            let needs = match newest.is_empty() {
                true => String::new(),
                false => format!(" in a version that knows {}", newest.join(" and ")),
            };
            format!("a plain GGUF of the architecture {architecture}: llama.cpp runs it{needs}")
        }
        // It depends on the repair.
        None if done.at_most => return "dry run: nothing is written\n".to_owned(),
        None => "a headshare file: `headshare-gguf run` runs it, and so do llama.cpp's programs \
                 through `headshare-gguf exec`"
            .to_owned(),
    };
    match done.dry_run {
        true => format!("dry run: nothing is written; it would be {what}\n"),
        false => format!("{}: {what}\n", done.output.path),
    }
}

/// MXFP4's number: llama.cpp before August 2025 knows neither it nor the types after it.
const YOUNG: u32 = 39;

/// The types of tensors that older versions of llama.cpp do not know.
fn newest(done: &Converted) -> Vec<&str> {
    let is_young = |name: &&str| GgmlType::named(name).is_some_and(|t| t.id() >= YOUNG);
    let names = done.types.keys().map(String::as_str);
    names.filter(is_young).collect()
}

/// How many tensors have which type.
fn render_types(done: &Converted) -> String {
    let mut types: Vec<_> = done.types.iter().collect();
    types.sort_by_key(|(_, of)| std::cmp::Reverse(of.bytes));
    let counts: Vec<String> = (types.iter())
        .map(|(name, of)| format!("{} {name}", grouped(of.tensors as u64)))
        .collect();
    let sum = |number: fn(&OfType) -> u64| done.types.values().map(number).sum::<u64>();
    let (bytes, weights) = (sum(|of| of.bytes), sum(|of| of.weights));
    format!(
        "  types:    {}; {:.2} bits per weight\n",
        counts.join(", "),
        bytes as f64 * 8.0 / weights.max(1) as f64
    )
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
        done.retyped,
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
    if plan.stores().next().is_some() {
        text += &render_types(done);
    }
    text + &indented(&render_saved(&done.sizes()))
}

/// The same lines, two spaces to the right.
pub(super) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
