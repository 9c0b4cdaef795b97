//! `analyze`: what the heads of a model look like, in numbers and pictures.

mod attention;
mod ratios;
mod weights;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use headshare_stitch::{AtomicFile, FileId};

use super::Exit;
use super::output::Output;
use crate::analyze::Summary;
use crate::analyze::picture::{Format, Scene};

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
    /// Write a picture to this file: .svg or .png.
    #[arg(short, long, value_name = "PICTURE", value_parser = parse_picture)]
    output: Option<(PathBuf, PictureFormat)>,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
}

type PictureFormat = Format;

fn parse_picture(text: &str) -> Result<(PathBuf, PictureFormat), String> {
    let path = PathBuf::from(text);
    let format = Format::of(&path)?;
    Ok((path, format))
}

impl PictureArgs {
    /// Fails early on what would make writing fail.
    fn check(&self, inputs: &[FileId]) -> anyhow::Result<()> {
        if let Some((path, _)) = &self.output {
            AtomicFile::check(path, self.force, inputs)?;
        }
        Ok(())
    }

    fn write(&self, scene: impl FnOnce() -> Scene, inputs: &[FileId]) -> anyhow::Result<()> {
        let Some((path, format)) = &self.output else {
            return Ok(());
        };
        write_file(path, &scene().encode(*format), self.force, inputs)
    }
}

/// Writes a whole file, or nothing.
fn write_file(path: &Path, bytes: &[u8], force: bool, inputs: &[FileId]) -> anyhow::Result<()> {
    let file = AtomicFile::create(path, bytes.len() as u64, force, inputs)?;
    file.write_at(0, bytes)?;
    file.commit()?;
    Ok(())
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
