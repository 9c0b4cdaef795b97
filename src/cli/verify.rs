//! `verify`: a converted file against its digests and its source.

use std::path::PathBuf;

use headshare_jobs::{Error, Verify};

use super::Exit;
use super::output::{Output, grouped};
use crate::convert::Verification;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written, also a plain one of other shapes or types.
    file: PathBuf,
    /// The file that it was made from. Every row is compared with it, except in
    /// tensors that were computed anew.
    #[arg(long, value_name = "SRC.gguf")]
    source: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let job = self.job();
        let report = job.run(out)?;
        out.result(&report, json, |report| render(&job.file, report))?;
        Ok(match report.ok {
            true => Exit::Done,
            false => Exit::CheckFailed,
        })
    }

    pub(super) fn job(self) -> Verify {
        Verify {
            file: self.file,
            source: self.source,
        }
    }
}

fn render(path: &std::path::Path, report: &Verification) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!("{}: {}\n", finding.subject, finding.problem);
    }
    let mut checked = match report.plain {
        true => format!(
            "{} computed tensors against their digests",
            report.replaced_tensors
        ),
        false => format!(
            "{} stored tensors and the header against their digests",
            report.stored_tensors
        ),
    };
    if report.lossless {
        checked += ", the expanded file against the source's digest";
    }
    if let Some(bytes) = report.compared_bytes {
        checked += &format!(", {} bytes against the source", grouped(bytes));
    }
    if report.replaced_tensors > 0 && !report.plain {
        let n = report.replaced_tensors;
        checked += &format!("; {n} tensors differ from the source by repair");
    }
    let verdict = if report.ok { "ok" } else { "NOT OK" };
    text + &format!("{}: {verdict} (checked {checked})\n", path.display())
}
