//! `eval`: measures models. One file a measure; what they have in common is in
//! `common`.

mod choice;
mod common;
mod generate;
mod perplexity;

pub(super) use choice::KindArg;

use headshare_jobs::Error;

use clap::Subcommand;

use super::Exit;
use crate::process::output::Output;

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
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        match self.measure {
            Measure::Perplexity(args) => args.run(out),
            Measure::Choice(args) => args.run(out),
            Measure::Generate(args) => args.run(out),
        }
    }
}
