//! The command line: one file a subcommand, which makes a job of arguments and
//! prints its outcome, as text or as one JSON object.
//!
//! Results go to stdout, everything else to stderr. The exit status is
//! [`Exit`]; scripts depend on it.

mod analyze;
mod bench;
mod calibration;
#[cfg(test)]
mod command_line_tests;
mod completions;
mod convert;
mod eval;
#[cfg(target_os = "linux")]
mod exec;
mod expand;
mod fit;
mod inspect;
mod llama_cpp;
mod plan;
mod quantize;
mod repair;
mod report;
mod run;
mod stdio;
#[cfg(feature = "train")]
mod train;
mod values;
mod verify;

use std::process::ExitCode;
use std::sync::LazyLock;

use headshare_jobs::Error;

use clap::{CommandFactory, Parser, Subcommand};

pub use crate::process::Exit;
use crate::process::output::Output;
use crate::process::{abort, failure, interrupt, shortage};
use crate::spelling;

/// Make GGUF models smaller: each distinct block of weights is stored once, and
/// is in memory once; and weights are quantized so that little is lost.
#[derive(Debug, Parser)]
#[command(name = "headshare-gguf", version, long_version = long_version(), max_term_width = 100)]
struct Cli {
    /// No progress bars and no remarks on stderr.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which heads would share weights, and what that saves; or, with --fit, what makes
    /// the best model for so many bytes.
    Plan(plan::Args),
    /// Write a smaller file, in which heads share weights, equal weights are stored
    /// once, or weights are quantized.
    Convert(convert::Args),
    /// Write the plain GGUF that a converted file stands for.
    Expand(expand::Args),
    /// Check a converted file against its digests and its source.
    Verify(verify::Args),
    /// Show what a GGUF file holds, and what it shares.
    Inspect(inspect::Args),
    /// Generate text with llama.cpp, from a plain or a converted file.
    Run(run::Args),
    /// Measure speed, load time and memory of several files, side by side.
    Bench(bench::Args),
    /// Measure a model's quality: perplexity, multiple-choice questions,
    /// generated text.
    Eval(eval::Args),
    Report(report::Args),
    /// Train a model to share its heads, or to do with shared ones.
    #[cfg(feature = "train")]
    Train(train::Args),
    #[command(hide = true)]
    Worker,
    /// Look at a model's heads, in numbers and pictures.
    Analyze(analyze::Args),
    /// Run another llama.cpp program so that it can read converted files.
    #[cfg(target_os = "linux")]
    Exec(exec::Args),
    /// Print completions of this program's arguments for a shell.
    Completions(completions::Args),
}

impl Command {
    /// Whether the work is shared among threads of this program's own.
    fn shares_its_work(&self) -> bool {
        #[cfg(feature = "train")]
        if let Self::Train(_) = self {
            return true;
        }
        matches!(
            self,
            Self::Plan(_)
                | Self::Convert(_)
                | Self::Expand(_)
                | Self::Verify(_)
                | Self::Eval(_)
                | Self::Report(_)
                | Self::Analyze(_)
        )
    }

    fn run(self, out: &Output) -> Result<Exit, Error> {
        if self.shares_its_work() {
            headshare_jobs::start_pool()?;
        }
        match self {
            Self::Plan(args) => args.run(out),
            Self::Convert(args) => args.run(out),
            Self::Expand(args) => args.run(out),
            Self::Verify(args) => args.run(out),
            Self::Inspect(args) => args.run(out),
            Self::Run(args) => args.run(out),
            Self::Bench(args) => args.run(out),
            Self::Eval(args) => args.run(out),
            Self::Report(args) => args.run(out),
            #[cfg(feature = "train")]
            Self::Train(args) => args.run(out),
            Self::Worker => {
                headshare_jobs::worker::serve(out, end_worker)?;
                Ok(Exit::Done)
            }
            Self::Analyze(args) => args.run(out),
            #[cfg(target_os = "linux")]
            Self::Exec(args) => args.run(out),
            Self::Completions(args) => args.run(out, Cli::command()),
        }
    }
}

/// Ends a worker whose parent is gone.
fn end_worker() -> ! {
    headshare_runtime::end_process(Exit::Failed as i32)
}

fn long_version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{}\n{}",
            env!("CARGO_PKG_VERSION"),
            headshare_runtime::backend::llama_cpp_revision()
        )
    });
    &VERSION
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    // Reading arguments takes memory, too.
    shortage::install();
    abort::install();
    let args = spelling::spell_out(Cli::command(), std::env::args_os());
    let cli = match args.and_then(Cli::try_parse_from) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results; a reader that is gone is no error.
            let _ = error.print();
            return match error.exit_code() {
                0 => Exit::Done,
                _ => Exit::Usage,
            }
            .into();
        }
    };
    let output = Output::new(cli.quiet);
    let becomes = matches!(cli.command, Command::Exec(_));
    match interrupt::install(becomes).and_then(|()| cli.command.run(&output)) {
        Ok(exit) => exit,
        Err(error) => failure::report(&error),
    }
    .into()
}
