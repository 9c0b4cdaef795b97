//! What a report is made of, checked before any long work.

use std::path::{Path, PathBuf};

use headshare_convert::convert;
use headshare_convert::fit::FitError;
use headshare_convert::input::{ModelFile, text};
use headshare_eval::eval::choice::Task;
use headshare_eval::eval::choice::encode::encode;
use headshare_eval::eval::perplexity;
use headshare_eval::report::cells::Store;
use headshare_eval::report::overlap::share_in;

use super::input::{Input, Stamp};
use super::job::{Fits, MakeReport};
use crate::bench::{check_generates, check_room, check_test};
use crate::convert::{Calibration, Change, Convert, Stats, check_stats, is_own, read_text};
use crate::error::Context as _;
use crate::eval::item_context;
use crate::load::{Resolve, load};
use crate::stdin::Stdin;
use crate::text::{read_input, without_line_end};
use crate::{Advice, Error, Ui};

/// The inputs, with their digests.
#[derive(Debug)]
pub(super) struct Inputs {
    pub source: Input,
    pub text: Input,
    pub tasks: Vec<Input>,
    /// The text that is fitted to.
    pub fitted: Option<Input>,
    stdin: Stdin,
}

impl Inputs {
    /// Reads them, and finds whatever can be wrong with them.
    pub fn read(job: &MakeReport, ui: &dyn Ui) -> Result<Self, Error> {
        Store::check(&job.output)?;
        check_test(&job.test)?;
        if let Some(calibration) = job.calibration().filter(|on| is_own(&on.text)) {
            let text = calibration.text.display();
            return Err(Error::usage(format!(
                "{text}: a report makes all its files with the text of one file"
            ))
            .advise(Advice::Words(
                "./self names a file that is called self".into(),
            )));
        }
        let stamp = Stamp::of(&job.source)?;
        let source = ModelFile::open_plain(&job.source)?;
        convert::attention_map(&source)?;
        check_generates(&source)?;
        let stdin = Stdin::of(read_by(job))?;
        let read = without_line_end(read_input(stdin.path(&job.text), "the text")?);
        let limit = job.limit.map(|n| n as usize);
        let tasks = (job.tasks.iter())
            .map(|path| Task::read(stdin.path(path), job.kind, limit))
            .collect::<Result<Vec<_>, _>>()?;
        if job.subjects && !tasks.iter().any(|task| task.has_subjects) {
            return Err(without_subjects(&job.tasks));
        }
        {
            let loaded = load(&job.source, Resolve::Auto, true, &mut |_| true, ui)?;
            check_room(&job.test, &loaded.model)?;
            perplexity::check(&loaded.model, &read, job.ctx)
                .about(|| format!("the text in {}", text::name(&job.text)))?;
            let n_ctx = item_context(&loaded.model, 0) as usize;
            for (task, path) in tasks.iter().zip(&job.tasks) {
                encode(task, &loaded.model.vocab(), n_ctx).about(|| text::name(path))?;
            }
        }
        if let Some(repair) = &job.repair {
            let fitted = read_text(stdin.path(&repair.text))?;
            repair.check(&source, fitted.clone(), ui)?;
            if let Some(choice) = &job.measured {
                let calibration = Calibration {
                    text: stdin.path(&repair.text).to_owned(),
                    ..repair.clone()
                };
                let stats = there(&choice.stats, &stdin);
                check_stats(&source, &calibration, (choice.units, &stats), ui)?;
            }
            warn_of_overlap(&read, &fitted, "what the repair fits the model to", ui);
        }
        if let Some(fit) = &job.fit {
            let calibration = Calibration {
                text: stdin.path(&fit.calibration.text).to_owned(),
                ..fit.calibration.clone()
            };
            let fitted = read_text(&calibration.text)?;
            let stats = there(&fit.stats, &stdin);
            (fit.budget(0, calibration.clone(), stats)).check_whole(&source, ui)?;
            check_sizes(fit, calibration, &source)?;
            warn_of_overlap(&read, &fitted, "what the model is fitted to", ui);
        }
        let digest = source.digest().to_owned();
        let known = Input::known(&job.source, source.len(), digest).with(stamp);
        Self::of(job, known, stdin)
    }

    /// Those of a job whose inputs are good.
    fn of(job: &MakeReport, source: Input, stdin: Stdin) -> Result<Self, Error> {
        let input = |path: &Path| Input::read(path, stdin.path(path));
        Ok(Self {
            source,
            text: input(&job.text)?,
            tasks: (job.tasks.iter())
                .map(|path| input(path))
                .collect::<Result<_, _>>()?,
            fitted: (job.calibration())
                .map(|calibration| input(&calibration.text))
                .transpose()?,
            stdin,
        })
    }

    /// Those of a job, whatever they hold.
    #[cfg(test)]
    pub fn unchecked(job: &MakeReport) -> Result<Self, Error> {
        let source = Input::read(&job.source, &job.source)?;
        Self::of(job, source, Stdin::of([])?)
    }

    /// Finds out whether all of them are still what was read.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let all = [&self.source, &self.text].into_iter();
        let mut all = all.chain(&self.tasks).chain(&self.fitted);
        all.try_for_each(Input::check_unchanged)
    }

    /// Where `path` can be opened, by processes of this one, too.
    pub fn place<'a>(&'a self, path: &'a Path) -> &'a Path {
        self.stdin.path(path)
    }
}

/// What was measured before, where there is something: a file that is to be written and is there
/// already is read.
fn there(stats: &Stats, stdin: &Stdin) -> Stats {
    match stats {
        Stats::Load(path) => Stats::Load(stdin.path(path).to_owned()),
        Stats::Save(path) if path.exists() => Stats::Load(path.clone()),
        _ => Stats::Forget,
    }
}

/// What may be read from standard input.
fn read_by(job: &MakeReport) -> impl Iterator<Item = &Path> {
    let of_choice = job.measured.as_ref().map(|choice| &choice.stats);
    let stats = match of_choice.or(job.fit.as_ref().map(|fit| &fit.stats)) {
        Some(Stats::Load(path)) => Some(path),
        _ => None,
    };
    let text = job.calibration().map(|calibration| &calibration.text);
    let all = std::iter::once(&job.text).chain(&job.tasks);
    all.chain(text).chain(stats).map(|path| path.as_path())
}

/// None of the tasks has what is to be told apart.
fn without_subjects(tasks: &[PathBuf]) -> Error {
    let names: Vec<String> = tasks.iter().map(|path| text::name(path)).collect();
    let what = match names.len() {
        0 => "no task is given, so there are no subjects".to_owned(),
        1 => format!("{} has no subjects", names[0]),
        _ => format!("none of {} has subjects", names.join(", ")),
    };
    let help = "subjects are those of MMLU's, C-Eval's or CMMLU's zip file, or of rows with the \
                field `subject`";
    Error::bad_input(what).advise(Advice::Words(help.into()))
}

/// Texts may have so much in common by chance, or by quoting a third.
const OVERLAP: f64 = 0.05;

/// Refuses sizes that `source` has already, and those that it does not get.
fn check_sizes(fits: &Fits, on: Calibration, source: &ModelFile) -> Result<(), Error> {
    let about = |error: FitError| Error::from(error).about(source.path().display());
    let job = Convert::unwritten(source.path(), Change::Lossless);
    let smallest = job.smallest_to_fit(&fits.budget(0, on, Stats::Forget), source)?;
    for wanted in fits.sizes() {
        if wanted >= source.len() {
            let has = source.len();
            return Err(about(FitError::FitsAlready { has, wanted }));
        }
        if wanted < smallest {
            return Err(about(FitError::TooSmall { wanted, smallest }));
        }
    }
    Ok(())
}

/// Says so when the model is judged by what it is fitted to, which is called `what`.
fn warn_of_overlap(text: &str, fitted: &str, what: &str, ui: &dyn Ui) {
    let (text, fitted) = (text.as_bytes(), fitted.as_bytes());
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    let common = match (share_in(text, fitted), share_in(fitted, text)) {
        (seen, _) if seen > OVERLAP => format!("{} of the text is in {what}", percent(seen)),
        (_, used) if used > OVERLAP => format!("{} of {what} is in the text", percent(used)),
        _ => return,
    };
    ui.warning(&format!(
        "{common}: its perplexity will flatter; measure it on another text"
    ));
}
