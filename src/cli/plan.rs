//! `plan`: which heads would share, and what that saves.

use std::path::PathBuf;

use headshare_jobs::{Error, MakePlan, Sizes};

use super::Exit;
use super::output::{Output, grouped, percent};
use super::stdio::{self, Written};
use super::values::match_functions;
use crate::matching::MatchFunction;
use crate::plan::Plan;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    /// The share of all units, from 0 to 1, that use another unit's weights. A
    /// unit is an attention head or, with grouped-query attention, a KV group.
    #[arg(long, value_name = "A", default_value_t = 0.3, value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratio: f64,
    /// Write the plan to this file, for `convert --plan`; - writes to standard
    /// output.
    #[arg(short, long, value_name = "PLAN.json")]
    output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct MatchArgs {
    /// Which parts of two units are compared [default: qk]
    #[arg(long = "match", value_name = "FUNCTION", value_parser = match_functions())]
    function: Option<MatchFunction>,
}

impl MatchArgs {
    /// The match function.
    pub(super) fn function(self) -> MatchFunction {
        self.function.unwrap_or_default()
    }

    /// Whether one was asked for.
    pub(super) fn is_given(self) -> bool {
        self.function.is_some()
    }
}

pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let written = self.output.as_deref().map(|path| Written {
            flag: "-o",
            path,
            binary: false,
        });
        let taken = stdio::taken(written.as_slice(), json)?;
        out.result_beside(taken, &self.job().run(out)?, json, |planned| {
            render(&planned.plan, &planned.sizes)
        })?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> MakePlan {
        MakePlan {
            source: self.src,
            function: self.matching.function(),
            ratio: self.ratio,
            output: self.output,
            force: self.force,
        }
    }
}

/// What `plan` and `convert --dry-run` say about a plan and its savings.
pub(super) fn render(plan: &Plan, sizes: &Sizes) -> String {
    let mut text = format!(
        "{}: {} of {} units use another unit's weights ({})\n",
        sizes.source,
        plan.shares().count(),
        plan.choice.units.unwrap_or(0),
        plan.choice
    );
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
    let mut text = format!(
        "file:     {} -> {most}{} bytes, {least}{} ({}) saved\n",
        grouped(sizes.source_bytes),
        grouped(sizes.output_bytes),
        grouped(saved.file_bytes),
        percent(saved.file_bytes, sizes.source_bytes)
    );
    text += &format!(
        "resident: {least}{} bytes ({}) in pages that are in memory once\n",
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
