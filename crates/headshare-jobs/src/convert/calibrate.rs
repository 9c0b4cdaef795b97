//! Fitting with a text: what is read, how much memory it may take, and the run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use headshare_convert::convert::variant::{Heads, ShapeError};
use headshare_convert::convert::{self, ConvertError, Fitted};
use headshare_convert::engine::{EngineError, Takes, Text};
use headshare_convert::input::text::{self, Contents, is_stdio, without_mark};
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::plan::Plan;
use headshare_convert::quantize::{self, imatrix};
use headshare_convert::repair::{
    self, Options, Record, RepairError, SurveyRecord, Windows, check_supported,
};
use headshare_files::FileId;
use headshare_format::FormatError;
use headshare_runtime::memory;
use headshare_stitch::MappedFile;
use serde::{Deserialize, Serialize};

use crate::bench::check_generates;
use crate::{Error, Ui, Unit};

/// Memory to stay within where the system does not tell how much there is.
const FALLBACK_MEMORY: u64 = 8 << 30;

/// A text to fit with, and what may be spent on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// The text, UTF-8; `self` is what the model writes itself.
    #[serde(with = "crate::path")]
    pub text: PathBuf,
    /// Windows of it, at most; fewer where the text or the memory has no room for
    /// them.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Bytes of memory to stay within; by default half of what the machine has, or
    /// of what its container or a limit allows.
    pub memory: Option<u64>,
}

/// A calibration whose text was read and cut into windows.
pub(super) struct Ready {
    pub windows: Windows,
    pub options: Options,
}

impl Calibration {
    /// Bytes to stay within.
    pub fn memory_bound(&self) -> u64 {
        self.memory
            .unwrap_or_else(|| memory::usable_memory().map_or(FALLBACK_MEMORY, |bytes| bytes / 2))
    }

    /// Finds out early what would keep `source` from being fitted: its
    /// architecture, too little text or memory.
    ///
    /// # Errors
    /// Says what.
    pub fn check(&self, source: &ModelFile, text: String, ui: &dyn Ui) -> Result<(), Error> {
        let map = convert::attention_map(source)?;
        check_supported(&map)?;
        repair::check_text(source, &self.options(Text::Given(text)), &|text| {
            ui.remark(text)
        })
        .map_err(|error| self.about(source, error))
    }

    /// Finds out early what would keep `source`, with all matrices as numbers in F32, from being
    /// quantized to the `text`: too little of it, or of memory.
    #[cfg(feature = "train")]
    pub(crate) fn check_numbers(&self, source: &ModelFile, text: String) -> Result<(), Error> {
        let matrices = (source.gguf.tensors().iter()).filter(|info| info.dims.len() > 1);
        let larger = matrices
            .map(|info| (4 * info.row_elems() * info.rows()).saturating_sub(info.byte_len()));
        let mut takes = quantize::takes(source);
        // The model is there twice.
        takes.kept = takes.kept.saturating_add(2 * larger.sum::<u64>());
        let options = self.options(Text::Given(text));
        Windows::of(source, &options, takes, &|_| (), &|_| ())
            .map_err(|error| self.about(source, error.into()))?;
        Ok(())
    }

    /// Names the text or `source` in an error that is about it.
    fn about(&self, source: &ModelFile, error: RepairError) -> Error {
        match error {
            RepairError::Engine(EngineError::TextTooShort { .. }) => {
                Error::from(error).about(text::name(&self.text))
            }
            _ => of_source(source, error),
        }
    }

    /// Reads the text for what takes so much memory; what the model would write itself
    /// only if that is read by anything.
    pub(super) fn prepare(
        &self,
        source: &ModelFile,
        takes: Takes<'_>,
        is_read: bool,
        ui: &dyn Ui,
    ) -> Result<Ready, Error> {
        check_generates(source)?;
        let text = match (is_own(&self.text), is_read) {
            (true, true) => Text::Own,
            (true, false) => Text::Unwritten,
            (false, _) => Text::Given(read_text(&self.text)?),
        };
        let options = self.options(text);
        let bar = (options.text == Text::Own).then(|| ui.bar("writing", 1000, Unit::Parts));
        let progress = |done| {
            if let Some(bar) = &bar {
                bar.part(done);
            }
        };
        let windows = Windows::of(source, &options, takes, &progress, &|text| ui.remark(text))
            .map_err(|error| self.about(source, error.into()))?;
        Ok(Ready { windows, options })
    }

    /// Measures the importance matrix of `source` over what is calibrated on, and writes it
    /// to `path`; it says that the text is called `name`.
    pub(crate) fn write_imatrix(
        &self,
        source: &ModelFile,
        name: &Path,
        path: &Path,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let ready = self.prepare(source, quantize::takes(source), true, ui)?;
        ready.write_imatrix(source, name, (path, true), ui)
    }

    fn options(&self, text: Text) -> Options {
        Options {
            text,
            windows: self.windows,
            window: self.window,
            memory: self.memory_bound(),
            n_threads: None,
            stop: Arc::default(),
        }
    }
}

impl Ready {
    /// Measures the importance matrix of `source` over the windows of the text called
    /// `name`, and writes it to a path, over what is there if that is so.
    pub fn write_imatrix(
        &self,
        source: &ModelFile,
        name: &Path,
        (path, force): (&Path, bool),
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let bar = ui.bar("measuring", 1000, Unit::Parts);
        let (windows, options) = (&self.windows, &self.options);
        let of = quantize::measure(source, windows, options, &|done| bar.part(done))
            .map_err(|error| Error::from(error).about(source.path().display()))?;
        let read = (windows.count, windows.window);
        imatrix::write(&of, &name.display().to_string(), read, path, force)?;
        Ok(())
    }

    /// Repairs `source` after `plan`; a dry run says only how much room that would
    /// take.
    pub fn fit(
        &self,
        source: &ModelFile,
        plan: &Plan,
        choice: Option<SurveyRecord>,
        dry_run: bool,
        ui: &dyn Ui,
    ) -> Result<(Fitted, Option<Record>), Error> {
        let map = convert::attention_map(source)?;
        plan.check(&map).map_err(ConvertError::from)?;
        check_supported(&map)?;
        Heads::new(source, &map, plan.dropped_units())
            .map_err(|error| cannot_cut(source, error))?;
        let (windows, options) = (&self.windows, &self.options);
        if dry_run {
            let fitted = repair::foresee(source, &map, plan, windows, options, choice)?;
            return Ok((fitted, None));
        }
        let bar = ui.bar("repairing", 1000, Unit::Parts);
        let repaired = repair::repair(
            source,
            &map,
            plan,
            windows,
            options,
            &|done| bar.part(done),
            &|text| ui.remark(text),
        )
        .map_err(|error| of_source(source, error))?;
        let (fitted, record) = repaired.into_fitted(choice);
        Ok((fitted, Some(record)))
    }
}

/// The text at `path`, UTF-8.
///
/// # Errors
/// When it cannot be read, or is no UTF-8.
pub fn read_text(path: &Path) -> Result<String, Error> {
    let read = Contents::open(path)?;
    match std::str::from_utf8(&read) {
        Ok(text) => Ok(without_mark(text).to_owned()),
        Err(error) => {
            let problem = format!("is not UTF-8 at byte {}", error.valid_up_to());
            let name = text::name(path);
            Err(
                InputError::content(Path::new(&name))(FormatError::unsupported("text", problem))
                    .into(),
            )
        }
    }
}

/// Whether `path` stands for what the model writes itself; a file of that name is
/// `./self`.
pub(crate) fn is_own(path: &Path) -> bool {
    path == Path::new("self")
}

/// Which file is at `path`, unless it is standard input or no file.
pub(super) fn id(path: &Path) -> Result<Option<FileId>, Error> {
    if is_stdio(path) || is_own(path) {
        return Ok(None);
    }
    Ok(Some(MappedFile::open(path).map_err(InputError::from)?.id()))
}

/// Names the source in an error that is about it.
pub(super) fn of_source(source: &ModelFile, error: RepairError) -> Error {
    let path = source.path().display().to_string();
    let says_what = matches!(
        error,
        RepairError::Unsupported { .. } | RepairError::Engine(EngineError::Memory { .. })
    );
    if says_what || error.to_string().contains(&path) {
        return error.into();
    }
    Error::from(error).about(path)
}

pub(super) fn cannot_cut(source: &ModelFile, error: ShapeError) -> ConvertError {
    ConvertError::Shape {
        path: source.path().to_owned(),
        error,
    }
}
