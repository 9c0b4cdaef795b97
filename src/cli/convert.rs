//! `convert`: a smaller file in which heads share their weights.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use headshare_stitch::{AtomicFile, ScratchFile};
use serde::Serialize;

use super::Exit;
use super::output::{Output, grouped, percent};
use super::plan::{MatchArgs, match_model, parse_ratio, render, render_saved};
use super::repair::{RepairArgs, render as render_repair};
use super::stdio;
use crate::convert::cut::Cut;
use crate::convert::{self, ConvertError, Prepared, Replacement, Sharing};
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
            .map(|text| text.parse::<u64>().expect("one of the listed numbers")))]
    page_size: u64,
    /// Show what would be done and what it saves, and write nothing. Sizes leave
    /// out the some kilobytes in which a repair is recorded.
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

/// What a file without some units says about itself.
#[derive(Debug, Serialize)]
struct MadeBy<'a> {
    tool: &'a str,
    plan: &'a Plan,
    repair: Option<&'a Record>,
}

/// What a repair left behind.
struct Repaired {
    replacement: Replacement,
    record: Option<Record>,
}

#[derive(Debug, Default, Serialize)]
struct DuplicateCount {
    tensors: usize,
    blocks: usize,
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
        let sharing = match (&self.what, &mut calibration) {
            _ if let Some((path, file)) = plan.zip(plan_file.as_ref()) => {
                Sharing::Plan(Plan::from_json(file).with_context(|| text::name(path))?)
            }
            (
                What {
                    ratio: Some(ratio), ..
                },
                Some(calibration),
            ) if measures => {
                let repair = &self.repair;
                Sharing::Plan(repair.choose(
                    &source,
                    *ratio,
                    calibration,
                    &inputs,
                    self.force,
                    out,
                )?)
            }
            (
                What {
                    ratio: Some(ratio), ..
                },
                _,
            ) => Sharing::Plan(match_model(&source, self.matching.function(), *ratio, out)?),
            _ => Sharing::Lossless,
        };
        let (replacement, record) = match (&sharing, &calibration) {
            (Sharing::Plan(plan), Some(calibration)) => self
                .repair
                .run(&source, plan, calibration, self.dry_run, out)
                .map_err(|e| match e.downcast::<ConvertError>() {
                    Ok(error) => self.name_plan(error),
                    Err(other) => other,
                })?,
            _ => (Replacement::default(), None),
        };
        if let Sharing::Plan(plan) = &sharing
            && !plan.dropped.is_empty()
        {
            let done = Repaired {
                replacement,
                record,
            };
            return self.write_cut(&source, plan, done, out);
        }
        let prepared = convert::prepare_with(&source, sharing, self.page_size, replacement)
            .map_err(|e| self.name_plan(e))?;
        let mut result = ConvertResult::new(&source, &self.output, &prepared, self.page_size);
        result.dry_run = self.dry_run;
        result.repair = record;
        if self.dry_run {
            if let Some(plan) = &mut result.plan {
                let digest = convert::digest_of(&source);
                convert::check_source(plan, &source, &digest).map_err(|e| self.name_plan(e))?;
                plan.source = digest;
            }
        } else {
            let bar = out.bar("writing", prepared.output_bytes, true);
            let digest = convert::write(
                &source,
                prepared.clone(),
                &self.output,
                self.force,
                &|done| bar.set_position(done),
            )
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
            Some(plan) => render_repair(result.repair.as_ref()) + &render(plan, &source, &prepared),
            None => format!(
                "{}: byte-equal tensors and head blocks are stored once\n{}",
                source.path().display(),
                render_saved(&source, &prepared)
            ),
        })?;
        Ok(Exit::Done)
    }

    /// Writes a model without the units that `plan` drops: a plain file, or a
    /// converted one when others share.
    fn write_cut(
        &self,
        source: &ModelFile,
        plan: &Plan,
        repaired: Repaired,
        out: &Output,
    ) -> anyhow::Result<Exit> {
        let map = convert::attention_map(source)?;
        plan.check(&map)
            .map_err(|e| self.name_plan(ConvertError::Plan(e)))?;
        let mut plan = plan.clone();
        let digest = convert::digest_of(source);
        convert::check_source(&plan, source, &digest).map_err(|e| self.name_plan(e))?;
        plan.source = digest;
        plan.saved = None;
        let cut =
            Cut::new(source, &map, plan.dropped_units()).map_err(|error| ConvertError::Cut {
                path: source.path().to_owned(),
                error,
            })?;
        let made_by = serde_json::to_string(&MadeBy {
            tool: crate::TOOL,
            plan: &plan,
            repair: repaired.record.as_ref(),
        })?;
        let rest = cut.apply(source, &repaired.replacement.tensors, &made_by)?;
        let mut result = ConvertResult {
            source: FileSize {
                path: source.path().display().to_string(),
                bytes: source.len(),
            },
            output: FileSize {
                path: self.output.display().to_string(),
                bytes: rest.len(),
            },
            page_size: self.page_size,
            dry_run: self.dry_run,
            plan: Some(plan.clone()),
            repair: repaired.record,
            duplicates: DuplicateCount::default(),
            saved: Saved {
                file_bytes: source.len() as i64 - rest.len() as i64,
                resident_bytes: source.tensor_bytes().saturating_sub(rest.tensor_bytes()),
            },
        };
        if plan.aliases.is_empty() {
            if !self.dry_run {
                let bar = out.bar("writing", rest.len(), true);
                let file =
                    AtomicFile::create(&self.output, rest.len(), self.force, &[source.file.id()])?;
                rest.write(|at, bytes| {
                    bar.set_position(at);
                    file.write_at(at, bytes)
                })?;
                file.commit()?;
                bar.finish_and_clear();
            }
        } else {
            // What shares is shared in the model that is left.
            let scratch = ScratchFile::create(rest.len())?;
            rest.write(|at, bytes| scratch.write_at(at, bytes))?;
            let left = ModelFile::open_plain(scratch.path())
                .map_err(|error| error.about(source.path()))?;
            let plan = cut.renumber(&plan, convert::UNKNOWN_DIGEST.to_owned());
            let prepared = convert::prepare(&left, Sharing::Plan(plan), self.page_size)?;
            result.output.bytes = prepared.output_bytes;
            result.saved.file_bytes = source.len() as i64 - prepared.output_bytes as i64;
            result.saved.resident_bytes += prepared.saved.resident_bytes;
            if !self.dry_run {
                let bar = out.bar("writing", prepared.output_bytes, true);
                convert::write(&left, prepared, &self.output, self.force, &|done| {
                    bar.set_position(done);
                })?;
                bar.finish_and_clear();
            }
        }
        out.result(&result, self.json, |result| {
            render_repair(result.repair.as_ref()) + &render_cut(result)
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
    fn new(source: &ModelFile, output: &Path, prepared: &Prepared, page_size: u64) -> Self {
        Self {
            source: FileSize {
                path: source.path().display().to_string(),
                bytes: source.len(),
            },
            output: FileSize {
                path: output.display().to_string(),
                bytes: prepared.output_bytes,
            },
            page_size,
            dry_run: false,
            plan: prepared.plan.clone(),
            repair: None,
            duplicates: DuplicateCount {
                tensors: prepared.duplicates.tensors,
                blocks: prepared.duplicates.blocks,
                bytes: prepared.duplicates.bytes,
            },
            saved: prepared.saved,
        }
    }
}

/// What is said about a model without some units.
fn render_cut(result: &ConvertResult) -> String {
    let Some(plan) = &result.plan else {
        return String::new();
    };
    let mut text = format!(
        "{}: of {} units {} go and {} use another unit's weights (ratio {}, {})\n",
        result.source.path,
        plan.units,
        plan.dropped.len(),
        plan.aliases.len(),
        plan.ratio,
        plan.choice
    );
    text += &format!(
        "  file:     {} -> {} bytes ({} saved)\n  resident: {} bytes saved\n",
        grouped(result.source.bytes),
        grouped(result.output.bytes),
        percent(result.saved.file_bytes, result.source.bytes),
        grouped(result.saved.resident_bytes)
    );
    if plan.aliases.is_empty() {
        text += "  a plain GGUF of llama.cpp's deci architecture: any llama.cpp runs it\n";
    }
    text
}
