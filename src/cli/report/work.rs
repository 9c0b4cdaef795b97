//! Cell by cell: what is kept is taken, what is missing is made and measured.

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::make::{Recipe, Stats, Target};
use super::measures::Measure;
use super::{Args, Inputs, digested, speed, worker};
use crate::cli::output::Output;
use crate::eval::task_file::task_name;
use crate::report::cells::Store;
use crate::report::lower::{Lowered, Lowering};
use crate::report::{Form, LoadModeSpeed, Made, Paired, Quality, Row, Series, TaskScore};

/// A form's measures.
struct Measured {
    made: Made,
    quality: Quality,
    tasks: Vec<TaskScore>,
    modes: Vec<LoadModeSpeed>,
}

/// What `eval perplexity` says of a file against its rival.
#[derive(Serialize, Deserialize)]
struct Pair {
    base: Paired,
}

pub(super) struct Work<'a> {
    pub(super) args: &'a Args,
    pub(super) inputs: &'a Inputs,
    pub(super) store: &'a Store,
    pub(super) out: &'a Output,
    /// The plain alternatives to what is made of the source.
    lowering: &'a Lowering<'a>,
    /// Digest of a file from which units are chosen.
    pub(super) stats: Option<String>,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        args: &'a Args,
        inputs: &'a Inputs,
        store: &'a Store,
        lowering: &'a Lowering<'a>,
        out: &'a Output,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            args,
            inputs,
            store,
            out,
            lowering,
            stats: Stats::digest(args, inputs, store)?,
        })
    }

    /// All rows, and the source in llama.cpp's own modes of loading.
    pub(super) fn rows(&mut self) -> anyhow::Result<(Vec<Row>, Vec<LoadModeSpeed>)> {
        let source = Target {
            name: "source".into(),
            recipe: Recipe::Source,
            path: self.args.src.clone(),
        };
        let mut measured = self.measure(&source, "source", &|_| Ok(false))?;
        let modes = measured.modes.split_off(1);
        let mut rows = vec![row(Form::Source, None, "source".into(), measured)];
        let mut rivals: Vec<(Lowered, usize)> = Vec::new();
        for &ratio in &self.args.ratios {
            self.rows_at(ratio, &mut rows, &mut rivals)?;
        }
        Ok((rows, modes))
    }

    /// Adds the conversions at one ratio and their rivals, and holds each
    /// against its own, for which both files are needed at once.
    fn rows_at(
        &self,
        ratio: f64,
        rows: &mut Vec<Row>,
        rivals: &mut Vec<(Lowered, usize)>,
    ) -> anyhow::Result<()> {
        let first = rows.len();
        let mut files: Vec<Target> = Vec::new();
        for series in self.args.series() {
            // Nothing is shared: nothing to repair.
            let plain = (rows[first..].iter()).find(|row| row.series == Some("shared"));
            if series.name != "shared" && plain.is_some_and(|row| row.made.changed == 0) {
                continue;
            }
            let (row, file) = self.converted(&series, ratio)?;
            rows.push(row);
            files.push(file);
        }
        for i in first..rows.len() {
            let Some(lowered) = self.rival_of(&rows[i].made) else {
                continue;
            };
            let rival = self.lowered(&lowered)?;
            let known = rivals
                .iter()
                .find(|(known, _)| known.types == lowered.types);
            let row = match known {
                Some((_, row)) => *row,
                None => {
                    let label = self.label(&lowered);
                    let of_rival = |_: &Made| self.needs_rival(&files[i - first], &rows[i].made);
                    let measured = self.measure(&rival, &label, &of_rival)?;
                    rows.push(self::row(Form::Lower, None, label, measured));
                    rivals.push((lowered, rows.len() - 1));
                    rows.len() - 1
                }
            };
            rows[i].rival = Some(row);
            rows[i].to_rival =
                Some(self.against(&files[i - first], &rival, (&rows[i], &rows[row]))?);
            files.push(rival);
        }
        if !self.args.keep {
            for file in files {
                let _ = std::fs::remove_file(&file.path);
            }
        }
        Ok(())
    }

    fn converted(&self, series: &Series, ratio: f64) -> anyhow::Result<(Row, Target)> {
        let name = format!("{}-{ratio}", series.name);
        let label = match series.name {
            "shared" => format!("{} shared", percent(ratio)),
            "dropped" => format!("{} dropped, repaired", percent(ratio)),
            "auto" => format!("as {} shared, auto", percent(ratio)),
            name => format!("{} shared, {name}", percent(ratio)),
        };
        let target = Target {
            recipe: Recipe::Convert {
                ratio,
                arguments: self.args.convert_arguments(series.name),
                repair: series.name != "shared",
            },
            path: self.store.model(&name)?,
            name,
        };
        let needed = |made: &Made| self.needs_rival(&target, made);
        let measured = self.measure(&target, &label, &needed)?;
        let mut row = row(Form::Converted, Some(ratio), label, measured);
        row.series = Some(series.name);
        Ok((row, target))
    }

    /// The plain file that is as small, where something is saved and one gets
    /// that small.
    fn rival_of(&self, made: &Made) -> Option<Lowered> {
        let saves = made.file_bytes < self.inputs.source.bytes;
        saves.then(|| self.lowering.down_to(made.file_bytes))?
    }

    fn lowered(&self, lowered: &Lowered) -> anyhow::Result<Target> {
        let name = format!("lower-{}", lowered.file_bytes);
        Ok(Target {
            recipe: Recipe::Lower(Box::new(lowered.clone())),
            path: self.store.model(&name)?,
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
    fn needs_rival(&self, target: &Target, made: &Made) -> anyhow::Result<bool> {
        let Some(lowered) = self.rival_of(made) else {
            return Ok(false);
        };
        let rival = self.lowered(&lowered)?;
        let Some(rival_made) = self.kept(&rival) else {
            return Ok(true);
        };
        let pair = self.pair((target, made), (&rival, &rival_made));
        Ok(!self.has(&pair))
    }

    /// How a file does against its rival. Both are mostly there; a rival that
    /// belongs to an earlier ratio, too, is made again.
    fn against(
        &self,
        file: &Target,
        rival: &Target,
        (row, rival_row): (&Row, &Row),
    ) -> anyhow::Result<Paired> {
        let measure = self.pair((file, &row.made), (rival, &rival_row.made));
        if !self.has(&measure) {
            for (target, row) in [(file, row), (rival, rival_row)] {
                if !self.is_there(target, &row.made)? {
                    self.make(target, &row.label)?;
                }
            }
        }
        let pair: Pair = self.cell(&measure, &row.label, |pair: &Pair| {
            format!("perplexity {:.4} times the rival's", pair.base.ratio)
        })?;
        Ok(pair.base)
    }

    /// What the cells say of a file that was made once.
    fn kept(&self, target: &Target) -> Option<Made> {
        let key = self.recipe_key(&target.recipe);
        self.store.get(&target.file_cell(), &key)
    }

    fn has(&self, measure: &Measure) -> bool {
        let value: Option<Value> = self.store.get(&measure.cell, &measure.key);
        value.is_some()
    }

    /// Takes the cells that there are, and makes the others; `needed` says
    /// whether the file must be there even when all of its cells are.
    fn measure(
        &self,
        target: &Target,
        label: &str,
        needed: &dyn Fn(&Made) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Measured> {
        let complete = |made: &Made| self.measures(target, made).iter().all(|m| self.has(m));
        let made = match self.kept(target) {
            Some(made) if self.is_there(target, &made)? => made,
            Some(made) if complete(&made) && !self.args.keep && !needed(&made)? => made,
            _ => {
                let made = self.make(target, label)?;
                let key = self.recipe_key(&target.recipe);
                self.store.put(&target.file_cell(), &key, &made)?;
                made
            }
        };
        let mut measures = self.measures(target, &made).into_iter();
        let mut next = || measures.next().expect("one for each");
        let quality: Quality = self.cell(&next(), label, |q: &Quality| {
            format!("perplexity {:.4}", q.perplexity)
        })?;
        let mut tasks = Vec::new();
        for path in &self.args.tasks {
            // A cell is found by what the file holds, whatever its name.
            let name = task_name(path);
            let score: TaskScore = self.cell(&next(), label, |t: &TaskScore| {
                format!("{name} {:.4}", t.accuracy_norm)
            })?;
            tasks.push(TaskScore {
                task: name,
                ..score
            });
        }
        let bench: Value = self.cell(&next(), label, |_| "speed".into())?;
        let (reference, this) = match target.recipe {
            // llama.cpp's own two modes come first.
            Recipe::Source => (2, 2),
            _ => (0, 1),
        };
        let mut modes = speed::by_load_mode(bench, reference)?;
        anyhow::ensure!(modes.len() > this, "bench measured {} modes", modes.len());
        modes.swap(0, this);
        modes[1..].sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Measured {
            made,
            quality,
            tasks,
            modes,
        })
    }

    /// A cell's value, kept or measured now.
    fn cell<T: Serialize + DeserializeOwned>(
        &self,
        measure: &Measure,
        label: &str,
        shown: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<T> {
        if let Some(value) = self.store.get(&measure.cell, &measure.key) {
            let shown = shown(&value);
            self.out.remark(&format!("{label}: {shown} (kept)"));
            return Ok(value);
        }
        let found = worker::ask(&measure.arguments, self.out).with_context(|| label.to_owned())?;
        let value: T =
            serde_json::from_value(found).with_context(|| format!("{label}: {}", measure.cell))?;
        self.store.put(&measure.cell, &measure.key, &value)?;
        self.out.remark(&format!("{label}: {}", shown(&value)));
        Ok(value)
    }

    /// Whether the file is there as it was made.
    fn is_there(&self, target: &Target, made: &Made) -> anyhow::Result<bool> {
        if matches!(target.recipe, Recipe::Source) {
            return Ok(true);
        }
        Ok(target.path.is_file() && digested(&target.path)?.digest == made.digest)
    }
}

fn row(form: Form, ratio: Option<f64>, label: String, mut measured: Measured) -> Row {
    Row {
        form,
        series: None,
        ratio,
        label,
        rival: None,
        to_rival: None,
        made: measured.made,
        quality: measured.quality,
        tasks: measured.tasks,
        speed: measured.modes.swap_remove(0).speed,
    }
}

/// A share in percent, without digits that it does not need.
fn percent(share: f64) -> String {
    let text = format!("{:.3}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}
