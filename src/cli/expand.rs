//! `expand`: the plain GGUF that a converted file stands for.

use std::path::PathBuf;

use serde::Serialize;

use super::Exit;
use super::output::{Output, grouped};
use crate::convert;
use crate::input::ModelFile;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written.
    file: PathBuf,
    /// The plain GGUF to write.
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
        let (file, table) = ModelFile::open_converted(&self.file)?;
        let bar = out.bar("writing", table.source.size, true);
        let bytes = convert::expand(&file, &table, &self.output, self.force, &|done| {
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        let result = ExpandResult {
            path: self.output.display().to_string(),
            bytes,
            lossless: table.provenance.lossless,
        };
        out.result(&result, self.json, |r| {
            format!(
                "{}: {} bytes, {}\n",
                r.path,
                grouped(r.bytes),
                if r.lossless {
                    "the source byte for byte"
                } else {
                    "shared units written out"
                }
            )
        })?;
        Ok(Exit::Done)
    }
}
