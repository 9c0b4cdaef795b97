//! What a model is to fit into, and what became of it.

use std::path::Path;
use std::time::Duration;

use headshare_convert::convert;
use headshare_convert::fit::{FitError, Movable, Statistics};
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, Contents};
use headshare_convert::plan::{Choice, ChosenBy, Plan};
use headshare_convert::quantize::takes;
use headshare_eval::analyze::picture::Format;
use headshare_eval::analyze::{file_name, frontier};
use headshare_files::{AtomicFile, FileId};
use serde::{Deserialize, Serialize};

use crate::convert::calibrate::{Calibration, Ready};
use crate::convert::choose::Stats;
use crate::convert::quantize::{Quantization, With};
use crate::error::Context as _;
use crate::output::Written;
use crate::stdin::Stdin;
use crate::{Error, Ui, Unit};

/// What a model is to fit into: a file, memory, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes that the file may have.
    pub bytes: Option<u64>,
    /// Memory that running it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<InMemory>,
    /// The types that tensors may get; by default those that are fitted with feedback.
    pub types: Option<Vec<String>>,
    /// The text that is probed and fitted with.
    pub calibration: Calibration,
    /// What is done with what was measured.
    pub stats: Stats,
    /// Seconds that measuring may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
}

/// Memory that running a model may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InMemory {
    /// Bytes of physical memory.
    pub bytes: u64,
    /// Tokens of the context.
    pub ctx: u32,
}

/// What a model takes of memory once its context is full, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfMemory {
    /// What there is.
    pub bytes: u64,
    /// Tokens of the context.
    pub ctx: u32,
    /// Physical memory (PSS) of the weights.
    pub weights: u64,
    /// The same of all the rest: KV cache, compute buffers and the program.
    pub others: u64,
    /// What is left; negative where it takes more than there is.
    pub left: i64,
}

/// How a model was made to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeToFit {
    /// Bytes that the file was to have at most.
    pub wanted: u64,
    /// What it takes of memory, where that was bounded; in a dry run what the model takes when
    /// it is only rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<OfMemory>,
    /// The divergence from the source that encoding at these types was predicted to make,
    /// in nats a token. Fitting makes less of it.
    pub predicted: f64,
    /// Tensors that could have other types, or lose columns.
    pub tensors: usize,
    /// How many of them were not measured, for want of time: what is like them was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub estimated: usize,
    /// What changes.
    #[serde(flatten)]
    pub changes: Changes,
    /// What other sizes would cost, from the source down to the smallest, in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frontier: Vec<OtherSize>,
    /// Plans that were really made to find the best, with a few of the windows, and measured on
    /// others; empty where only one was there, and in a dry run.
    pub tried: Vec<Tried>,
}

/// What changes of a model that is made to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// What becomes of the tensors that could have other types, or lose columns.
    pub types: Vec<Retyped>,
    /// The type of the output head, where the token embedding was that, too, and it gets weights
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_head: Option<String>,
    /// Units of attention that are dropped.
    pub units: u64,
    /// Units that use another unit's weights.
    #[serde(default)]
    pub shared: u64,
    /// Channels of feed-forward layers that are deleted.
    pub channels: u64,
}

/// A size that a model could have, and what costs least then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherSize {
    /// Bytes of the file.
    pub bytes: u64,
    /// The predicted divergence, in nats a token.
    pub cost: f64,
    /// What changes.
    #[serde(flatten)]
    pub changes: Changes,
}

/// A plan that was made and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The divergence that was predicted, in nats a token.
    pub predicted: f64,
    /// The one that it has; absent where it predicts no numbers.
    pub measured: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Tensors that got another type, or kept theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retyped {
    /// The type that they had.
    pub from: String,
    /// The type that they have.
    pub to: String,
    /// How many.
    pub tensors: usize,
}

impl MadeToFit {
    /// Draws the frontier of `source`, and what was chosen of it, a file of `bytes`.
    pub(super) fn draw(
        &self,
        source: &Path,
        bytes: u64,
        written: Written<'_>,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let name = file_name(source);
        let title = format!("{name} in fewer bytes");
        let points: Vec<(u64, f64)> = self.frontier.iter().map(|p| (p.bytes, p.cost)).collect();
        let chosen = (bytes, self.predicted);
        let Some(scene) = frontier::picture(&title, &points, chosen) else {
            ui.remark("note: no move costs anything, so there is nothing to draw");
            return Ok(());
        };
        let format = Format::of(written.path).unwrap_or(Format::Svg);
        written.write(&scene.encode(format), ui)
    }
}

impl Budget {
    /// What `then` makes of it, which may read the text several times: standard input is copied
    /// to a file for it.
    pub(in crate::convert) fn with_text_in_a_file<T>(
        &self,
        then: impl FnOnce(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let text = self.calibration.text.as_path();
        let stdin = Stdin::of([text])?;
        let mut again = self.clone();
        stdin.path(text).clone_into(&mut again.calibration.text);
        then(&again)
    }

    /// Refuses what asks for nothing.
    pub(super) fn check(&self, source: &ModelFile) -> Result<(), Error> {
        match (self.bytes, &self.memory) {
            (Some(wanted), None) if source.len() <= wanted => {
                let has = source.len();
                Err(self.about(source, FitError::FitsAlready { has, wanted }))
            }
            (None, None) => Err(Error::usage("neither bytes nor memory are bounded")),
            _ => Ok(()),
        }
    }

    /// What the moves of `movable` do to `source`: measured, or read.
    pub(super) fn statistics(
        &self,
        source: &ModelFile,
        movable: &[Movable],
        force: bool,
        inputs: &[FileId],
        ui: &dyn Ui,
    ) -> Result<Statistics, Error> {
        if let Stats::Save(path) = &self.stats {
            AtomicFile::check(path, force, inputs)?;
        }
        let digest = source.digest().to_owned();
        let ready = self.calibration.prepare(source, takes(source), true, ui)?;
        if let Some(known) = self.known(source, &ready)? {
            return Ok(known);
        }
        let bar = ui.bar("measuring", 1000, Unit::Parts);
        let with = (&ready.windows, &ready.options);
        let time = self.time.map(Duration::from_secs);
        let of = (source, &digest[..]);
        let measured = Statistics::measure(of, movable, with, time, &|done| bar.part(done));
        let measured = measured.map_err(|error| self.about(source, error))?;
        if let Stats::Save(path) = &self.stats {
            measured.write(path, force, inputs)?;
        }
        Ok(measured)
    }

    /// What was measured before, where that is to be read.
    fn known(&self, source: &ModelFile, ready: &Ready) -> Result<Option<Statistics>, Error> {
        let Stats::Load(path) = &self.stats else {
            return Ok(None);
        };
        let file = Contents::open(path)?;
        let read = Statistics::from_json(&file, source.digest(), &ready.windows);
        read.about(|| text::name(path)).map(Some)
    }

    /// Finds out early what would keep `source` from being fitted as a whole: too little text or
    /// memory, or that something else was measured before.
    pub(crate) fn check_whole(&self, source: &ModelFile, ui: &dyn Ui) -> Result<(), Error> {
        let ready = self.calibration.prepare(source, takes(source), true, ui)?;
        self.known(source, &ready).map(|_| ())
    }

    pub(super) fn about(&self, source: &ModelFile, error: FitError) -> Error {
        Error::from(error).about(source.path().display())
    }
}

/// Encoding at the types that a plan says, fitted to a text.
pub(super) fn as_planned(calibration: &Calibration) -> Quantization {
    Quantization {
        wanted: None,
        with: With::Calibration {
            calibration: calibration.clone(),
            settings: None,
            save_imatrix: None,
        },
        allow_requantize: true,
    }
}

/// A plan that was chosen by measuring, and changes nothing yet.
pub(super) fn measured_plan() -> Plan {
    let choice = Choice {
        by: ChosenBy::Calibrated,
        ..Choice::default()
    };
    Plan::new(convert::UNKNOWN_DIGEST.to_owned(), choice, Vec::new())
}
