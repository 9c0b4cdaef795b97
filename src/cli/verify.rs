//! `verify`: a converted file against its digests and its source.

use std::path::PathBuf;

use super::Exit;
use super::output::{Output, grouped};
use crate::convert::variant::MADE_BY;
use crate::convert::{self, Report};
use crate::input::ModelFile;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written, also a plain one of other shapes or
    /// types.
    file: PathBuf,
    /// The file it was made from: compare every row with it.
    #[arg(long, value_name = "SRC.gguf")]
    source: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let source = self
            .source
            .as_deref()
            .map(ModelFile::open_plain)
            .transpose()?;
        let file = ModelFile::open(&self.file)?;
        let report = if file.table.is_none() && file.gguf.kv(MADE_BY).is_some() {
            convert::verify_variant(&file, source.as_ref())?
        } else {
            let (file, table) = ModelFile::open_converted(&self.file)?;
            convert::verify(&file, &table, source.as_ref())?
        };
        out.result(&report, self.json, |report| render(&self.file, report))?;
        Ok(if report.ok {
            Exit::Done
        } else {
            Exit::CheckFailed
        })
    }
}

fn render(path: &std::path::Path, report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!("{}: {}\n", finding.subject, finding.problem);
    }
    let mut checked = if report.plain {
        format!(
            "{} computed tensors against their digests",
            report.replaced_tensors
        )
    } else {
        format!(
            "{} stored tensors and the header against their digests",
            report.stored_tensors
        )
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
