//! Choosing units by what each of them does to the running model.

use std::path::PathBuf;

use headshare_convert::convert;
use headshare_convert::convert::variant::Limits;
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, Contents};
use headshare_convert::matching::aliases_for;
use headshare_convert::model::AttentionMap;
use headshare_convert::plan::Plan;
use headshare_convert::repair::choose::{self, Chosen, Constraints, Goal, Subject, Survey, Units};
use headshare_convert::repair::{self, SurveyRecord};
use headshare_files::{AtomicFile, FileId};
use serde::{Deserialize, Serialize};

use super::calibrate::{Calibration, Ready, cannot_cut, of_source};
use crate::error::Context as _;
use crate::{Error, Ui, Unit};

/// What is done with what was measured for a choice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stats {
    /// It is forgotten.
    #[default]
    Forget,
    /// It is kept in this file.
    Save(#[serde(with = "crate::path")] PathBuf),
    /// It is in this file already.
    Load(#[serde(with = "crate::path")] PathBuf),
}

/// What is to be chosen.
pub(super) struct Wanted<'a> {
    pub ratio: f64,
    pub units: Units,
    pub stats: &'a Stats,
    /// Replaces a file of statistics that is there.
    pub force: bool,
    /// Files that must not be overwritten.
    pub inputs: &'a [FileId],
}

/// Finds out early whether what `stats` has was measured of other things than `source` and the
/// text of `calibration`.
///
/// # Errors
/// Says what.
pub(crate) fn check_stats(
    source: &ModelFile,
    calibration: &Calibration,
    (units, stats): (Units, &Stats),
    ui: &dyn Ui,
) -> Result<(), Error> {
    if !matches!(stats, Stats::Load(_)) {
        return Ok(());
    }
    let ready = calibration.prepare(source, repair::takes(source), true, ui)?;
    let map = convert::attention_map(source)?;
    let wanted = Wanted {
        ratio: 0.0,
        units,
        stats,
        force: false,
        inputs: &[],
    };
    let subject = Subject {
        source,
        digest: source.digest(),
        map: &map,
    };
    wanted.known(subject, &ready).map(|_| ())
}

impl Wanted<'_> {
    /// Chooses by measuring, or by what was measured before.
    pub fn choose(
        &self,
        source: &ModelFile,
        ready: &Ready,
        ui: &dyn Ui,
    ) -> Result<(Plan, SurveyRecord), Error> {
        let map = convert::attention_map(source)?;
        let limits = match self.units {
            Units::Share => None,
            Units::Drop | Units::Auto => {
                Some(Limits::of(source, &map).map_err(|error| cannot_cut(source, error))?)
            }
        };
        if let Stats::Save(path) = self.stats {
            AtomicFile::check(path, self.force, self.inputs)?;
        }
        let digest = source.digest().to_owned();
        let survey = self.survey(source, &digest, &map, ready, ui)?;
        if let Stats::Save(path) = self.stats {
            survey.write(path, self.force, self.inputs)?;
        }
        let units = map.units().len();
        let count = aliases_for(self.ratio, units)?;
        let chosen = self.select(&survey, limits, count);
        self.remark_shortfall(&chosen, count, ui);
        let plan = chosen.plan(digest, self.ratio, units);
        Ok((plan, survey.record()))
    }

    /// What was measured before, where that is to be read.
    fn known(&self, subject: Subject<'_>, ready: &Ready) -> Result<Option<Survey>, Error> {
        let Stats::Load(path) = self.stats else {
            return Ok(None);
        };
        let file = Contents::open(path)?;
        Survey::from_json(&file, subject, &ready.windows, self.units != Units::Share)
            .about(|| text::name(path))
            .map(Some)
    }

    fn survey(
        &self,
        source: &ModelFile,
        digest: &str,
        map: &AttentionMap,
        ready: &Ready,
        ui: &dyn Ui,
    ) -> Result<Survey, Error> {
        let dropping = self.units != Units::Share;
        let subject = Subject {
            source,
            digest,
            map,
        };
        if let Some(known) = self.known(subject, ready)? {
            return Ok(known);
        }
        let bar = ui.bar("choosing", 1000, Unit::Parts);
        choose::survey(
            subject,
            &ready.windows,
            &ready.options,
            dropping,
            &|done| bar.part(done),
            &|text| ui.remark(text),
        )
        .map_err(|error| of_source(source, error))
    }

    fn select(&self, survey: &Survey, limits: Option<Limits<'_>>, count: usize) -> Chosen {
        let constraints = Constraints {
            units: self.units,
            sizes: &|unit| limits.map_or((0, 0), |l| l.sizes(unit)),
            together: &|layer| limits.map_or(1, |l| l.together(layer)),
            keeps_one: &|layer| limits.is_some_and(|l| l.must_keep_one(layer)),
        };
        let goal = match self.units {
            Units::Share | Units::Drop => Goal::Count(count),
            // What sharing as many units would save.
            Units::Auto => {
                let share = Constraints {
                    units: Units::Share,
                    ..constraints
                };
                let shared = survey.select(Goal::Count(count), &share).shared;
                Goal::Bytes(shared.keys().map(|&unit| (constraints.sizes)(unit).0).sum())
            }
        };
        survey.select(goal, &constraints)
    }

    /// Says so where fewer units than asked for can share or go.
    fn remark_shortfall(&self, chosen: &Chosen, count: usize, ui: &dyn Ui) {
        let found = chosen.shared.len() + chosen.dropped.len();
        match self.units {
            Units::Auto if found == 0 && count > 0 => ui.remark("note: no unit can share or go"),
            Units::Share if found < count => ui.remark(&format!(
                "note: {count} units were asked for, {found} can share"
            )),
            Units::Drop if found < count => ui.remark(&format!(
                "note: {count} units were asked for, {found} can go (none of the first layer)"
            )),
            _ => {}
        }
    }
}
