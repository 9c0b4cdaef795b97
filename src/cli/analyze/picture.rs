//! Where the picture of an analysis goes.

use std::path::{Path, PathBuf};

use crate::analyze::picture::Format;
use crate::cli::stdio::Written;
use crate::input::text::is_stdio;

#[derive(Debug, clap::Args)]
pub(super) struct PictureArgs {
    /// Write a picture to this file (.svg or .png); - writes SVG to standard
    /// output.
    #[arg(short, long, value_name = "PICTURE", value_parser = picture)]
    pub(super) output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    pub(super) force: bool,
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !is_stdio(path) {
        Format::of(path)?;
    }
    Ok(path.to_owned())
}

impl PictureArgs {
    /// The picture, as something that can go to standard output.
    pub(super) fn written(&self) -> Option<Written<'_>> {
        Some(Written {
            flag: "-o",
            path: self.output.as_deref()?,
            binary: false,
        })
    }
}
