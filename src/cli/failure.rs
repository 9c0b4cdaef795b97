//! How the program ends: exit status and error messages.

use std::io::{self, IsTerminal, Write};

use headshare_files::FileError;
use headshare_jobs::{Classify as _, Kind};
use headshare_runtime::calibrate::CalibrateError;
use headshare_runtime::{ContextError, GenerateError};

use super::advice;
use super::exit::Exit;
use super::output::printable;
use crate::analyze::AnalyzeError;
use crate::convert::ConvertError;
use crate::eval::EvalError;
use crate::eval::choice::ChoiceError;
use crate::eval::task_file::TaskError;
#[cfg(target_os = "linux")]
use crate::exec::ExecError;
use crate::input::InputError;
use crate::matching::MatchError;
use crate::model::ModelError;
use crate::plan::PlanError;
use crate::repair::RepairError;
use crate::repair::choose::SurveyError;
use crate::report::ReportError;

/// Prints `error` to stderr, with a hint where there is one, and returns its
/// exit status.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    let failure = describe(error);
    failure.print();
    failure.exit
}

/// An error in words for the user.
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) exit: Exit,
}

/// Tells whoever waits for this process why its work came to nothing, and ends it
/// at once: nothing is cleared up any more, not even a bar.
pub(super) fn end_process(error: &headshare_jobs::Error) -> ! {
    let failure = of_job(error);
    if !headshare_jobs::worker::tell(error) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = stderr.write_all(b"\r\x1b[2K");
        }
        failure.print();
    }
    headshare_runtime::end_process(failure.exit as i32)
}

impl Failure {
    /// Prints it to stderr.
    pub(super) fn print(&self) {
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", self.message);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {hint}");
        }
    }
}

/// What there is to say about `error`.
pub(super) fn describe(error: &anyhow::Error) -> Failure {
    if let Some(found) = error.downcast_ref::<headshare_jobs::Error>() {
        // What it is about may stand in front of it.
        return Failure {
            message: message(error),
            ..of_job(found)
        };
    }
    Failure {
        message: message(error),
        hint: error.chain().find_map(hint).map(|hint| one_line(&hint)),
        exit: error.chain().find_map(exit).unwrap_or(Exit::Failed),
    }
}

/// What there is to say about a job that came to nothing.
pub(super) fn of_job(error: &headshare_jobs::Error) -> Failure {
    Failure {
        message: one_line(&error.to_string()),
        hint: error.advice.as_ref().map(|a| one_line(&advice::words(a))),
        exit: error.kind.into(),
    }
}

/// The error and its causes in one line, each cause once: those that an
/// error's own text ends with are not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    one_line(&text)
}

/// Paths may hold any character; a message stays one line.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}

fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(e) = cause.downcast_ref::<AnalyzeError>() {
        return match e {
            AnalyzeError::Convert(e) => hint(e),
            AnalyzeError::Match { error, .. } => hint(error),
            _ => e.advice().as_ref().map(advice::words),
        };
    }
    #[cfg(target_os = "linux")]
    if let Some(e) = cause.downcast_ref::<ExecError>() {
        return e.hint().map(str::to_owned);
    }
    if let Some(e) = cause.downcast_ref::<InputError>() {
        e.hint().map(str::to_owned)
    } else if let Some(e) = cause.downcast_ref::<FileError>() {
        file_hint(e).map(str::to_owned)
    } else if let Some(e) = cause.downcast_ref::<ReportError>() {
        e.advice().as_ref().map(advice::words)
    } else if let Some(e) = cause.downcast_ref::<EvalError>() {
        e.advice().as_ref().map(advice::words)
    } else if let Some(e) = cause.downcast_ref::<RepairError>() {
        e.hint().map(str::to_owned)
    } else if let Some(e) = cause.downcast_ref::<ChoiceError>() {
        e.advice().as_ref().map(advice::words)
    } else if let Some(e) = cause.downcast_ref::<TaskError>() {
        e.hint().map(str::to_owned)
    } else if let Some(MatchError::NonFinite { .. }) = cause.downcast_ref::<MatchError>() {
        Some("convert --lossless compares bytes, not weights, and works for this file".to_owned())
    } else {
        match cause.downcast_ref::<ConvertError>()? {
            ConvertError::Input(e) => e.hint().map(str::to_owned),
            ConvertError::Model { error, .. } => error.hint().map(str::to_owned),
            ConvertError::WrongSource { .. } => {
                Some("make a plan for this file: headshare-gguf plan FILE -o plan.json".to_owned())
            }
            ConvertError::Shape { .. } => {
                Some("--units share works for every architecture that repair knows".to_owned())
            }
            ConvertError::Damaged(damage) => damage.advice().as_ref().map(advice::words),
            ConvertError::File(_) | ConvertError::Plan(_) | ConvertError::Encode { .. } => None,
        }
    }
}

/// What the user can do about a file that cannot be used or written, in terms of
/// the command line.
fn file_hint(error: &FileError) -> Option<&'static str> {
    match error {
        FileError::Exists { .. } => Some("--force replaces it"),
        FileError::SameFile { .. } => Some("give another path with -o"),
        FileError::NoSpace { .. } => Some("free some space or give another folder with -o"),
        error if error.is_out_of_memory() => {
            Some("end other programs, or raise the limit of this process's memory (ulimit -v)")
        }
        _ => None,
    }
}

fn exit(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    let of_file = |e: &FileError| match e {
        FileError::SameFile { .. } | FileError::Exists { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    if let Some(e) = cause.downcast_ref::<AnalyzeError>() {
        return match e {
            AnalyzeError::Convert(e) => exit(e),
            AnalyzeError::Input(e) => exit(e),
            AnalyzeError::Match { .. } | AnalyzeError::Context(_) => None,
            AnalyzeError::CtxTooLarge { .. } => Some(Exit::Usage),
            AnalyzeError::NoMemory { .. } => Some(Exit::Failed),
            _ => Some(Exit::BadInput),
        };
    }
    // Not there, a folder, a pipe, or not what it must be: a bad input file.
    match cause.downcast_ref::<InputError>() {
        Some(InputError::File(e)) if e.is_out_of_memory() => return Some(Exit::Failed),
        Some(_) => return Some(Exit::BadInput),
        None => {}
    }
    #[cfg(target_os = "linux")]
    if let Some(e) = cause.downcast_ref::<ExecError>() {
        return match e {
            ExecError::Input(e) => exit(e),
            ExecError::NotFound { .. } => Some(Exit::NotFound),
            ExecError::Refused { .. } => Some(Exit::CannotRun),
            ExecError::CannotWork { .. } | ExecError::Prepare { .. } => Some(Exit::Failed),
        };
    }
    if let Some(e) = cause.downcast_ref::<FileError>() {
        return Some(of_file(e));
    }
    if cause.downcast_ref::<PlanError>().is_some() || cause.downcast_ref::<SurveyError>().is_some()
    {
        return Some(Exit::BadInput);
    }
    if let Some(e) = cause.downcast_ref::<ReportError>() {
        return Some(match e {
            ReportError::File(e) => of_file(e),
            e if e.is_usage() => Exit::Usage,
            _ => Exit::Failed,
        });
    }
    match cause.downcast_ref::<EvalError>() {
        Some(EvalError::WindowTooLarge { .. }) => return Some(Exit::Usage),
        Some(e) if e.is_bad_input() => return Some(Exit::BadInput),
        _ => {}
    }
    if let Some(e) = cause.downcast_ref::<RepairError>() {
        return Some(match e {
            RepairError::Memory { .. } => Exit::Usage,
            RepairError::TextTooShort { .. }
            | RepairError::NotFinite { .. }
            | RepairError::Vocab(_) => Exit::BadInput,
            RepairError::Calibrate(CalibrateError::Model(e)) if e.kind() == Kind::BadInput => {
                Exit::BadInput
            }
            RepairError::Calibrate(CalibrateError::Context(
                ContextError::Decode(_) | ContextError::NotGenerative { .. },
            )) => Exit::BadInput,
            _ => Exit::Failed,
        });
    }
    match cause.downcast_ref::<ChoiceError>() {
        Some(ChoiceError::Context(_)) | None => {}
        Some(_) => return Some(Exit::BadInput),
    }
    if cause.downcast_ref::<TaskError>().is_some() {
        return Some(Exit::BadInput);
    }
    if let Some(GenerateError::PromptTooLong { .. }) = cause.downcast_ref::<GenerateError>() {
        return Some(Exit::Usage);
    }
    Some(match cause.downcast_ref::<ConvertError>()? {
        ConvertError::Shape { .. } | ConvertError::Encode { .. } => Exit::Failed,
        ConvertError::Damaged(_) => Exit::CheckFailed,
        ConvertError::Input(e) => return exit(e),
        ConvertError::File(e) => of_file(e),
        ConvertError::Plan(_) | ConvertError::WrongSource { .. } => Exit::BadInput,
        ConvertError::Model {
            error: ModelError::Format(_),
            ..
        } => Exit::BadInput,
        ConvertError::Model { .. } => Exit::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists() -> FileError {
        let path = "out.gguf".into();
        FileError::Exists { path }
    }

    fn no_memory() -> FileError {
        FileError::io("in.gguf", "map")(io::ErrorKind::OutOfMemory.into())
    }

    #[test]
    fn what_helps_with_a_file_is_said_however_deep_the_error_lies() {
        let force = "--force replaces it";
        let memory = "ulimit -v";
        let convert = |error| ConvertError::Input(InputError::File(error));
        let analyze = |error| AnalyzeError::Input(InputError::File(error));
        let errors: [(anyhow::Error, &str, Exit); 7] = [
            (exists().into(), force, Exit::Usage),
            (ConvertError::File(exists()).into(), force, Exit::Usage),
            (ReportError::File(exists()).into(), force, Exit::Usage),
            (no_memory().into(), memory, Exit::Failed),
            (InputError::File(no_memory()).into(), memory, Exit::Failed),
            (convert(no_memory()).into(), memory, Exit::Failed),
            (analyze(no_memory()).into(), memory, Exit::Failed),
        ];
        for (error, hint, exit) in errors {
            let failure = describe(&error);
            let found = failure.hint.unwrap_or_default();
            assert!(found.contains(hint), "{error:?}: {found:?}");
            assert_eq!(failure.exit, exit, "{error:?}");
            // Each cause is said once.
            let message = &failure.message;
            assert!(
                message == "out.gguf: exists already"
                    || message == "in.gguf: cannot map: out of memory",
                "{message}"
            );
        }
    }
}
