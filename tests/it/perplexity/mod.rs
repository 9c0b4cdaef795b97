//! `eval perplexity`: against a naive implementation, against llama.cpp's own
//! program where there is one, on converted files, and on bad input.

mod bad_input;
mod converted;
mod naive;
mod output;
mod stock;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{self, Ran};

/// `eval perplexity` with these arguments, on one thread: tests run side by
/// side.
fn eval(args: &[&str]) -> Ran {
    let args = [&["-q", "eval", "perplexity", "-t", "1"], args].concat();
    let mut command = support::program();
    command.timeout(Duration::from_secs(1200)).args(&args);
    Ran::of(&mut command, args.join(" "))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// SmolLM2 with a share of its KV groups sharing, converted in `folder`.
fn converted_smollm2(folder: &support::Folder, ratio: &str) -> PathBuf {
    let file = folder.file(&format!("converted-{ratio}.gguf"));
    run!(
        "convert",
        support::smollm2(),
        "-o",
        file,
        "--ratio",
        ratio,
        "-q"
    )
    .ok();
    file
}
