//! What the heads of a model look like, in numbers and pictures.

use std::path::{Path, PathBuf};

use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, is_stdio};
use headshare_convert::matching::MatchFunction;
use headshare_eval::analyze::PlainModel;
use headshare_eval::analyze::attention::{Attention, Reader, Settings};
use headshare_eval::analyze::picture::{Format, Scene};
use headshare_eval::analyze::ratios::{Ratios, ratios};
use headshare_eval::analyze::weights::{Weights, weights};
use headshare_files::FileId;
use serde::{Deserialize, Serialize};

use crate::output::{Written, is_same_path};
use crate::text::read_input;
use crate::{Advice, Error, Ui, Unit};

/// Says how alike the weights of all heads are: the scores that sharing goes by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnalyzeWeights {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// Which parts of two units are compared.
    pub function: MatchFunction,
    /// What would share at this ratio, from 0 to 1, is marked.
    pub ratio: f64,
    /// Where a picture is written: `.svg` or `.png`, or SVG to standard output.
    #[serde(with = "crate::path::option")]
    pub picture: Option<PathBuf>,
    /// Where the scores are written, as a NumPy array of units by units.
    #[serde(with = "crate::path::option")]
    pub npy: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

/// Says how alike heads attend to a text, and whether those with like weights do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnalyzeAttention {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// The text that it reads.
    #[serde(with = "crate::path")]
    pub text: PathBuf,
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows to take the mean over, from the text's beginning.
    pub windows: u32,
    /// Which parts of two units are compared, in turn.
    pub functions: Vec<MatchFunction>,
    /// What would share at this ratio, from 0 to 1, is looked at.
    pub ratio: f64,
    /// Threads; by default one a physical core.
    pub threads: Option<u32>,
    /// Where a picture is written: `.svg` or `.png`, or SVG to standard output.
    #[serde(with = "crate::path::option")]
    pub picture: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

/// Says which layers of converted files share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnalyzeRatios {
    /// Converted files.
    #[serde(with = "crate::path::list")]
    pub files: Vec<PathBuf>,
    /// Where a picture is written: `.svg` or `.png`, or SVG to standard output.
    #[serde(with = "crate::path::option")]
    pub picture: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

impl AnalyzeWeights {
    /// Does it.
    ///
    /// # Errors
    /// When the model's heads cannot be compared, or an output not be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Weights, Error> {
        if let (Some(picture), Some(npy)) = (&self.picture, &self.npy)
            && is_same_path(picture, npy)
        {
            let problem = "the scores and their picture cannot be written to the same file";
            return Err(Error::usage(problem).advise(Advice::AnotherOutput));
        }
        let model = PlainModel::open(&self.file)?;
        let inputs = [model.id];
        let picture = Picture::new(self.picture.as_deref(), self.force, &inputs)?;
        let npy = self.npy.as_deref().map(|path| Written {
            path,
            force: self.force,
            inputs: &inputs,
        });
        npy.as_ref().map(Written::check).transpose()?;
        let bar = ui.bar("matching", 1000, Unit::Parts);
        let found = weights(&model, self.function, self.ratio, &|done| bar.part(done))?;
        drop(bar);
        picture.write(|| found.picture(), ui)?;
        if let Some(npy) = npy {
            npy.write(&found.npy(), ui)?;
        }
        Ok(found)
    }
}

impl AnalyzeAttention {
    /// Does it.
    ///
    /// # Errors
    /// When the model does not generate text, its heads cannot be compared, or an
    /// output not be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Attention, Error> {
        let model = PlainModel::open(&self.file)?;
        let inputs = [model.id];
        let picture = Picture::new(self.picture.as_deref(), self.force, &inputs)?;
        let read = read_input(&self.text, "the text")?;
        let settings = Settings {
            ctx: self.ctx,
            windows: self.windows as usize,
            chunk: None,
            threads: self.threads,
        };
        let name = text::name(&self.text);
        let read = (Path::new(&name), &*read);
        let reader = Reader::new(&model, read, &settings)?;
        let bar = ui.bar("weights", 1000, Unit::Parts);
        let each = 1.0 / self.functions.len() as f64;
        let scores = self.functions.iter().enumerate().map(|(i, &function)| {
            weights(&model, function, self.ratio, &|done| {
                bar.part((i as f64 + done) * each);
            })
        });
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        drop(bar);
        let bar = ui.bar("attention", 1000, Unit::Parts);
        let found = reader.read(&scores, &|done| bar.part(done))?;
        drop(bar);
        picture.write(|| found.picture(), ui)?;
        if found.windows < settings.windows {
            ui.remark(&format!("note: the text has {} only", found.windows_text()));
        }
        Ok(found)
    }
}

impl AnalyzeRatios {
    /// Does it.
    ///
    /// # Errors
    /// When a file is not a converted one, or the picture cannot be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Ratios, Error> {
        let id = |path: &PathBuf| Ok(ModelFile::open(path)?.file.id());
        let inputs = self
            .files
            .iter()
            .map(id)
            .collect::<Result<Vec<_>, Error>>()?;
        let picture = Picture::new(self.picture.as_deref(), self.force, &inputs)?;
        let found = ratios(&self.files)?;
        picture.write(|| found.picture(), ui)?;
        Ok(found)
    }
}

/// A picture to be written, or none.
pub(crate) struct Picture<'a>(Option<(Written<'a>, Format)>);

impl<'a> Picture<'a> {
    /// Fails early on what would make writing fail.
    pub fn new(path: Option<&'a Path>, force: bool, inputs: &'a [FileId]) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let format = match is_stdio(path) {
            true => Format::Svg,
            false => Format::of(path)
                .map_err(|problem| Error::usage(format!("{}: {problem}", path.display())))?,
        };
        let written = Written {
            path,
            force,
            inputs,
        };
        written.check()?;
        Ok(Self(Some((written, format))))
    }

    pub fn write(&self, scene: impl FnOnce() -> Scene, ui: &dyn Ui) -> Result<(), Error> {
        match &self.0 {
            Some((written, format)) => written.write(&scene().encode(*format), ui),
            None => Ok(()),
        }
    }
}
