//! What all parts of a report's making share.

use std::path::Path;

use headshare_convert::TOOL;
use headshare_eval::report::cells::{Key, Store};
use headshare_runtime::backend::llama_cpp_revision;
use headshare_runtime::threads::processor_name;
use serde::Serialize;

use super::input::{By, Input};
use super::inputs::Inputs;
use super::job::MakeReport;
use crate::convert::Calibration;
use crate::worker::{Named, Work};
use crate::{Error, Ui};

/// A report that is being made.
pub(super) struct Run<'a> {
    pub job: &'a MakeReport,
    pub inputs: &'a Inputs,
    pub store: &'a Store,
    pub ui: &'a dyn Ui,
    /// What is fitted with, its bound on memory said also where it is this machine's:
    /// it decides how much is read.
    calibration: Option<Calibration>,
    /// The digest of the program that works for this one.
    build: String,
}

/// Everything that a result depends on.
#[derive(Serialize)]
struct On<'a, T> {
    tool: &'a str,
    build: &'a str,
    llama_cpp: &'a str,
    /// Where speed is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    of: T,
}

impl<'a> Run<'a> {
    pub fn new(
        job: &'a MakeReport,
        inputs: &'a Inputs,
        store: &'a Store,
        ui: &'a dyn Ui,
    ) -> Result<Self, Error> {
        let program = ui
            .worker()
            .map_err(|error| Error::failed(error).about("cannot find this program"))?;
        let program = Path::new(program.get_program());
        Ok(Self {
            job,
            inputs,
            store,
            ui,
            calibration: job.calibration().map(|calibration| Calibration {
                memory: Some(calibration.memory_bound()),
                ..calibration.clone()
            }),
            build: Input::read(program, program)?.file.digest,
        })
    }

    /// The key of what depends on `of`.
    pub fn key<T: Serialize>(&self, of: T) -> Result<Key, Error> {
        self.key_on(of, None)
    }

    /// The key of a job's outcome; the job calls files by their digests.
    pub fn key_of_job<J: Work>(&self, job: &J) -> Result<Key, Error> {
        let cpu = J::IS_OF_MACHINE.then(processor_name);
        self.key_on(Named::from(job), cpu)
    }

    fn key_on<T: Serialize>(&self, of: T, cpu: Option<String>) -> Result<Key, Error> {
        let on = On {
            tool: TOOL,
            build: &self.build,
            llama_cpp: llama_cpp_revision(),
            cpu,
            of,
        };
        Ok(Key::of(&on)?)
    }

    /// The text that is fitted to and what may be spent on it.
    pub fn calibration(&self, by: By) -> Option<Calibration> {
        let (calibration, text) = self.calibration.as_ref().zip(self.inputs.fitted.as_ref())?;
        Some(Calibration {
            text: text.called(by),
            ..calibration.clone()
        })
    }
}
