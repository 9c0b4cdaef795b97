//! `eval`: measures models. One file a measure; what they have in common (how
//! a model is loaded and a text is read) is here.

mod choice;
mod generate;
mod perplexity;

pub(super) use choice::{KindArg, item_context};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use headshare_files::ScratchFile;
use headshare_runtime::{Model, log};
use serde::Serialize;

use super::Exit;
use super::llama_cpp::Gpu;
use super::loading::{Resolve, from_model, load};
use super::output::{Output, grouped};
use super::run::RunError;
use crate::input::text;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    measure: Measure,
}

// Comments here would take the place of what their arguments say in `--help`.
#[derive(Debug, Subcommand)]
enum Measure {
    Perplexity(perplexity::Args),
    Choice(choice::Args),
    Generate(generate::Args),
}

impl Measure {
    /// What every measure takes.
    fn common(&self) -> &Common {
        match self {
            Self::Perplexity(args) => args.common(),
            Self::Choice(args) => args.common(),
            Self::Generate(args) => args.common(),
        }
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        self.measure.common().gpu.remark(out);
        match self.measure {
            Measure::Perplexity(args) => args.run(out),
            Measure::Choice(args) => args.run(out),
            Measure::Generate(args) => args.run(out),
        }
    }
}

/// What every measure takes: how models are loaded and run.
#[derive(Debug, clap::Args)]
struct Common {
    /// Threads [default: one a physical core, fewer while other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// How the shared blocks of converted files are brought into memory.
    #[arg(long, value_enum, default_value_t = Resolve::Auto)]
    resolve: Resolve,
    #[command(flatten)]
    gpu: Gpu,
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A loaded model that predicts text.
struct Subject {
    path: PathBuf,
    /// The file's size.
    bytes: u64,
    model: Arc<Model>,
    resolve: &'static str,
    /// Keeps the expanded copy alive.
    _scratch: Option<ScratchFile>,
}

/// Which model was measured; in the JSON of every measure.
#[derive(Debug, Serialize)]
struct Measured {
    file: String,
    /// The file's size.
    bytes: u64,
    /// How shared blocks were brought into memory; "none" where there are none.
    resolve: &'static str,
}

impl From<&Subject> for Measured {
    fn from(subject: &Subject) -> Self {
        Self {
            file: subject.path.to_string_lossy().into_owned(),
            bytes: subject.bytes,
            resolve: subject.resolve,
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes", self.file, grouped(self.bytes))?;
        match self.resolve {
            "none" => Ok(()),
            other => write!(f, ", {other}"),
        }
    }
}

impl Common {
    fn load(&self, path: &Path, out: &Output) -> anyhow::Result<Subject> {
        log::set_verbose(self.verbose);
        let bar = out.bar("load", 100, false);
        let loaded = load(
            path,
            self.resolve,
            true,
            &mut |part| {
                bar.set_position((part * 100.0) as u64);
                true
            },
            out,
        );
        bar.finish_and_clear();
        let loaded = loaded?;
        let model = Arc::new(loaded.model);
        model.check_generative().map_err(from_model)?;
        Ok(Subject {
            path: path.to_owned(),
            bytes: std::fs::metadata(path).map_or(0, |m| m.len()),
            model,
            resolve: loaded.resolve,
            _scratch: loaded.scratch,
        })
    }
}

/// Reads a file, or standard input; `option` is the one that names it.
pub(super) fn read_bytes(path: &Path, option: &str) -> Result<Vec<u8>, RunError> {
    text::read(path).map_err(|e| {
        let path = text::name(path);
        RunError::bad_input(format!("cannot read {path} ({option}): {e}"))
    })
}

/// Reads a text; `option` is the one that names it.
pub(super) fn read_text(path: &Path, option: &str) -> anyhow::Result<String> {
    let mut read = text::decode(read_bytes(path, option)?).map_err(|problem| {
        RunError::bad_input(format!("{} ({option}) {problem}", text::name(path)))
    })?;
    // A file ends with a line end that is not meant, as for llama.cpp.
    if read.ends_with('\n') {
        read.pop();
    }
    Ok(read)
}
