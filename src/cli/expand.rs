//! `expand`: the plain GGUF that a converted file stands for.

use std::path::PathBuf;

use serde::Serialize;

use super::Exit;
use super::output::{Output, grouped, written as written_to_stdout};
use super::stdio::{self, Written};
use crate::convert::{self, StreamError};
use crate::input::ModelFile;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written.
    file: PathBuf,
    /// The plain GGUF to write; - writes to standard output.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct ExpandResult {
    path: String,
    bytes: u64,
    lossless: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let written = Written {
            flag: "-o",
            path: &self.output,
            binary: true,
        };
        let streams = stdio::taken(&[written], self.json)?;
        let (file, table) = ModelFile::open_converted(&self.file)?;
        let bar = out.bar("writing", table.source.size, true);
        let progress = |done| bar.set_position(done);
        let bytes = if streams {
            match convert::expand_to_stream(&file, &table, &mut out.stream()?, &progress) {
                Err(StreamError::Write(error)) => {
                    written_to_stdout(Err(error))?;
                    return Ok(Exit::Done);
                }
                Err(StreamError::Convert(error)) => return Err(error.into()),
                Ok(bytes) => bytes,
            }
        } else {
            convert::expand(&file, &table, &self.output, self.force, &progress)?
        };
        bar.finish_and_clear();
        let result = ExpandResult {
            path: self.output.display().to_string(),
            bytes,
            lossless: table.provenance.lossless,
        };
        out.result_beside(streams, &result, self.json, |r| {
            format!(
                "{}: {} bytes, {}\n",
                r.path,
                grouped(r.bytes),
                if r.lossless {
                    "the source byte for byte, by its digest"
                } else {
                    "shared units written out; what is stored is as it was written, by its digests"
                }
            )
        })?;
        Ok(Exit::Done)
    }
}
