//! `analyze ratios`: which layers of converted files share.

use std::collections::BTreeSet;
use std::path::PathBuf;

use headshare_jobs::{AnalyzeRatios, Error};

use super::picture::PictureArgs;
use crate::analyze::ratios::{Column, Ratios};
use crate::cli::Exit;
use crate::cli::output::Output;
use crate::cli::stdio;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Files that `convert` has written.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    picture: PictureArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let taken = stdio::taken(self.picture.written().as_slice(), json)?;
        let found = self.job().run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> AnalyzeRatios {
        AnalyzeRatios {
            files: self.files,
            picture: self.picture.output,
            force: self.picture.force,
        }
    }
}

fn render(ratios: &Ratios) -> String {
    let mut text = String::new();
    let mut columns: Vec<Column> = Vec::new();
    for file in &ratios.files {
        for column in file.columns() {
            columns.push(column);
            let number = columns.len();
            let what = columns[number - 1].what;
            text += &format!("({number}) {what}, {}\n", file.title());
        }
    }
    text += "\nlayer";
    for number in 1..=columns.len() {
        text += &format!(" {:>7}", format!("({number})"));
    }
    text.push('\n');
    let shares = columns.iter().flat_map(|column| &column.shares);
    let layers: BTreeSet<u32> = shares.map(|share| share.0).collect();
    for layer in layers {
        text += &format!("{layer:5}");
        for column in &columns {
            let share = column.shares.iter().find(|share| share.0 == layer);
            text += &match share {
                Some((_, share)) => format!(" {:6.1}%", share * 100.0),
                None => format!(" {:>7}", "-"),
            };
        }
        text.push('\n');
    }
    text
}
