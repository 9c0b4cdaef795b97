//! `analyze`: what the heads of a model look like, in numbers and pictures.

mod attention;
mod picture;
mod predictions;
mod ratios;
mod weights;

use headshare_jobs::Error;

use clap::Subcommand;

use super::Exit;
use crate::process::output::Output;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) what: What,
}

#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// How alike the weights of all heads are, by the scores that --ratio
    /// chooses by.
    Weights(weights::Args),
    /// How alike heads attend to a text, and whether heads with similar weights
    /// attend alike.
    Attention(attention::Args),
    /// Which layers share, in several converted files side by side.
    Ratios(ratios::Args),
    /// How well `--fit` predicts what its plans cost: random plans of one size are made and
    /// measured.
    Predictions(predictions::Args),
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        match self.what {
            What::Weights(args) => args.run(out),
            What::Attention(args) => args.run(out),
            What::Ratios(args) => args.run(out),
            What::Predictions(args) => args.run(out),
        }
    }
}
