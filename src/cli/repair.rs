//! The arguments that `convert --repair` adds.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use headshare_jobs::{Calibration, Error, Stats};

use super::stdio;
use super::values::units;
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
    /// Write the measurements that units, or types for --fit, are chosen by to this file.
    /// `convert --dry-run` does so, too.
    #[arg(
        long,
        value_name = "FILE",
        requires = "measured",
        conflicts_with = "stats"
    )]
    save_stats: Option<PathBuf>,
    /// Choose by the measurements in this file, which --save-stats has written,
    /// instead of measuring again.
    #[arg(long, value_name = "FILE", requires = "measured")]
    stats: Option<PathBuf>,
    /// The most memory that repair and quantizing may use, in bytes or such as 8G.
    /// The default is half of what the machine has, or of what its container or
    /// `ulimit -v` allows.
    #[arg(long, value_name = "BYTES", requires = "text", requires = "fitted", value_parser = bytes)]
    memory: Option<u64>,
    /// Number of windows of the text that are read, 2 to 256. Fewer are read if the
    /// text is too short or --memory too small.
    #[arg(long, value_name = "N", default_value = "128", requires = "text", requires = "fitted",
        value_parser = clap::value_parser!(u32).range(2..=256))]
    windows: u32,
    /// Tokens in each window, 8 to 65536.
    #[arg(long, value_name = "TOKENS", default_value = "512", requires = "text", requires = "fitted",
        value_parser = clap::value_parser!(u32).range(8..=65536))]
    window: u32,
}

/// A number of bytes, with K, M, G or T for powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
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

    /// The text to fit with, and what may be spent on it.
    pub(super) fn calibration(&self) -> Option<Calibration> {
        self.repair.as_deref().map(|text| self.calibrate_on(text))
    }

    /// Another text to fit with, and what may be spent on it.
    pub(super) fn calibrate_on(&self, text: &Path) -> Calibration {
        Calibration {
            text: text.to_owned(),
            windows: self.windows,
            window: self.window,
            memory: self.memory,
        }
    }

    /// What is done with what is measured.
    pub(super) fn stats(&self) -> Stats {
        match (&self.save_stats, &self.stats) {
            (Some(path), _) => Stats::Save(path.clone()),
            (None, Some(path)) => Stats::Load(path.clone()),
            (None, None) => Stats::Forget,
        }
    }

    /// Refuses to write what was measured to standard output.
    pub(super) fn check_outputs(&self) -> Result<(), Error> {
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

    /// What becomes of the units.
    pub(super) fn units(&self) -> Units {
        self.units
    }
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
