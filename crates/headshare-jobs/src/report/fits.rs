//! At each size: what is made to fit, and the files of llama.cpp's that it is held
//! against.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use headshare_convert::input::ModelFile;
use headshare_convert::quantize::QuantizerError;
use headshare_convert::quantize::types::Wanted;
use headshare_eval::report::rivals::{self, Plain};
use headshare_eval::report::{Row, RowKind, Series, sizes};
use headshare_format::Gguf;
use serde::Serialize;

use super::input::{By, Input};
use super::run::Run;
use super::target::{Recipe, Rounding, Target};
use super::work::Work;
use crate::convert::{Calibration, Convert};
use crate::{Error, Quiet};

/// Attempts to come below a size: a file says how it was made, which takes bytes.
const ATTEMPTS: usize = 8;

/// Candidates in a row that may be worse than the best before no more are tried.
const IN_VAIN: usize = 2;
/// The largest mixtures, so many, are tried.
const MIXTURES: usize = 3;

/// The contest of what is made to fit with llama.cpp's files.
pub(super) struct Contest<'a> {
    run: &'a Run<'a>,
    work: &'a Work<'a>,
    gguf: &'a Gguf,
    calibration: Calibration,
    /// Of the text that is calibrated on.
    imatrix: Input,
}

/// Whether a type takes importances that a tensor has not.
fn needs_importances(error: &Error) -> bool {
    let of_quantizer = error.source.downcast_ref::<QuantizerError>();
    matches!(of_quantizer, Some(QuantizerError::NeedsImportances { .. }))
}

/// What an importance matrix depends on.
#[derive(Serialize)]
struct Importances {
    imatrix_of: PathBuf,
    calibration: Option<Calibration>,
}

impl<'a> Contest<'a> {
    /// Measures the importance matrix of `gguf`'s file, unless it is there.
    pub fn new(run: &'a Run<'a>, work: &'a Work<'a>, gguf: &'a Gguf) -> Result<Self, Error> {
        let calibration = run.calibration(By::Place);
        let calibration = calibration.ok_or_else(|| Error::usage("no text to calibrate on"))?;
        let path = run.store.imatrix(&run.key(Importances {
            imatrix_of: run.inputs.source.called(By::Digest),
            calibration: run.calibration(By::Digest),
        })?)?;
        if !path.exists() {
            let source = ModelFile::open(&run.job.source)?;
            let fitted = run.inputs.fitted.as_ref();
            let name = fitted.map_or_else(PathBuf::new, |text| text.called(By::Name));
            calibration.write_imatrix(&source, &name, &path, run.ui)?;
            run.ui.remark("importance matrix: measured");
        }
        Ok(Self {
            run,
            work,
            gguf,
            calibration,
            imatrix: Input::read(&path, &path)?,
        })
    }

    /// Adds what is made to fit into so many `bytes`, then its rivals. Those are measured
    /// first: of their files only the best is kept until it is compared.
    pub fn rows_at(&self, bytes: u64, rows: &mut Vec<Row>) -> Result<(), Error> {
        let at = rows.len();
        let mut rivals: Vec<(Row, Target)> = Vec::new();
        let mut measure = |form, file: Target, label: String| {
            let label = sizes::rival_label(form, &label);
            let row = Row {
                size: Some(bytes),
                ..self.work.row(form, &file, label)?
            };
            rivals.push((row, file));
            let rows: Vec<Row> = rivals.iter().map(|(row, _)| row.clone()).collect();
            let best = sizes::best_rival(&rows, bytes);
            for (i, (_, file)) in rivals.iter().enumerate() {
                if Some(i) != best {
                    self.work.drop(file);
                }
            }
            Ok::<_, Error>(())
        };
        if let Some((plain, weighted)) = self.plain(bytes)? {
            let label = plain.label(self.gguf);
            let name = format!("plain-{}-{bytes}", plain.embedding);
            let rounded = self.target(&name, plain.wanted(self.gguf), false)?;
            measure(RowKind::Imatrix, weighted, label.clone())?;
            measure(RowKind::Plain, rounded, label)?;
        }
        if let Some((name, file)) = self.mixture(bytes)? {
            measure(RowKind::Mixture, file, name.to_owned())?;
        }
        // As they are spoken of: without an importance matrix first.
        rivals.sort_by_key(|(row, _)| row.form != RowKind::Plain);
        let name = format!("fit-{bytes}");
        let file = Target {
            recipe: Recipe::Fit { bytes },
            path: self.run.store.model(&name)?,
            name,
        };
        let mut row = Row {
            series: Some(Series::Fitted),
            size: Some(bytes),
            ..(self.work).row(RowKind::Converted, &file, sizes::label(bytes))?
        };
        let of_rivals: Vec<Row> = rivals.iter().map(|(row, _)| row.clone()).collect();
        if let Some(best) = sizes::best_rival(&of_rivals, bytes) {
            let (of_best, rival) = &rivals[best];
            row.to_rival = Some(self.work.against(&file, rival, (&row, of_best))?);
            row.rival = Some(at + 1 + best);
        }
        self.work.drop(&file);
        for (_, rival) in &rivals {
            self.work.drop(rival);
        }
        rows.push(row);
        rows.extend(of_rivals);
        Ok(())
    }

    /// The plain types of at most so many `bytes` that diverge least from the source where
    /// it is calibrated, and their file, rounded with the importance matrix. They are tried
    /// from the smallest embedding on, until a larger one costs the body more than it gains.
    fn plain(&self, bytes: u64) -> Result<Option<(Plain, Target)>, Error> {
        let mut candidates = Vec::new();
        for plain in rivals::plain(self.gguf, bytes) {
            let embedding = plain.embedding;
            let again = |bytes| {
                let all = rivals::plain(self.gguf, bytes);
                all.into_iter().find(|plain| plain.embedding == embedding)
            };
            if let Some(plain) = self.within(bytes, plain, &again)? {
                let name = format!("imatrix-{embedding}-{bytes}");
                let file = self.target(&name, plain.wanted(self.gguf), true)?;
                candidates.push((plain, file));
            }
        }
        candidates.reverse();
        self.closest(candidates, &|plain: &Plain| {
            sizes::rival_label(RowKind::Imatrix, &plain.label(self.gguf))
        })
    }

    /// Of `candidates`, which are called what `label` says, the one that diverges least from
    /// the source where it is calibrated. They are tried in their order, until [`IN_VAIN`] in a
    /// row diverge more.
    fn closest<T>(
        &self,
        mut candidates: Vec<(T, Target)>,
        label: &dyn Fn(&T) -> String,
    ) -> Result<Option<(T, Target)>, Error> {
        if candidates.len() < 2 {
            return Ok(candidates.pop());
        }
        let mut best: Option<(f64, (T, Target))> = None;
        let mut in_vain = 0;
        for (of, file) in candidates {
            let divergence = (self.work).divergence(&file, &label(&of), &self.calibration)?;
            if best.as_ref().is_some_and(|(least, _)| *least <= divergence) {
                self.work.drop(&file);
                in_vain += 1;
                if in_vain == IN_VAIN {
                    break;
                }
                continue;
            }
            in_vain = 0;
            if let Some((_, (_, worse))) = best.replace((divergence, (of, file))) {
                self.work.drop(&worse);
            }
        }
        Ok(best.map(|(_, found)| found))
    }

    /// `plain`, or what is like it in fewer bytes, so that its file has at most so many.
    fn within(
        &self,
        bytes: u64,
        plain: Plain,
        again: &dyn Fn(u64) -> Option<Plain>,
    ) -> Result<Option<Plain>, Error> {
        let mut plain = plain;
        let mut room = bytes;
        for _ in 0..ATTEMPTS {
            let size = self.size(&plain.wanted(self.gguf))?;
            if size <= bytes {
                return Ok(Some(plain));
            }
            room = room.saturating_sub(size - bytes);
            match again(room) {
                Some(smaller) => plain = smaller,
                None => break,
            }
        }
        Ok(None)
    }

    /// Of the largest mixtures of at most so many `bytes` that llama.cpp makes of the source,
    /// the one that diverges least.
    fn mixture(&self, bytes: u64) -> Result<Option<(&'static str, Target)>, Error> {
        let mut candidates: Vec<(&'static str, Target)> = Vec::new();
        let mut sizes: BTreeSet<u64> = BTreeSet::new();
        for mixed in rivals::mixtures(self.gguf, bytes) {
            let wanted = mixed.wanted();
            let size = match self.size(&wanted) {
                Ok(size) => size,
                Err(error) if needs_importances(&error) => continue,
                Err(error) => return Err(error),
            };
            // Those that are as large are mostly the same.
            if size <= bytes && sizes.insert(mixed.bytes) {
                let name = format!("mixture-{}", mixed.name);
                candidates.push((mixed.name, self.target(&name, wanted, true)?));
            }
            if candidates.len() == MIXTURES {
                break;
            }
        }
        self.closest(candidates, &|name: &&str| {
            sizes::rival_label(RowKind::Mixture, name)
        })
    }

    /// The size of the file with these types, rounded with the importance matrix.
    fn size(&self, wanted: &Wanted) -> Result<u64, Error> {
        let rounding = self.rounding(wanted.clone(), true);
        let job = Convert {
            dry_run: true,
            output: None,
            ..(self.run).rounding(&rounding, By::Place, Path::new("dry-run.gguf"))
        };
        Ok(job.run(&Quiet)?.output.bytes)
    }

    fn rounding(&self, wanted: Wanted, weighted: bool) -> Rounding {
        Rounding {
            wanted,
            imatrix: weighted.then(|| self.imatrix.clone()),
        }
    }

    fn target(&self, name: &str, wanted: Wanted, weighted: bool) -> Result<Target, Error> {
        Ok(Target {
            recipe: Recipe::Round(Box::new(self.rounding(wanted, weighted))),
            path: self.run.store.model(name)?,
            name: name.to_owned(),
        })
    }
}
