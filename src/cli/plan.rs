//! `plan`: which heads would share, and what that saves.

use std::path::PathBuf;

use anyhow::Context;
use headshare_format::PageSize;

use super::Exit;
use super::output::{Output, grouped, percent};
use super::stdio::{self, Written};
use super::values::match_functions;
use crate::convert::{self, ConvertError, Fitted, Prepared};
use crate::input::ModelFile;
use crate::matching::WeightBlocks;
use crate::matching::{self, MatchFunction};
use crate::plan::{Expected, Plan};

/// The page size that `plan` counts resident bytes for.
const DEFAULT_PAGE: PageSize = PageSize::KIB_4;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    /// Share of the units that use another unit's weights, from 0 to 1.
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
    /// Which parts of two units are compared; `qk` where nothing else is asked
    /// for.
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
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let output = self.output.as_deref();
        let written = output.map(|path| Written {
            flag: "-o",
            path,
            binary: false,
        });
        let taken = stdio::taken(written.as_slice(), self.json)?;
        let source = ModelFile::open_plain(&self.src)?;
        let inputs = [source.file.id()];
        if let Some(path) = output {
            stdio::check(path, self.force, &inputs)?;
        }
        let (plan, digest) = rayon::join(
            || match_model(&source, self.matching.function(), self.ratio, out),
            || convert::digest_of(&source),
        );
        let mut plan = plan?;
        plan.source = digest;
        let prepared =
            convert::prepare(&source, Some(plan.clone()), Fitted::default(), DEFAULT_PAGE)?;
        plan.expected = Some(Expected {
            saved: Some(prepared.saved),
            divergence: None,
        });
        if let Some(path) = output {
            let mut text = serde_json::to_string_pretty(&plan)?;
            text.push('\n');
            stdio::write(path, text.as_bytes(), self.force, &inputs, out)?;
        }
        out.result_beside(taken, &plan, self.json, |plan| {
            render(plan, &source, &prepared)
        })?;
        Ok(Exit::Done)
    }
}

/// Matches the units of `source` and makes the plan, its source's digest not
/// known yet.
pub(super) fn match_model(
    source: &ModelFile,
    function: MatchFunction,
    ratio: f64,
    out: &Output,
) -> anyhow::Result<Plan> {
    let map = convert::attention_map(source)?;
    let blocks = WeightBlocks::new(&source.gguf, &source.file, &map).map_err(|error| {
        ConvertError::Model {
            path: source.path().to_owned(),
            error,
        }
    })?;
    let bar = out.bar("matching", 1000, false);
    let matching = matching::match_units(&blocks, function, ratio, &|done| {
        bar.set_position((done * 1000.0) as u64);
    })
    .with_context(|| format!("{}", source.path().display()))?;
    bar.finish_and_clear();
    let skipped = matching.skipped.len();
    if skipped > 0 {
        let units = match skipped {
            1 => "1 unit has".to_owned(),
            _ => format!("{skipped} units have"),
        };
        out.remark(&format!(
            "note: {units} no earlier unit of the same types and shapes, and cannot share"
        ));
    }
    if matching.aliases.len() < matching.requested {
        out.remark(&format!(
            "note: {} units were asked for, {} can share",
            matching.requested,
            matching.aliases.len()
        ));
    }
    Ok(Plan::matched(
        convert::UNKNOWN_DIGEST.to_owned(),
        function,
        ratio,
        &matching,
    ))
}

/// What `plan` and `convert --dry-run` say about a plan and its savings.
pub(super) fn render(plan: &Plan, source: &ModelFile, prepared: &Prepared<'_>) -> String {
    let mut text = format!(
        "{}: {} of {} units use another unit's weights ({})\n",
        source.path().display(),
        plan.shares().count(),
        plan.choice.units.unwrap_or(0),
        plan.choice
    );
    text += &render_saved(source, prepared);
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

/// The savings in words.
pub(super) fn render_saved(source: &ModelFile, prepared: &Prepared<'_>) -> String {
    let saved = prepared.saved;
    let mut text = format!(
        "file:     {} -> {} bytes, {} ({}) saved\n",
        grouped(source.len()),
        grouped(prepared.output_bytes),
        grouped(saved.file_bytes),
        percent(saved.file_bytes, source.len())
    );
    text += &format!(
        "resident: {} bytes ({}) in pages that are in memory once\n",
        grouped(saved.resident_bytes),
        percent(saved.resident_bytes as i64, source.len())
    );
    let duplicates = &prepared.duplicates;
    if !duplicates.shared.is_empty() {
        let counts = [
            (duplicates.tensors, "tensors"),
            (duplicates.blocks, "head blocks"),
            (duplicates.experts, "experts"),
            (duplicates.runs, "runs of rows"),
        ];
        let counts: Vec<String> = counts
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        text += &format!(
            "exact duplicates: {}, {} bytes\n",
            counts.join(", "),
            grouped(duplicates.bytes)
        );
    }
    text
}
