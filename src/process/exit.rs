//! The exit status, which scripts depend on.

use std::process::ExitCode;

use headshare_jobs::Kind;

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
    /// `exec` found the program and cannot run it; as for shells.
    CannotRun = 126,
    /// `exec` did not find the program; as for shells.
    NotFound = 127,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Usage => Self::Usage,
            Kind::BadInput => Self::BadInput,
            Kind::CheckFailed => Self::CheckFailed,
            Kind::Failed => Self::Failed,
        }
    }
}
