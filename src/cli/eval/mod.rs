//! `eval`: measures models. One file a measure; what they have in common is in
//! `common`.

mod choice;
mod common;
mod generate;
mod perplexity;

pub(super) use choice::KindArg;

use std::path::Path;

use clap::Subcommand;
use headshare_jobs::Error;

use super::Exit;
use super::output::Output;
use crate::input::text;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) measure: Measure,
}

// Comments here would take the place of what their arguments say in `--help`.
#[derive(Debug, Subcommand)]
pub(super) enum Measure {
    Perplexity(perplexity::Args),
    Choice(choice::Args),
    Generate(generate::Args),
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        match self.measure {
            Measure::Perplexity(args) => args.run(out),
            Measure::Choice(args) => args.run(out),
            Measure::Generate(args) => args.run(out),
        }
    }
}

/// Reads a file, or standard input; `option` is the one that names it.
pub(super) fn read_bytes(path: &Path, option: &str) -> Result<Vec<u8>, Error> {
    text::read(path).map_err(|e| {
        let path = text::name(path);
        Error::bad_input(format!("cannot read {path} ({option}): {e}"))
    })
}

/// Reads a text; `option` is the one that names it.
pub(super) fn read_text(path: &Path, option: &str) -> Result<String, Error> {
    let mut read = text::decode(read_bytes(path, option)?).map_err(|problem| {
        Error::bad_input(format!("{} ({option}) {problem}", text::name(path)))
    })?;
    // A file ends with a line end that is not meant, as for llama.cpp.
    if read.ends_with('\n') {
        read.pop();
    }
    Ok(read)
}
