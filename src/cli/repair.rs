//! The arguments that `convert --repair` adds.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use headshare_jobs::{Calibration, Error, Stats};

use super::calibration::{SpendArgs, StatsArgs};
use super::values::{needed, units};
use crate::repair::choose::Units;

#[derive(Debug, clap::Args)]
pub(super) struct RepairArgs {
    /// Repair: refit the layers that follow a change, on this text (UTF-8); -
    /// reads standard input.
    #[arg(long, value_name = "TEXT")]
    repair: Option<PathBuf>,
    /// How the units are chosen [default: calibrated, or match if --match is
    /// given]
    #[arg(long, value_enum, value_name = "HOW", requires = "repair")]
    choose: Option<Choose>,
    /// What becomes of the chosen units.
    #[arg(long, value_name = "UNITS", value_parser = units(), default_value = "share",
        requires = "repair")]
    units: Units,
    #[command(flatten)]
    stats: StatsArgs,
    #[command(flatten)]
    spend: SpendArgs,
}

/// How the units are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choose {
    /// By measuring what the loss of each unit does to the running model.
    Calibrated,
    /// By the match function (--match), as in the paper.
    Match,
}

impl RepairArgs {
    /// Whether the units are chosen by measuring; `matching` says that --match
    /// was given, `planned` that --plan was.
    ///
    /// # Errors
    /// When the arguments contradict each other.
    pub(super) fn measures(&self, matching: bool, planned: bool) -> Result<bool, Error> {
        needed("--repair", self.repair.is_some(), self.choosing())?;
        let [save_stats, stats] = self.stats.given();
        let flags = [
            save_stats,
            stats,
            ("--units", self.units != Units::Share),
            (
                "--choose calibrated",
                self.choose == Some(Choose::Calibrated),
            ),
        ];
        if planned {
            return match flags.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Error::usage(format!(
                    "--plan has chosen already; {flag} needs --ratio"
                ))),
                None => Ok(false),
            };
        }
        let measures = match self.choose {
            Some(choose) => choose == Choose::Calibrated,
            None => !matching,
        };
        match flags.into_iter().find(|(_, given)| *given) {
            _ if measures && matching => Err(Error::usage(
                "--match is for --choose match; calibrated choice measures",
            )),
            Some((flag, _)) if !measures => Err(Error::usage(format!(
                "{flag} needs --choose calibrated, without --match"
            ))),
            _ => Ok(measures),
        }
    }

    /// What is given of how units are chosen, by name.
    fn choosing(&self) -> [(&'static str, bool); 2] {
        [
            ("--units", self.units != Units::Share),
            ("--choose", self.choose.is_some()),
        ]
    }

    /// Refuses what says how units are chosen, where none are; with --fit, types are chosen by
    /// the same statistics.
    pub(super) fn refuse_alone(&self, chooses: bool, fits: bool) -> Result<(), Error> {
        needed("--ratio", chooses, self.choosing())?;
        needed("--ratio", chooses || fits, self.stats.given())
    }

    /// The text to fit with, and what may be spent on it.
    pub(super) fn calibration(&self) -> Option<Calibration> {
        self.repair.as_deref().map(|text| self.calibrate_on(text))
    }

    /// Another text to fit with, and what may be spent on it.
    pub(super) fn calibrate_on(&self, text: &Path) -> Calibration {
        self.spend.calibrate_on(text)
    }

    /// What is done with what is measured.
    pub(super) fn stats(&self) -> Stats {
        self.stats.stats()
    }

    /// Refuses to write what was measured to standard output.
    pub(super) fn check_outputs(&self) -> Result<(), Error> {
        self.stats.check_outputs()
    }

    /// What may be read from standard input.
    pub(super) fn streams(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let text = self.repair.as_deref().map(|path| ("--repair", path));
        text.into_iter().chain(self.stats.streams())
    }

    /// What becomes of the units.
    pub(super) fn units(&self) -> Units {
        self.units
    }
}
