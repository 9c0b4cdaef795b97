//! What sharing, or making it fit into so many bytes, does to a model, next to what else
//! could be done with it for the same bytes.
//!
//! [`inputs`] checks what can be wrong before any long work. [`work`] goes from
//! cell to cell, at sizes led by [`fits`], [`make`] says how files come to be and [`measures`] what is
//! measured of them: each by a job that a worker does, found again by that job with
//! digests in the place of paths. What is made of it all is in
//! [`headshare_eval::report`].

mod cell;
mod fits;
mod input;
mod inputs;
mod job;
mod make;
mod measures;
mod run;
mod speed;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod work;

use std::path::Path;

use headshare_convert::TOOL;
use headshare_convert::input::ModelFile;
use headshare_eval::analyze::picture::Format;
use headshare_eval::report::cells::Store;
use headshare_eval::report::lower::Lowering;
use headshare_eval::report::{Report, functions, markdown, picture, sizes, subjects, verdict};
use headshare_runtime::backend::llama_cpp_revision;

use self::fits::Contest;
use self::inputs::Inputs;
pub use self::job::{Fits, MakeReport, MeasuredChoice};
use self::run::Run;
use self::work::Work;
use crate::output::json_lines;
use crate::{Error, Ui};

/// The picture's name in the report's folder.
pub const PICTURE: &str = "quality.svg";

impl MakeReport {
    /// Does it.
    ///
    /// # Errors
    /// When an input is bad, which is found before any long work, or a measure
    /// fails; what was measured before is kept.
    pub fn run(&self, ui: &dyn Ui) -> Result<Report, Error> {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        ratios.dedup();
        self.check()?;
        let inputs = Inputs::read(self, ui)?;
        let store = Store::open(&self.output)?;
        let gguf = ModelFile::open(&self.source)?.gguf;
        let lowering = Lowering::of(&gguf);
        let run = Run::new(self, &inputs, &store, ui)?;
        let work = Work::new(&run, &lowering)?;
        let (source, source_load_modes) = work.source()?;
        let mut rows = vec![source];
        let (verdicts, summary) = match &self.fit {
            None => {
                work.at_ratios(&ratios, &mut rows)?;
                let verdicts = verdict::verdicts(&rows);
                let summary = verdict::summary(&rows, &verdicts);
                (verdicts, summary)
            }
            Some(fit) => {
                let contest = Contest::new(&run, &work, &gguf)?;
                for bytes in fit.sizes() {
                    contest.rows_at(bytes, &mut rows)?;
                }
                let verdicts = sizes::verdicts(&rows);
                let summary = sizes::summary(&verdicts);
                (verdicts, summary)
            }
        };
        store.tidy();
        let report = Report {
            tool: TOOL.to_owned(),
            llama_cpp: llama_cpp_revision().to_owned(),
            source: inputs.source.file.clone(),
            text: inputs.text.file.clone(),
            tasks: inputs.tasks.iter().map(|task| task.file.clone()).collect(),
            calibration: (self.fit.as_ref().and(inputs.fitted.as_ref()))
                .map(|fitted| fitted.file.clone()),
            settings: self.settings(&ratios),
            series: self.series(),
            source_load_modes,
            functions: functions::curves(&self.series(), &rows),
            summary,
            verdicts,
            rows,
        };
        for (name, scene) in [
            (PICTURE, Some(picture::picture(&report))),
            (functions::PICTURE, functions::picture(&report)),
            (subjects::PICTURE, subjects::picture(&report)),
        ] {
            for (format, extension) in [(Format::Svg, "svg"), (Format::Png, "png")] {
                let name = Path::new(name).with_extension(extension);
                let name = name.to_string_lossy();
                match &scene {
                    Some(scene) => store.write(&name, &scene.encode(format))?,
                    None => store.remove(&name)?,
                }
            }
        }
        store.write("report.json", &json_lines(&report)?)?;
        let text = markdown::render(&report, PICTURE);
        store.write("report.md", text.as_bytes())?;
        Ok(report)
    }
}
