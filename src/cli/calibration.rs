//! The arguments of what is measured and fitted with a text.

use std::path::{Path, PathBuf};

use headshare_jobs::{Calibration, Error, Stats};

use super::stdio;

/// What may be spent on a text.
#[derive(Debug, clap::Args)]
pub(super) struct SpendArgs {
    /// The most memory that repair, quantizing and measuring may use, in bytes or such as 8G.
    /// The default is half of what the machine has, or of what its container or
    /// `ulimit -v` allows.
    #[arg(long, value_name = "BYTES", requires = "text", requires = "fitted", value_parser = bytes)]
    memory: Option<u64>,
    /// Number of windows of the text that is measured and fitted with, 2 to 256. Fewer are
    /// read if the text is too short or --memory too small.
    #[arg(long, value_name = "N", default_value = "128", requires = "text", requires = "fitted",
        value_parser = clap::value_parser!(u32).range(2..=256))]
    windows: u32,
    /// Tokens in each window, 8 to 65536.
    #[arg(long, value_name = "TOKENS", default_value = "512", requires = "text", requires = "fitted",
        value_parser = clap::value_parser!(u32).range(8..=65536))]
    window: u32,
}

impl SpendArgs {
    /// A text to fit with, and what may be spent on it.
    pub(super) fn calibrate_on(&self, text: &Path) -> Calibration {
        Calibration {
            text: text.to_owned(),
            windows: self.windows,
            window: self.window,
            memory: self.memory,
        }
    }
}

/// What is done with what is measured.
#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    /// Write the measurements that units, or types for --fit, are chosen by to this file.
    /// `convert --dry-run` writes it, too.
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
}

impl StatsArgs {
    /// What is done with what is measured.
    pub(super) fn stats(&self) -> Stats {
        match (&self.save_stats, &self.stats) {
            (Some(path), _) => Stats::Save(path.clone()),
            (None, Some(path)) => Stats::Load(path.clone()),
            (None, None) => Stats::Forget,
        }
    }

    /// The flags, and whether they are given.
    pub(super) fn given(&self) -> [(&'static str, bool); 2] {
        [
            ("--save-stats", self.save_stats.is_some()),
            ("--stats", self.stats.is_some()),
        ]
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
        self.stats
            .as_deref()
            .map(|path| ("--stats", path))
            .into_iter()
    }
}

/// A number of bytes, with K, M, G or T, or KiB and so on, for powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wanted = || {
        "a whole number of bytes is wanted, or of K, M, G or T, which are powers of 1024: 8G"
            .to_owned()
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wanted()),
    };
    let number: u64 = digits.parse().map_err(|_| wanted())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "that is more than there can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_have_suffixes_of_powers_of_1024() {
        assert_eq!(bytes("20000000000"), Ok(20_000_000_000));
        assert_eq!(bytes("8G"), Ok(8 << 30));
        assert_eq!(bytes("3m"), Ok(3 << 20));
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        for wrong in ["", "G", "8X", "8MB", "8.5G", "-1", "18446744073709551615K"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
