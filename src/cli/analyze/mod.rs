//! `analyze`: what the heads of a model look like, in numbers and pictures.

mod attention;
mod ratios;
mod weights;

use std::path::PathBuf;

use clap::Subcommand;
use headshare_files::FileId;

use super::Exit;
use super::output::Output;
use super::stdio::{self, Written};
use crate::analyze::Summary;
use crate::analyze::picture::{Format, Scene};
use crate::input::text::is_stdio;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How alike the weights of all heads are: the scores that sharing goes by.
    Weights(weights::Args),
    /// How alike heads attend to a text, and whether those with like weights do.
    Attention(attention::Args),
    /// Which layers of converted files share, side by side.
    Ratios(ratios::Args),
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        match self.what {
            What::Weights(args) => args.run(out),
            What::Attention(args) => args.run(out),
            What::Ratios(args) => args.run(out),
        }
    }
}

/// Where the picture goes.
#[derive(Debug, clap::Args)]
struct PictureArgs {
    /// Write a picture to this file: .svg or .png; - writes SVG to standard
    /// output.
    #[arg(short, long, value_name = "PICTURE", value_parser = parse_picture)]
    output: Option<(PathBuf, PictureFormat)>,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
}

type PictureFormat = Format;

fn parse_picture(text: &str) -> Result<(PathBuf, PictureFormat), String> {
    let path = PathBuf::from(text);
    let format = match is_stdio(&path) {
        true => Format::Svg,
        false => Format::of(&path)?,
    };
    Ok((path, format))
}

impl PictureArgs {
    /// The picture, as something that can go to standard output.
    fn written(&self) -> Option<Written<'_>> {
        let (path, _) = self.output.as_ref()?;
        Some(Written {
            flag: "-o",
            path,
            binary: false,
        })
    }

    /// Fails early on what would make writing fail.
    fn check(&self, inputs: &[FileId]) -> anyhow::Result<()> {
        match &self.output {
            Some((path, _)) => stdio::check(path, self.force, inputs),
            None => Ok(()),
        }
    }

    fn write(
        &self,
        scene: impl FnOnce() -> Scene,
        inputs: &[FileId],
        out: &Output,
    ) -> anyhow::Result<()> {
        match &self.output {
            Some((path, format)) => {
                let picture = scene().encode(*format);
                stdio::write(path, &picture, self.force, inputs, out)
            }
            None => Ok(()),
        }
    }
}

/// A table of distributions, one a line.
fn render_summaries(lines: &[(&str, Option<Summary>)]) -> String {
    let width = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:width$}  {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}\n",
        "", "n", "mean", "min", "1%", "25%", "50%", "75%", "99%", "max"
    );
    for (name, summary) in lines {
        text += &format!("{name:width$}");
        match summary {
            Some(s) => {
                text += &format!("  {:8}", s.n);
                for value in [s.mean, s.min, s.p1, s.p25, s.p50, s.p75, s.p99, s.max] {
                    text += &format!(" {value:8.4}");
                }
                text.push('\n');
            }
            None => text += "  none\n",
        }
    }
    text
}
