//! Cell by cell: what is kept is taken, what is missing is made and measured.

use headshare_convert::matching::MatchFunction;
use headshare_eval::eval::task_file::task_name;
use headshare_eval::report::lower::{Lowered, Lowering};
use headshare_eval::report::{
    FileFacts, LoadModeSpeed, Paired, Quality, Row, RowKind, Series, SeriesTitle, TaskScore,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cell::{Cell, Measure};
use super::input::{By, Input};
use super::measures::{divergence, paired, quality, score};
use super::run::Run;
use super::speed::{Speeds, speeds};
use super::stats::KeptStats;
use super::target::{Recipe, Target};
use crate::Error;
use crate::convert::Calibration;
use crate::error::Context as _;
use crate::worker::{self, ask};

/// What was measured of a file.
struct CellFigures {
    made: FileFacts,
    quality: Quality,
    tasks: Vec<TaskScore>,
    speeds: Speeds,
}

/// A plain file that was measured.
struct Rival {
    lowered: Lowered,
    file: Target,
    row: Row,
    /// Its place among the rows.
    at: usize,
}

/// All that is done for a report.
pub(super) struct Work<'a> {
    run: &'a Run<'a>,
    /// The plain alternatives to what is made of the source.
    lowering: &'a Lowering<'a>,
    /// Digest of a file from which units are chosen.
    deciding: Option<String>,
}

/// Whether a file must be there even when all of its cells are.
type IsNeeded<'n> = &'n dyn Fn(&FileFacts) -> Result<bool, Error>;

impl<'a> Work<'a> {
    pub fn new(run: &'a Run<'a>, lowering: &'a Lowering<'a>) -> Result<Self, Error> {
        let deciding = match KeptStats::of(run)? {
            Some(kept) => kept.deciding(run)?,
            None => None,
        };
        Ok(Self {
            run,
            lowering,
            deciding,
        })
    }

    /// The source's row, and the source in llama.cpp's own modes of loading.
    pub fn source(&self) -> Result<(Row, Vec<LoadModeSpeed>), Error> {
        let source = Target {
            name: "source".into(),
            recipe: Recipe::Source,
            path: self.run.job.source.clone(),
        };
        let mut measured = self.measure(&source, "source", &|_| Ok(false))?;
        let stock = std::mem::take(&mut measured.speeds.stock);
        Ok((row(RowKind::Source, "source".into(), measured), stock))
    }

    /// Adds the rows of conversions at `ratios`.
    pub fn at_ratios(&self, ratios: &[f64], rows: &mut Vec<Row>) -> Result<(), Error> {
        let mut rivals: Vec<Rival> = Vec::new();
        for &ratio in ratios {
            self.rows_at(ratio, rows, &mut rivals)?;
        }
        Ok(())
    }

    /// The row of a file that is measured.
    pub fn row(&self, form: RowKind, file: &Target, label: String) -> Result<Row, Error> {
        let measured = self.measure(file, &label, &|_| Ok(false))?;
        Ok(row(form, label, measured))
    }

    /// How far a file, which nothing else is known of yet, is from the source where it is
    /// calibrated.
    pub fn divergence(
        &self,
        file: &Target,
        label: &str,
        calibration: &Calibration,
    ) -> Result<f64, Error> {
        let of = |made: &FileFacts| self.run.divergence(file, made, calibration);
        let is_known = |made: &FileFacts| Ok(self.has(&of(made)?.cell));
        let made = self.made(file, label, &is_known)?;
        let shown = |kl: &f64| format!("tried, divergence {kl:.4}");
        self.cell(&of(&made)?, label, divergence, shown)
    }

    /// Adds the conversions at one ratio, then their rivals, and holds each
    /// against its own, for which both files are needed at once. Of conversions, one
    /// file is there at a time.
    fn rows_at(
        &self,
        ratio: f64,
        rows: &mut Vec<Row>,
        rivals: &mut Vec<Rival>,
    ) -> Result<(), Error> {
        let known = rivals.len();
        let mut converted: Vec<(Row, Option<usize>)> = Vec::new();
        let mut shares_nothing = false;
        for series in self.run.job.series() {
            // Nothing is shared: nothing to repair.
            if shares_nothing && series.name != Series::Shared {
                continue;
            }
            let (mut row, file) = self.converted(&series, ratio)?;
            if series.name == Series::Shared {
                shares_nothing = row.made.changed == 0;
            }
            let rival = match self.rival_of(&row.made) {
                Some(lowered) => {
                    let i = self.rival(lowered, (&file, &row), rivals)?;
                    let rival = &rivals[i];
                    row.to_rival = Some(self.against(&file, &rival.file, (&row, &rival.row))?);
                    Some(i)
                }
                None => None,
            };
            self.drop(&file);
            converted.push((row, rival));
        }
        for rival in rivals.iter() {
            self.drop(&rival.file);
        }
        let first = rows.len() + converted.len();
        for (at, rival) in (first..).zip(&mut rivals[known..]) {
            rival.at = at;
        }
        for (row, rival) in converted {
            let rival = rival.map(|i| rivals[i].at);
            rows.push(Row { rival, ..row });
        }
        rows.extend(rivals[known..].iter().map(|rival| rival.row.clone()));
        Ok(())
    }

    /// Where among `rivals` that of a conversion stands; it is measured if it is new.
    fn rival(
        &self,
        lowered: Lowered,
        (file, row): (&Target, &Row),
        rivals: &mut Vec<Rival>,
    ) -> Result<usize, Error> {
        let known = (rivals.iter()).position(|known| known.lowered.types == lowered.types);
        if let Some(known) = known {
            return Ok(known);
        }
        let target = self.lowered(&lowered)?;
        let label = self.label(&lowered);
        let needed = |_: &FileFacts| self.needs_rival(file, &row.made);
        let measured = self.measure(&target, &label, &needed)?;
        rivals.push(Rival {
            lowered,
            file: target,
            row: self::row(RowKind::Lower, label, measured),
            at: 0,
        });
        Ok(rivals.len() - 1)
    }

    /// Removes a model file that nobody wants to keep.
    pub fn drop(&self, file: &Target) {
        if !self.run.job.keep {
            let _ = std::fs::remove_file(&file.path);
        }
    }

    fn converted(&self, of: &SeriesTitle, ratio: f64) -> Result<(Row, Target), Error> {
        let series = of.name;
        let function = of.function.unwrap_or_default();
        // The default function needs no name, so that a report that compares
        // functions goes on from one that does not.
        let name = match function == MatchFunction::default() {
            true => format!("{series}-{ratio}"),
            false => format!("{series}-{function}-{ratio}"),
        };
        let by = match self.run.job.functions().len() {
            1 => String::new(),
            _ => format!(" by {function}"),
        };
        let label = match series {
            Series::Shared => format!("{} shared{by}", percent(ratio)),
            Series::Repaired => format!("{} shared{by}, repaired", percent(ratio)),
            Series::Dropped => format!("{} dropped, repaired", percent(ratio)),
            Series::Auto => format!("as {} shared, auto", percent(ratio)),
            Series::Fitted => "fitted".to_owned(),
        };
        let target = Target {
            recipe: Recipe::Convert {
                series,
                function,
                ratio,
            },
            path: self.run.store.model(&name)?,
            name,
        };
        let needed = |made: &FileFacts| self.needs_rival(&target, made);
        let measured = self.measure(&target, &label, &needed)?;
        let row = Row {
            series: Some(series),
            function: of.function,
            ratio: Some(ratio),
            ..row(RowKind::Converted, label, measured)
        };
        Ok((row, target))
    }

    /// The plain file that is as small, where something is saved and one gets
    /// that small.
    fn rival_of(&self, made: &FileFacts) -> Option<Lowered> {
        let saves = made.file_bytes < self.run.inputs.source.file.bytes;
        saves.then(|| self.lowering.down_to(made.file_bytes))?
    }

    fn lowered(&self, lowered: &Lowered) -> Result<Target, Error> {
        let name = format!("lower-{}", lowered.file_bytes);
        Ok(Target {
            recipe: Recipe::Lower(Box::new(lowered.clone())),
            path: self.run.store.model(&name)?,
            name,
        })
    }

    fn label(&self, lowered: &Lowered) -> String {
        let share = percent((lowered.share() * 100.0).round() / 100.0);
        match lowered.steps(self.lowering.gguf) {
            0 | 1 => format!("{share} of the body one type lower"),
            n => format!("{share} of the body up to {n} types lower"),
        }
    }

    /// Whether a file is still to be held against its rival.
    fn needs_rival(&self, target: &Target, made: &FileFacts) -> Result<bool, Error> {
        let Some(lowered) = self.rival_of(made) else {
            return Ok(false);
        };
        let rival = self.lowered(&lowered)?;
        let Some(rival_made) = self.kept(&self.file_cell(&rival)?) else {
            return Ok(true);
        };
        let pair = self.run.pair((target, made), (&rival, &rival_made))?;
        Ok(!self.has(&pair.cell))
    }

    /// How a file does against its rival. Both are mostly there; a rival that
    /// belongs to an earlier ratio, too, is made again.
    pub fn against(
        &self,
        file: &Target,
        rival: &Target,
        (row, rival_row): (&Row, &Row),
    ) -> Result<Paired, Error> {
        let measure = (self.run).pair((file, &row.made), (rival, &rival_row.made))?;
        if !self.has(&measure.cell) {
            for (target, row) in [(file, row), (rival, rival_row)] {
                if !is_there(target, &row.made)? {
                    let made = self.run.make(target, &row.label)?;
                    if made.digest != row.made.digest {
                        return Err(Error::failed(anyhow::anyhow!(
                            "made again, the file is another than the one that was measured"
                        ))
                        .about(&row.label));
                    }
                }
            }
        }
        self.cell(&measure, &row.label, paired, |pair: &Paired| {
            format!("perplexity {:.4} times its rival's", pair.ratio)
        })
    }

    fn file_cell(&self, target: &Target) -> Result<Cell, Error> {
        self.run.file_cell(target, self.deciding.as_deref())
    }

    /// What a cell holds.
    fn kept<T: DeserializeOwned>(&self, cell: &Cell) -> Option<T> {
        self.run.store.get(&cell.name, &cell.key)
    }

    fn has(&self, cell: &Cell) -> bool {
        self.run.store.has(&cell.name, &cell.key)
    }

    fn keep<T: Serialize>(&self, cell: &Cell, value: &T) -> Result<(), Error> {
        self.run.inputs.check_unchanged()?;
        let Cell { name, key, command } = cell;
        Ok(self.run.store.put(name, key, command, value)?)
    }

    /// What is known of a file, which is made if it is not there, unless that is all
    /// that it is needed for.
    fn made(&self, target: &Target, label: &str, is_all: IsNeeded<'_>) -> Result<FileFacts, Error> {
        let cell = self.file_cell(target)?;
        match self.kept::<FileFacts>(&cell) {
            Some(made) if is_there(target, &made)? || is_all(&made)? => Ok(made),
            _ => {
                let made = self.run.make(target, label)?;
                self.keep(&cell, &made)?;
                Ok(made)
            }
        }
    }

    /// Takes the cells that there are, and makes the others.
    fn measure(
        &self,
        target: &Target,
        label: &str,
        needed: IsNeeded<'_>,
    ) -> Result<CellFigures, Error> {
        let complete = |made: &FileFacts| -> Result<bool, Error> {
            let measures = self.run.measures(target, made)?;
            let complete = measures.cells().all(|cell| self.has(cell));
            Ok(complete && !self.run.job.keep && !needed(made)?)
        };
        let made = self.made(target, label, &complete)?;
        let measures = self.run.measures(target, &made)?;
        let quality = self.cell(
            &measures.perplexity,
            label,
            |found| Ok(quality(found)),
            |q: &Quality| format!("perplexity {:.4}", q.perplexity),
        )?;
        let mut tasks = Vec::new();
        for (measure, path) in measures.tasks.iter().zip(&self.run.job.tasks) {
            // A cell is found by what the file holds, whatever its name.
            let task = task_name(path);
            let shown = |t: &TaskScore| format!("{task} {:.4}", t.accuracy.by(t.metric).0);
            let score = self.cell(measure, label, score, shown)?;
            let mut score = TaskScore { task, ..score };
            if !self.run.job.subjects {
                score.subjects.clear();
            }
            tasks.push(score);
        }
        let source = self.run.inputs.source.called(By::Place);
        let taken = |rows: Vec<_>| speeds(&rows, &target.path, &source);
        let speeds = self.cell(&measures.speed, label, taken, |_| "speed".into())?;
        Ok(CellFigures {
            made,
            quality,
            tasks,
            speeds,
        })
    }

    /// A cell's value, kept, or taken now out of what is measured.
    fn cell<J: worker::Work, T: Serialize + DeserializeOwned>(
        &self,
        measure: &Measure<J>,
        label: &str,
        take: impl FnOnce(J::Outcome) -> Result<T, Error>,
        shown: impl FnOnce(&T) -> String,
    ) -> Result<T, Error> {
        let ui = self.run.ui;
        if let Some(value) = self.kept(&measure.cell) {
            ui.remark(&format!("{label}: {} (kept)", shown(&value)));
            return Ok(value);
        }
        let found = ask(&measure.job, None, ui).and_then(take);
        let value = found.about(|| label)?;
        self.keep(&measure.cell, &value)?;
        ui.remark(&format!("{label}: {}", shown(&value)));
        Ok(value)
    }
}

/// Whether the file is there as it was made.
fn is_there(target: &Target, made: &FileFacts) -> Result<bool, Error> {
    if target.is_source() {
        return Ok(true);
    }
    let path = &target.path;
    Ok(path.is_file() && Input::read(path, path)?.file.digest == made.digest)
}

fn row(form: RowKind, label: String, measured: CellFigures) -> Row {
    Row {
        form,
        series: None,
        function: None,
        ratio: None,
        size: None,
        label,
        rival: None,
        to_rival: None,
        made: measured.made,
        quality: measured.quality,
        tasks: measured.tasks,
        speed: measured.speeds.speed,
    }
}

/// A share in percent, without digits that it does not need.
fn percent(share: f64) -> String {
    let text = format!("{:.3}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}
