//! The command line: one file a subcommand, arguments in, a result struct out,
//! rendered as text or as one JSON object.
//!
//! Results go to stdout, everything else to stderr. The exit status is
//! [`Exit`]; scripts depend on it.

mod failure;
mod interrupt;
mod output;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Exit;
use output::Output;

/// Share attention heads of a GGUF model: each distinct weight block is stored
/// once, and memory holds it once.
#[derive(Debug, Parser)]
#[command(name = "headshare-gguf", version, max_term_width = 100)]
struct Cli {
    /// No progress bars and no remarks on stderr.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate text with llama.cpp.
    Run(run::Args),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
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
    interrupt::install();
    let output = Output::new(cli.quiet);
    let result = match cli.command {
        Command::Run(args) => args.run(&output),
    };
    match result {
        Ok(exit) => exit,
        Err(error) => failure::report(&error),
    }
    .into()
}
