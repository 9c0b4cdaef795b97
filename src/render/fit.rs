//! What is said about a model that was made to fit.

use std::collections::BTreeMap;

use headshare_jobs::{Changes, MadeToFit, Tried};

use super::numbers::{counted, grouped, significant};

/// What was chosen for so many bytes.
pub(super) fn render(fit: &MadeToFit, dry_run: bool) -> String {
    let mut text = format!(
        "at most {} bytes: of {}",
        grouped(fit.wanted),
        counted(fit.tensors as u64, "tensor", "tensors")
    );
    for (i, kind) in fit.changes.types.iter().enumerate() {
        let comma = if i == 0 { " " } else { ", " };
        text += &match kind.from == kind.to {
            true => {
                let stay = counted(kind.tensors as u64, "stays", "stay");
                format!("{comma}{stay} {}", kind.from)
            }
            false => {
                let go = counted(kind.tensors as u64, "goes", "go");
                format!("{comma}{go} from {} to {}", kind.from, kind.to)
            }
        };
    }
    for part in parts(&fit.changes) {
        text += &format!(", {part}");
    }
    if let Some(memory) = &fit.memory {
        text += &format!(
            "\n  memory with a context of {} tokens: {} bytes of weights, {} of KV cache, compute buffers and program; {}",
            memory.ctx,
            grouped(memory.weights),
            grouped(memory.others),
            match memory.left {
                0.. => format!(
                    "of {} bytes {} are left",
                    grouped(memory.bytes),
                    grouped(memory.left)
                ),
                over => format!(
                    "{} more than the {} bytes that are there",
                    grouped(-over),
                    grouped(memory.bytes)
                ),
            }
        );
    }
    if fit.estimated > 0 {
        text += &format!(
            "\n  not measured for want of time: {} tensors, estimated from others like them",
            fit.estimated
        );
    }
    text += &format!(
        "\n  predicted divergence before they make up for each other: {} nats a token\n",
        significant(fit.predicted)
    );
    if !fit.tried.is_empty() {
        let measured = |t: &&Tried| t.measured.unwrap_or(f64::INFINITY);
        let taken = (fit.tried.iter()).min_by(|a, b| measured(a).total_cmp(&measured(b)));
        let of = |t: &Tried| match t.measured {
            Some(measured) => {
                format!("{} ({})", significant(measured), significant(t.predicted))
            }
            None => format!("no numbers ({})", significant(t.predicted)),
        };
        let others = fit.tried.iter().filter(|t| taken != Some(t)).map(of);
        let others: Vec<String> = others.collect();
        text += &format!(
            "  plans that were made, measured (predicted): {} is taken, others {}\n",
            taken.map_or_else(String::new, of),
            others.join(", ")
        );
    }
    if dry_run {
        text += "  chosen by prediction only: without --dry-run, up to two other plans may be made and measured beside it, and the best is written\n";
        text += "  what other sizes would cost:\n";
        for point in &fit.frontier {
            let (bytes, cost) = (grouped(point.bytes), significant(point.cost));
            let what = in_short(&point.changes);
            text += &format!("  {bytes:>16} bytes {cost:>10}  {what}\n");
        }
    }
    text
}

/// What changes beside the types of tensors.
fn parts(changes: &Changes) -> Vec<String> {
    let mut parts = Vec::new();
    for (count, one, several) in [
        (changes.units, "unit is dropped", "units are dropped"),
        (
            changes.shared,
            "unit uses the weights of another",
            "units use the weights of others",
        ),
        (
            changes.channels,
            "feed-forward channel goes",
            "feed-forward channels go",
        ),
    ] {
        if count > 0 {
            parts.push(counted(count, one, several));
        }
    }
    if let Some(to) = &changes.output_head {
        parts.push(format!("the output head has weights of its own, {to}"));
    }
    parts
}

/// The types that tensors have then, those of most of them first, and what else changes.
fn in_short(changes: &Changes) -> String {
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in &changes.types {
        *types.entry(&kind.to).or_default() += kind.tensors;
    }
    let mut types: Vec<(&str, usize)> = types.into_iter().collect();
    types.sort_by_key(|(name, tensors)| (std::cmp::Reverse(*tensors), *name));
    let types = types
        .iter()
        .map(|(name, tensors)| format!("{tensors} {name}"));
    types.chain(parts(changes)).collect::<Vec<_>>().join(", ")
}
