//! `convert`: a smaller file in which heads share their weights.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use headshare_files::AtomicFile;
use headshare_format::PageSize;
use serde::Serialize;

use super::Exit;
use super::output::{Output, grouped, percent};
use super::plan::{MatchArgs, match_model, parse_ratio, render, render_saved};
use super::repair::{RepairArgs, render as render_repair};
use super::stdio;
use crate::convert::{self, ConvertError, Fitted, Prepared};
use crate::input::ModelFile;
use crate::input::text::{self, Contents};
use crate::plan::{Plan, Saved};
use crate::repair::Record;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    matching: MatchArgs,
    #[command(flatten)]
    repair: RepairArgs,
    /// Page size in bytes of the machines that will run the file.
    #[arg(long, value_name = "BYTES", default_value = "4096",
        value_parser = PossibleValuesParser::new(["4096", "16384", "65536"])
            .map(|text| text.parse().ok().and_then(PageSize::new).expect("one of the listed numbers")))]
    page_size: PageSize,
    /// Show what would be done and what it saves, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Let this share of the units, from 0 to 1, use another unit's weights.
    #[arg(long, value_name = "A", value_parser = parse_ratio, allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Share only what is byte-equal; `expand` gives the source back exactly.
    #[arg(long, conflicts_with_all = ["function", "repair"])]
    lossless: bool,
    /// Carry out a plan that `plan -o` has written; - reads standard input.
    #[arg(long, value_name = "PLAN.json", conflicts_with = "function")]
    plan: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct ConvertResult {
    source: FileSize,
    output: FileSize,
    page_size: u64,
    dry_run: bool,
    plan: Option<Plan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<Record>,
    duplicates: DuplicateCount,
    saved: Saved,
}

#[derive(Debug, Serialize)]
struct FileSize {
    path: String,
    bytes: u64,
}

#[derive(Debug, Default, Serialize)]
struct DuplicateCount {
    tensors: usize,
    blocks: usize,
    experts: usize,
    runs: usize,
    bytes: u64,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        stdio::refuse(
            &self.output,
            "-o",
            "a converted file's header is written last",
        )?;
        self.repair.check_outputs()?;
        let plan = self.what.plan.as_deref();
        stdio::check_inputs(
            plan.map(|path| ("--plan", path))
                .into_iter()
                .chain(self.repair.streams()),
        )?;
        let source = ModelFile::open_plain(&self.src)?;
        let plan_file = plan.map(Contents::open).transpose()?;
        let mut inputs = vec![source.file.id()];
        inputs.extend(plan_file.as_ref().and_then(Contents::id));
        inputs.extend(self.repair.inputs(&self.output)?);
        if !self.dry_run {
            AtomicFile::check(&self.output, self.force, &inputs)?;
        }
        let measures = self
            .repair
            .measures(self.matching.is_given(), plan_file.is_some())?;
        let mut calibration = match self.repair.text()? {
            Some(text) => Some(self.repair.calibration(&source, text, out)?),
            None => None,
        };
        let mut plan = match (self.what.ratio, &mut calibration) {
            _ if let Some((path, file)) = plan.zip(plan_file.as_ref()) => {
                Some(Plan::from_json(file).with_context(|| text::name(path))?)
            }
            (Some(ratio), Some(calibration)) if measures => {
                let repair = &self.repair;
                Some(repair.choose(&source, ratio, calibration, &inputs, self.force, out)?)
            }
            (Some(ratio), _) => Some(match_model(&source, self.matching.function(), ratio, out)?),
            (None, _) => None,
        };
        let (fitted, record) = match (&plan, &calibration) {
            (Some(plan), Some(calibration)) => self
                .repair
                .run(&source, plan, calibration, self.dry_run, out)
                .map_err(|e| match e.downcast::<ConvertError>() {
                    Ok(error) => self.name_plan(error),
                    Err(other) => other,
                })?,
            _ => (Fitted::default(), None),
        };
        // A model of other shapes says which file it was made of; a dry run does
        // not see whether it is that file in any other way.
        if let Some(plan) = &mut plan
            && (plan.reshapes() || self.dry_run)
        {
            let digest = convert::digest_of(&source);
            convert::check_source(plan, &source, &digest).map_err(|e| self.name_plan(e))?;
            plan.source = digest;
        }
        let prepared = convert::prepare(&source, plan, fitted, self.page_size)
            .map_err(|e| self.name_plan(e))?;
        let mut result = ConvertResult::new(&source, &self.output, &prepared, self.page_size);
        result.dry_run = self.dry_run;
        result.repair = record;
        if !self.dry_run {
            let bar = out.bar("writing", prepared.output_bytes, true);
            let digest = convert::write(&prepared, &self.output, self.force, &|done| {
                bar.set_position(done);
            })
            .map_err(|e| self.name_plan(e))?;
            bar.finish_and_clear();
            if let Some(plan) = &mut result.plan {
                plan.source = digest;
            }
        }
        if prepared.saved.file_bytes < 0 {
            out.warning(&format!(
                "the output is {} bytes larger than the source: too little is shared for pages of {} bytes",
                -prepared.saved.file_bytes, self.page_size
            ));
        }
        out.result(&result, self.json, |result| match &result.plan {
            Some(plan) if plan.reshapes() => {
                render_repair(result.repair.as_ref()) + &render_variant(result, &prepared)
            }
            Some(plan) => render_repair(result.repair.as_ref()) + &render(plan, &source, &prepared),
            None => format!(
                "{}: byte-equal tensors and head blocks are stored once\n{}",
                source.path().display(),
                render_saved(&source, &prepared)
            ),
        })?;
        Ok(Exit::Done)
    }

    /// Names the plan file in errors that are about the plan.
    fn name_plan(&self, error: ConvertError) -> anyhow::Error {
        let about_plan = matches!(
            error,
            ConvertError::Plan(_) | ConvertError::WrongSource { .. }
        );
        match &self.what.plan {
            Some(path) if about_plan => anyhow::Error::new(error).context(text::name(path)),
            _ => error.into(),
        }
    }
}

impl ConvertResult {
    fn new(
        source: &ModelFile,
        output: &Path,
        prepared: &Prepared<'_>,
        page_size: PageSize,
    ) -> Self {
        Self {
            source: FileSize {
                path: source.path().display().to_string(),
                bytes: source.len(),
            },
            output: FileSize {
                path: output.display().to_string(),
                bytes: prepared.output_bytes,
            },
            page_size: page_size.bytes(),
            dry_run: false,
            plan: prepared.plan.clone(),
            repair: None,
            duplicates: DuplicateCount {
                tensors: prepared.duplicates.tensors,
                blocks: prepared.duplicates.blocks,
                experts: prepared.duplicates.experts,
                runs: prepared.duplicates.runs,
                bytes: prepared.duplicates.bytes,
            },
            saved: prepared.saved,
        }
    }
}

/// What is said about a model with other shapes or types.
fn render_variant(result: &ConvertResult, prepared: &Prepared<'_>) -> String {
    let Some(plan) = &result.plan else {
        return String::new();
    };
    let mut doings = Vec::new();
    let mut say = |n: usize, what: &str| {
        if n > 0 {
            doings.push(format!("{n} {what}"));
        }
    };
    say(plan.narrows().count(), "feed-forward layers are narrower");
    say(plan.stores().count(), "tensors are stored at another type");
    let units = (plan.shares().count(), plan.drops().count());
    if let Some(all) = plan.choice.units.filter(|_| units != (0, 0)) {
        let (shared, gone) = units;
        doings.insert(
            0,
            format!("of {all} units {gone} go and {shared} use another unit's weights"),
        );
    }
    let mut text = format!(
        "{}: {} ({})\n",
        result.source.path,
        doings.join(", "),
        plan.choice
    );
    text += &format!(
        "  file:     {} -> {} bytes ({} saved)\n  resident: {} bytes saved\n",
        grouped(result.source.bytes),
        grouped(result.output.bytes),
        percent(result.saved.file_bytes, result.source.bytes),
        grouped(result.saved.resident_bytes)
    );
    if prepared.headshare.is_none() {
        let architecture = prepared.variant.gguf().architecture().ok().flatten();
        text += &format!(
            "  a plain GGUF of llama.cpp's {} architecture: any llama.cpp runs it\n",
            architecture.unwrap_or_default()
        );
    }
    text
}
