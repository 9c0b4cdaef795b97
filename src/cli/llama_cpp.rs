//! What commands that do what a program of llama.cpp's does take as that program
//! takes it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::process::output::Output;

/// The one model that a command is about.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct OneModel {
    /// A GGUF file, plain or converted.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same file, given as llama.cpp's programs expect it.
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
}

impl OneModel {
    pub(super) fn path(&self) -> &Path {
        let path = self.file.as_deref().or(self.model.as_deref());
        path.expect("clap requires one")
    }
}

/// How many threads compute.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Threads {
    /// Number of threads [default: one for each physical core, fewer while
    /// other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(super) threads: Option<u32>,
}

/// What llama.cpp says itself.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Log {
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    verbose: bool,
}

impl Log {
    /// Lets it be said, or not.
    pub(super) fn begin(self) {
        headshare_runtime::log::set_verbose(self.verbose);
    }
}

/// What a GPU is to do.
#[derive(Debug, clap::Args)]
pub(super) struct Gpu {
    /// Accepted but without effect, because this build runs on the CPU (-ngl).
    #[arg(long, visible_alias = "gpu-layers", value_name = "N", value_parser = layers,
          allow_negative_numbers = true)]
    n_gpu_layers: Option<Layers>,
}

/// Layers for the GPU: a number, or as many as llama.cpp sees fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layers {
    none: bool,
}

fn layers(text: &str) -> Result<Layers, String> {
    match (text, text.parse::<i32>()) {
        ("auto" | "all", _) => Ok(Layers { none: false }),
        (_, Ok(number)) => Ok(Layers { none: number == 0 }),
        _ => Err("not a number of layers, auto or all".to_owned()),
    }
}

impl Gpu {
    /// Says that there is none.
    pub(super) fn remark(&self, out: &Output) {
        if self.n_gpu_layers.is_some_and(|layers| !layers.none) {
            out.remark("note: -ngl has no effect: this build runs on the CPU");
        }
    }
}

/// Reads a number of tokens of context, or 0 for the model's own.
pub(super) fn context_size(
    range: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<u32>() {
        Ok(n_ctx) if n_ctx == 0 || range.contains(&n_ctx) => Ok(n_ctx),
        _ => Err(format!(
            "not a number from {} to {}, nor 0 for the model's own",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_or_words() {
        for (text, none) in [("0", true), ("99", false), ("-1", false), ("all", false)] {
            assert_eq!(layers(text), Ok(Layers { none }), "{text}");
        }
        assert!(layers("many").is_err());
    }

    #[test]
    fn a_context_has_a_least_size_or_is_the_models_own() {
        let size = context_size(8..=16);
        assert_eq!((size("0"), size("8")), (Ok(0), Ok(8)));
        for wrong in ["7", "17", "-1", "x", "99999999999"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
