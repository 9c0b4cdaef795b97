//! How the program ends: exit status and error messages.

use std::io::{self, Write};
use std::process::ExitCode;

use headshare_stitch::FileError;

use crate::convert::ConvertError;
#[cfg(target_os = "linux")]
use crate::exec::ExecError;
use crate::input::InputError;
use crate::model::ModelError;
use crate::plan::PlanError;

/// The exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, for a reason that is none of the others.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// A bad input file.
    BadInput = 3,
    /// A check did not hold.
    CheckFailed = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Prints `error` to stderr, with a hint where there is one, and returns its
/// exit status. A closed stdout is success: the reader had enough.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        return Exit::Done;
    }
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {error:#}");
    if let Some(hint) = error.chain().find_map(hint) {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    error.chain().find_map(exit).unwrap_or(Exit::Failed)
}

fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    #[cfg(target_os = "linux")]
    if let Some(e) = cause.downcast_ref::<ExecError>() {
        return e.hint().map(str::to_owned);
    }
    if let Some(e) = cause.downcast_ref::<InputError>() {
        e.hint().map(str::to_owned)
    } else if let Some(e) = cause.downcast_ref::<FileError>() {
        e.hint().map(str::to_owned)
    } else {
        match cause.downcast_ref::<ConvertError>()? {
            ConvertError::Input(e) => e.hint().map(str::to_owned),
            ConvertError::File(e) => e.hint().map(str::to_owned),
            ConvertError::Model { error, .. } => error.hint().map(str::to_owned),
            ConvertError::WrongSource { .. } => {
                Some("make a plan for this file: headshare-gguf plan FILE -o plan.json".to_owned())
            }
            ConvertError::Plan(_) => None,
        }
    }
}

fn exit(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    let of_file = |e: &FileError| match e {
        FileError::SameFile { .. } | FileError::Exists { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    let of_input = |e: &InputError| match e {
        InputError::Content { .. } => Exit::BadInput,
        InputError::File(e) => of_file(e),
    };
    if let Some(e) = cause.downcast_ref::<InputError>() {
        return Some(of_input(e));
    }
    #[cfg(target_os = "linux")]
    if let Some(ExecError::Input(e)) = cause.downcast_ref::<ExecError>() {
        return Some(of_input(e));
    }
    if let Some(e) = cause.downcast_ref::<FileError>() {
        return Some(of_file(e));
    }
    if cause.downcast_ref::<PlanError>().is_some() {
        return Some(Exit::BadInput);
    }
    Some(match cause.downcast_ref::<ConvertError>()? {
        ConvertError::Input(e) => of_input(e),
        ConvertError::File(e) => of_file(e),
        ConvertError::Plan(_) | ConvertError::WrongSource { .. } => Exit::BadInput,
        ConvertError::Model {
            error: ModelError::Format(_),
            ..
        } => Exit::BadInput,
        ConvertError::Model { .. } => Exit::Failed,
    })
}

/// Removes temporary output files when the process is told to end. Only file
/// systems without unnamed files have any.
pub(super) fn remove_temporary_files_on_signals() {
    // Without a handler the signals still end the process.
    let _ = ctrlc::set_handler(|| {
        headshare_stitch::remove_temporary_files();
        std::process::exit(130);
    });
}
