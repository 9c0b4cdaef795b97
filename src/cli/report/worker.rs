//! The processes that do the work of a report: this program with the arguments
//! that a user would give, so that no measure disturbs another, and every
//! figure can be had by hand.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::Parser as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::child::{self, ChildError};
use crate::cli::failure::{self, Failure};
use crate::cli::output::Output;
use crate::cli::{Cli, Exit};

/// The worker's subcommand.
const COMMAND: &str = "report-worker";

/// Runs another command of this program, and ends when the parent does.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// What a worker writes to stdout instead of a result.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    failed: String,
    hint: Option<String>,
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        child::work_for_parent(say_failed);
        let program = OsString::from("headshare-gguf");
        let cli = Cli::try_parse_from(std::iter::once(program).chain(self.arguments))?;
        cli.command.run(out).or_else(|error| {
            let failure = failure::describe(&error);
            say_failed(&failure)?;
            Ok(failure.exit)
        })
    }
}

fn say_failed(failure: &Failure) -> io::Result<()> {
    let said = Failed {
        failed: failure.message.clone(),
        hint: failure.hint.clone(),
    };
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &said)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// The JSON that the program prints for these arguments. Its bars and remarks
/// go to this process's stderr.
pub(super) fn ask(arguments: &[OsString], out: &Output) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    if out.is_quiet() {
        command.arg("-q");
    }
    let mut child = command
        .args([COMMAND, "--"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a worker")?;
    // Taken out: `wait` would close it, and the worker end before its time.
    let alive = child.stdin.take();
    let mut said = String::new();
    let read = child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut said);
    let status = child.wait().context("cannot wait for a worker")?;
    drop(alive);
    read.context("cannot read from a worker")?;
    if let Ok(Failed { failed, hint }) = serde_json::from_str(&said) {
        return Err(ChildError {
            message: failed,
            hint,
            exit: Exit::from_code(status.code()),
        }
        .into());
    }
    let words: Vec<_> = arguments
        .iter()
        .take(2)
        .map(|a| a.to_string_lossy())
        .collect();
    let what = words.join(" ");
    if !status.success() {
        return Err(child::ended_early(&format!("`{what}`"), status));
    }
    serde_json::from_str(&said).with_context(|| format!("`{what}` said {said:?}"))
}
