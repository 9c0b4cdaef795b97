//! Which heads would share, and what that saves.

use std::path::PathBuf;

use headshare_convert::convert::{self, ConvertError, Duplicates, Fitted};
use headshare_convert::input::ModelFile;
use headshare_convert::matching::{self, MatchFunction, WeightBlocks};
use headshare_convert::plan::{Expected, Plan, Saved};
use headshare_format::PageSize;
use serde::{Deserialize, Serialize};

use crate::convert::MadeToFit;
use crate::error::Context as _;
use crate::output::{self, Written};
use crate::{Error, Ui, Unit};

/// The page size that resident bytes are counted for.
const PAGE: PageSize = PageSize::KIB_4;

/// Chooses which heads would share, by their weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakePlan {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// Which parts of two units are compared.
    pub function: MatchFunction,
    /// Share of the units that use another unit's weights, from 0 to 1.
    pub ratio: f64,
    /// Where the plan is written, for a conversion.
    #[serde(with = "crate::path::option")]
    pub output: Option<PathBuf>,
    /// Replaces an output that is there.
    pub force: bool,
}

/// A plan; as JSON it is what a plan file holds.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// The plan, with what it is expected to save.
    #[serde(flatten)]
    pub plan: Plan,
    /// What it would make of the source, which a plan file does not hold.
    #[serde(skip)]
    pub sizes: Sizes,
    /// How it was made to fit, where it was.
    #[serde(skip)]
    pub fit: Option<MadeToFit>,
}

/// What a conversion makes of its source, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The source's path.
    pub source: String,
    /// Its size.
    pub source_bytes: u64,
    /// Size of the output.
    pub output_bytes: u64,
    /// Whether the output may be smaller, and more be saved.
    pub at_most: bool,
    /// What it saves.
    pub saved: Saved,
    /// What is byte-equal in the source and stored once.
    pub duplicates: DuplicateCount,
}

/// What is byte-equal and stored once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateCount {
    /// Whole tensors.
    pub tensors: usize,
    /// Blocks of heads.
    pub blocks: usize,
    /// Experts.
    pub experts: usize,
    /// Runs of rows.
    pub runs: usize,
    /// Bytes of all.
    pub bytes: u64,
}

impl From<&Duplicates> for DuplicateCount {
    fn from(found: &Duplicates) -> Self {
        Self {
            tensors: found.tensors,
            blocks: found.blocks,
            experts: found.experts,
            runs: found.runs,
            bytes: found.bytes,
        }
    }
}

impl MakePlan {
    /// Does it.
    ///
    /// # Errors
    /// When the file is bad, its heads cannot be compared, or the plan cannot be
    /// written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Planned, Error> {
        let source = ModelFile::open_plain(&self.source)?;
        let inputs = [source.file.id()];
        let written = self.output.as_deref().map(|path| Written {
            path,
            force: self.force,
            inputs: &inputs,
        });
        written.as_ref().map(Written::check).transpose()?;
        let (plan, digest) = rayon::join(
            || match_units(&source, self.function, self.ratio, ui),
            || source.digest().to_owned(),
        );
        let mut plan = plan?;
        plan.source = digest;
        let prepared = convert::prepare(&source, Some(plan.clone()), Fitted::default(), PAGE)?;
        plan.expected = Some(Expected {
            saved: Some(prepared.saved),
            divergence: None,
        });
        if let Some(written) = written {
            written.write(&output::json_lines(&plan)?, ui)?;
        }
        Ok(Planned {
            plan,
            sizes: Sizes {
                source: source.path().display().to_string(),
                source_bytes: source.len(),
                output_bytes: prepared.output_bytes,
                at_most: false,
                saved: prepared.saved,
                duplicates: (&prepared.duplicates).into(),
            },
            fit: None,
        })
    }
}

/// Matches the units of `source` and makes the plan, its source's digest not
/// known yet.
pub(crate) fn match_units(
    source: &ModelFile,
    function: MatchFunction,
    ratio: f64,
    ui: &dyn Ui,
) -> Result<Plan, Error> {
    let map = convert::attention_map(source)?;
    let blocks = WeightBlocks::new(&source.gguf, &source.file, &map).map_err(|error| {
        ConvertError::Model {
            path: source.path().to_owned(),
            error,
        }
    })?;
    let bar = ui.bar("matching", 1000, Unit::Parts);
    let matching = matching::match_units(&blocks, function, ratio, &|done| bar.part(done))
        .about(|| source.path().display())?;
    drop(bar);
    match matching.skipped.len() {
        0 => {}
        1 => ui.remark(
            "note: 1 unit has no earlier unit of the same types and shapes, and cannot share",
        ),
        n => ui.remark(&format!(
            "note: {n} units have no earlier unit of the same types and shapes, and cannot share"
        )),
    }
    if matching.aliases.len() < matching.requested {
        ui.remark(&format!(
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
