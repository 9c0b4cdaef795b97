//! What `convert --repair` adds: its arguments, the run, what it reports.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use headshare_files::{AtomicFile, FileId};
use headshare_format::FormatError;
use headshare_runtime::memory;
use headshare_stitch::MappedFile;

use super::failure::{UsageError, usage};
use super::output::Output;
use super::stdio;
use super::values::{units, units_name};
use crate::convert::variant::{Heads, Limits, ShapeError};
use crate::convert::{self, ConvertError, Fitted};
use crate::input::text::{self, Contents, is_stdio, without_mark};
use crate::input::{InputError, ModelFile};
use crate::matching::aliases_for;
use crate::model::AttentionMap;
use crate::plan::Plan;
use crate::repair::choose::{self, Goal, Subject, Survey, Terms, Units};
use crate::repair::{self, Options, Record, RepairError, SurveyRecord, Windows};

/// Memory to stay within where the system does not tell how much there is.
const FALLBACK_MEMORY: u64 = 8 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct RepairArgs {
    /// Refit the layers after what is shared, on this text (UTF-8); - reads
    /// standard input.
    #[arg(long, value_name = "TEXT")]
    repair: Option<PathBuf>,
    /// How the units are chosen: by what is measured of the running model, or by
    /// --match; `calibrated` where --match is not given.
    #[arg(long, value_enum, value_name = "HOW", requires = "repair")]
    choose: Option<Choose>,
    /// What becomes of the units.
    #[arg(long, value_name = "UNITS", value_parser = units(), default_value = "share",
        requires = "repair")]
    units: Units,
    /// Keep what was measured for the choice in this file (`convert`: in a dry
    /// run, too).
    #[arg(
        long,
        value_name = "FILE",
        requires = "repair",
        conflicts_with = "stats"
    )]
    save_stats: Option<PathBuf>,
    /// Choose by what --save-stats has kept, instead of measuring again.
    #[arg(long, value_name = "FILE", requires = "repair")]
    stats: Option<PathBuf>,
    /// Bytes of memory that repair stays within, such as 8G; by default half of
    /// what the machine has, or of what its container or `ulimit -v` allows.
    #[arg(long, value_name = "BYTES", requires = "repair", value_parser = bytes)]
    memory: Option<u64>,
    /// Windows of the text that repair looks at, 2 to 256; fewer where the text
    /// or --memory has no room for them.
    #[arg(long, value_name = "N", default_value = "128", requires = "repair",
        value_parser = clap::value_parser!(u32).range(2..=256))]
    windows: u32,
    /// Tokens of a window, 8 to 65536.
    #[arg(long, value_name = "TOKENS", default_value = "512", requires = "repair",
        value_parser = clap::value_parser!(u32).range(8..=65536))]
    window: u32,
}

/// A number of bytes, with K, M, G or T for powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a number of bytes, or of K, M, G or T, is wanted".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes, such as 8G, is wanted".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "that is more than there can be".to_owned())
}

/// How the units are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choose {
    /// By what each pair of units does to the running model.
    Calibrated,
    /// By the match function, as the paper does.
    Match,
}

impl RepairArgs {
    /// The text, if there is to be a repair.
    pub(super) fn text(&self) -> anyhow::Result<Option<String>> {
        self.repair.as_deref().map(read_text).transpose()
    }

    /// Whether the units are chosen by measuring; `matching` says that --match
    /// was given, `planned` that --plan was.
    ///
    /// # Errors
    /// When the arguments contradict each other.
    pub(super) fn measures(&self, matching: bool, planned: bool) -> anyhow::Result<bool> {
        let flags = [
            ("--save-stats", self.save_stats.is_some()),
            ("--stats", self.stats.is_some()),
            ("--units", self.units != Units::Share),
            (
                "--choose calibrated",
                self.choose == Some(Choose::Calibrated),
            ),
        ];
        if planned {
            return match flags.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => {
                    Err(usage(format!("--plan has chosen already; {flag} needs --ratio")).into())
                }
                None => Ok(false),
            };
        }
        let measures = match self.choose {
            Some(choose) => choose == Choose::Calibrated,
            None => !matching,
        };
        match flags.into_iter().find(|(_, given)| *given) {
            _ if measures && matching => {
                Err(usage("--match is for --choose match; calibrated choice measures").into())
            }
            Some((flag, _)) if !measures => {
                Err(usage(format!("{flag} needs --choose calibrated, without --match")).into())
            }
            _ => Ok(measures),
        }
    }

    /// The text, its windows, and how to go about it.
    pub(super) fn calibration(
        &self,
        source: &ModelFile,
        text: String,
        out: &Output,
    ) -> anyhow::Result<Calibration> {
        let options = self.options(text);
        let map = convert::attention_map(source)?;
        repair::check_supported(&map)?;
        let windows = Windows::of(source, &map, &options, &|text| out.remark(text))
            .map_err(|error| of_source(source, error.into()))?;
        Ok(Calibration {
            windows,
            options,
            choice: None,
        })
    }

    /// The files that are read, besides the model: nothing may overwrite them.
    ///
    /// # Errors
    /// When one cannot be opened, or `output` is to be the file that what was
    /// measured is kept in.
    pub(super) fn inputs(&self, output: &Path) -> anyhow::Result<Vec<FileId>> {
        let absolute = |path: &Path| std::path::absolute(path).ok();
        if let Some(stats) = &self.save_stats
            && absolute(stats) == absolute(output)
        {
            return Err(usage("--save-stats and -o are the same file").into());
        }
        let files = self.repair.iter().chain(&self.stats);
        let id = |path: &PathBuf| Ok(MappedFile::open(path).map_err(InputError::from)?.id());
        files.filter(|path| !is_stdio(path)).map(id).collect()
    }

    /// Refuses to write what was measured to standard output.
    pub(super) fn check_outputs(&self) -> Result<(), UsageError> {
        match &self.save_stats {
            Some(path) => stdio::refuse(path, "--save-stats", "the result in words goes there"),
            None => Ok(()),
        }
    }

    /// What may be read from standard input.
    pub(super) fn streams(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [("--repair", &self.repair), ("--stats", &self.stats)];
        (files.into_iter()).filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }

    /// Chooses by measuring; none of `inputs` may be overwritten.
    pub(super) fn choose(
        &self,
        source: &ModelFile,
        ratio: f64,
        calibration: &mut Calibration,
        inputs: &[FileId],
        force: bool,
        out: &Output,
    ) -> anyhow::Result<Plan> {
        let map = convert::attention_map(source)?;
        repair::check_supported(&map)?;
        if self.units != Units::Share {
            limits(source, &map)?;
        }
        if let Some(path) = &self.save_stats {
            AtomicFile::check(path, force, inputs)?;
        }
        let digest = convert::digest_of(source);
        let subject = Subject {
            source,
            digest: &digest,
            map: &map,
        };
        let survey = match &self.stats {
            Some(path) => {
                let file = Contents::open(path)?;
                let dropping = self.units != Units::Share;
                Survey::from_json(&file, subject, &calibration.windows, dropping)
                    .with_context(|| text::name(path))?
            }
            None => {
                let bar = out.bar("choosing", 1000, false);
                let survey = choose::survey(
                    subject,
                    &calibration.windows,
                    &calibration.options,
                    self.units != Units::Share,
                    &|done| bar.set_position((done * 1000.0) as u64),
                    &|text| out.remark(text),
                )
                .map_err(|error| of_source(source, error))?;
                bar.finish_and_clear();
                survey
            }
        };
        if let Some(path) = &self.save_stats {
            survey.write(path, force, inputs)?;
        }
        let units = map.units().len();
        let count = aliases_for(ratio, units)?;
        let limits = match self.units {
            Units::Share => None,
            Units::Drop | Units::Auto => Some(limits(source, &map)?),
        };
        let terms = Terms {
            units: self.units,
            sizes: &|unit| limits.map_or((0, 0), |l| l.sizes(unit)),
            together: &|layer| limits.map_or(1, |l| l.together(layer)),
            keeps_one: &|layer| limits.is_some_and(|l| l.must_keep_one(layer)),
        };
        let goal = match self.units {
            Units::Share | Units::Drop => Goal::Count(count),
            // What sharing as many units would save.
            Units::Auto => {
                let share = Terms {
                    units: Units::Share,
                    ..terms
                };
                let shared = survey.select(Goal::Count(count), &share).shared;
                Goal::Bytes(shared.keys().map(|&unit| (terms.sizes)(unit).0).sum())
            }
        };
        let chosen = survey.select(goal, &terms);
        let found = chosen.shared.len() + chosen.dropped.len();
        match self.units {
            Units::Auto if found == 0 && count > 0 => {
                out.remark("note: no unit can share or go");
            }
            Units::Share if found < count => {
                out.remark(&format!(
                    "note: {count} units were asked for, {found} can share"
                ));
            }
            Units::Drop if found < count => out.remark(&format!(
                "note: {count} units were asked for, {found} can go (none of the first layer)"
            )),
            _ => {}
        }
        calibration.choice = Some(survey.record());
        Ok(chosen.plan(digest, ratio, units))
    }

    /// The file that the text comes from, if there is to be a repair.
    pub(super) fn path(&self) -> Option<&Path> {
        self.repair.as_deref()
    }

    /// What becomes of the units.
    pub(super) fn units(&self) -> Units {
        self.units
    }

    /// The arguments that ask for this, but for paths; `measures` says whether
    /// the units are chosen by measuring.
    pub(super) fn arguments(&self, measures: bool) -> Vec<String> {
        let name = |value: Option<PossibleValue>| {
            let value = value.expect("no value is skipped");
            value.get_name().to_owned()
        };
        let mut all = Vec::new();
        if measures {
            all.extend(["--units".to_owned(), units_name(self.units).to_owned()]);
        } else {
            let choose = name(Choose::Match.to_possible_value());
            all.extend(["--choose".to_owned(), choose]);
        }
        all.extend(["--windows".to_owned(), self.windows.to_string()]);
        all.extend(["--window".to_owned(), self.window.to_string()]);
        // Said also where it is this machine's: it decides how much is read.
        all.extend(["--memory".to_owned(), self.memory_bound().to_string()]);
        all
    }

    /// The arguments by which what was measured once serves several runs, kept
    /// at `cache` where nothing else is asked for.
    pub(super) fn stats_arguments(&self, cache: &Path) -> Vec<OsString> {
        let (flag, path) = match (&self.stats, &self.save_stats) {
            (Some(stats), _) => ("--stats", stats.as_path()),
            (None, Some(path)) if path.exists() => ("--stats", path.as_path()),
            (None, Some(path)) => ("--save-stats", path.as_path()),
            (None, None) if cache.exists() => ("--stats", cache),
            (None, None) => ("--save-stats", cache),
        };
        vec![flag.into(), path.into()]
    }

    /// Finds out early what would keep `source` from being repaired: its
    /// architecture, too little text or memory.
    pub(super) fn check(
        &self,
        source: &ModelFile,
        text: Option<String>,
        out: &Output,
    ) -> anyhow::Result<()> {
        if let Some(text) = text {
            let map = convert::attention_map(source)?;
            repair::check_supported(&map)?;
            repair::check_text(source, &map, &self.options(text), &|text| out.remark(text))
                .map_err(|error| of_source(source, error))?;
        }
        Ok(())
    }

    /// Bytes to stay within.
    fn memory_bound(&self) -> u64 {
        self.memory
            .unwrap_or_else(|| memory::usable_memory().map_or(FALLBACK_MEMORY, |bytes| bytes / 2))
    }

    fn options(&self, text: String) -> Options {
        Options {
            text,
            windows: self.windows,
            window: self.window,
            memory: self.memory_bound(),
            n_threads: None,
            stop: Arc::default(),
        }
    }

    /// Repairs `source` after `plan`; a dry run says which tensors that would
    /// replace.
    pub(super) fn run(
        &self,
        source: &ModelFile,
        plan: &Plan,
        calibration: &Calibration,
        dry_run: bool,
        out: &Output,
    ) -> anyhow::Result<(Fitted, Option<Record>)> {
        let map = convert::attention_map(source)?;
        plan.check(&map).map_err(convert::ConvertError::from)?;
        repair::check_supported(&map)?;
        Heads::new(source, &map, plan.dropped_units())
            .map_err(|error| cannot_cut(source, error))?;
        let (windows, options) = (&calibration.windows, &calibration.options);
        if dry_run {
            let choice = calibration.choice.clone();
            let most = repair::most(source, &map, plan, windows, options, choice)?;
            return Ok((most, None));
        }
        let bar = out.bar("repairing", 1000, false);
        let repaired = repair::repair(
            source,
            &map,
            plan,
            windows,
            options,
            &|done| bar.set_position((done * 1000.0) as u64),
            &|text| out.remark(text),
        )
        .map_err(|error| of_source(source, error))?;
        bar.finish_and_clear();
        let (fitted, record) = repaired.into_fitted(calibration.choice.clone());
        Ok((fitted, Some(record)))
    }
}

/// The text at `path`.
pub(super) fn read_text(path: &Path) -> anyhow::Result<String> {
    let read = Contents::open(path)?;
    match std::str::from_utf8(&read) {
        Ok(text) => Ok(without_mark(text).to_owned()),
        Err(error) => {
            let problem = format!("is not UTF-8 at byte {}", error.valid_up_to());
            let name = text::name(path);
            Err(
                InputError::content(Path::new(&name))(FormatError::unsupported("text", problem))
                    .into(),
            )
        }
    }
}

fn limits<'a>(source: &'a ModelFile, map: &'a AttentionMap) -> Result<Limits<'a>, ConvertError> {
    Limits::of(source, map).map_err(|error| cannot_cut(source, error))
}

/// Names the source in an error that is about it.
fn of_source(source: &ModelFile, error: RepairError) -> anyhow::Error {
    let path = source.path().display().to_string();
    let says_what = matches!(
        error,
        RepairError::Unsupported { .. }
            | RepairError::TextTooShort { .. }
            | RepairError::Memory { .. }
    );
    if says_what || error.to_string().contains(&path) {
        return error.into();
    }
    anyhow::Error::new(error).context(path)
}

fn cannot_cut(source: &ModelFile, error: ShapeError) -> ConvertError {
    ConvertError::Shape {
        path: source.path().to_owned(),
        error,
    }
}

/// A text to calibrate on.
pub(super) struct Calibration {
    windows: Windows,
    options: Options,
    /// What the units were chosen by, once they are.
    choice: Option<SurveyRecord>,
}

/// What `convert` says about a repair.
pub(super) fn render(record: Option<&Record>) -> String {
    let Some(record) = record else {
        return String::new();
    };
    let all = &record.tensors;
    let mean = |value: fn(&repair::TensorRecord) -> f64| {
        all.iter().map(value).sum::<f64>() / all.len().max(1) as f64
    };
    format!(
        "repaired: {} of {} tensors refitted, the others are best as they are; {} windows of {} tokens; mean error of what layers add {:.5} -> {:.5}\n",
        all.iter().filter(|t| t.lambda.is_some()).count(),
        all.len(),
        record.windows,
        record.window,
        mean(|t| t.before),
        mean(|t| t.after)
    )
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_have_suffixes_of_powers_of_1024() {
        assert_eq!(bytes("20000000000"), Ok(20_000_000_000));
        assert_eq!(bytes("8G"), Ok(8 << 30));
        assert_eq!(bytes("3m"), Ok(3 << 20));
        for wrong in ["", "G", "8X", "8.5G", "-1", "18446744073709551615K"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
