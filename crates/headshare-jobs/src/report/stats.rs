//! The file of what is measured to choose units, or types, which serves all ratios and
//! sizes.

use std::path::{Path, PathBuf};

use headshare_convert::repair::choose::Units;
use headshare_eval::report::cells::Key;
use serde::Serialize;

use super::input::{By, Input};
use super::run::Run;
use crate::Error;
use crate::convert::{Calibration, Stats};

/// The file of what is measured to choose units or types.
#[derive(Debug)]
pub(super) struct KeptStats {
    /// What the measuring depends on.
    key: Key,
    /// Has it written or read.
    stats: Stats,
    /// It is the user's.
    is_theirs: bool,
}

/// What is measured to choose units.
#[derive(Serialize)]
struct Choosing {
    source: PathBuf,
    repair: Option<Calibration>,
    units: Units,
}

/// What is measured to choose types.
#[derive(Serialize)]
struct Fitting<'a> {
    source: PathBuf,
    fit: Option<Calibration>,
    types: &'a Option<Vec<String>>,
    time: Option<u64>,
}

/// The cell that tells which of the user's files this report has written.
const CELL: &str = "choice.stats";

impl KeptStats {
    /// Where units or types are chosen by measuring.
    pub fn of(run: &Run<'_>) -> Result<Option<Self>, Error> {
        let source = run.inputs.source.called(By::Digest);
        let calibration = run.calibration(By::Digest);
        let (key, stats) = match (&run.job.measured, &run.job.fit) {
            (Some(choice), _) => {
                let choosing = Choosing {
                    source,
                    repair: calibration,
                    units: choice.units,
                };
                (run.key(choosing)?, &choice.stats)
            }
            (None, Some(fit)) => {
                let fitting = Fitting {
                    source,
                    fit: calibration,
                    types: &fit.types,
                    time: fit.time,
                };
                (run.key(fitting)?, &fit.stats)
            }
            (None, None) => return Ok(None),
        };
        let save = |path: &Path| match path.exists() {
            true => Stats::Load(path.to_owned()),
            false => Stats::Save(path.to_owned()),
        };
        let (stats, is_theirs) = match stats {
            Stats::Load(path) => (Stats::Load(run.inputs.place(path).to_owned()), true),
            Stats::Save(path) => (save(path), true),
            Stats::Forget => (save(&run.store.stats(&key)?), false),
        };
        Ok(Some(Self {
            key,
            stats,
            is_theirs,
        }))
    }

    /// What a conversion does with it.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// The digest of a file that decides what is chosen, unless it says what
    /// this report would measure by itself, or has measured.
    pub fn deciding(&self, run: &Run<'_>) -> Result<Option<String>, Error> {
        let Stats::Load(path) = &self.stats else {
            return Ok(None);
        };
        if !self.is_theirs {
            return Ok(None);
        }
        let digest = Input::read(path, path)?.file.digest;
        let known: Option<String> = run.store.get(CELL, &self.key);
        Ok(Some(digest).filter(|digest| known.as_ref() != Some(digest)))
    }

    /// Remembers what a conversion has written.
    pub fn record(&self, run: &Run<'_>) -> Result<(), Error> {
        if let (Stats::Save(path), true) = (&self.stats, self.is_theirs) {
            let digest = Input::read(path, path)?.file.digest;
            run.store.put(CELL, &self.key, &[], &digest)?;
        }
        Ok(())
    }
}
