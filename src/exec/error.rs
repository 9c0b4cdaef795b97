//! Why a program is not run.

use std::path::PathBuf;
use std::{fmt, io};

use crate::input::InputError;

/// Why a program is not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// One of the files is no input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There is no such program.
    #[error("{program}: program not found", program = .program.display())]
    NotFound {
        /// As it was given.
        program: PathBuf,
    },
    /// The program would not see the files.
    #[error("{program} cannot read converted files: {obstacle}", program = .program.display())]
    CannotWork {
        /// The program's path.
        program: PathBuf,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// The system refuses to run the program.
    #[error("{program}: cannot run it: {source}", program = .program.display())]
    Refused {
        /// The program's path.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system refuses what the program needs.
    #[error("{program}: cannot prepare it: {source}", program = .program.display())]
    Prepare {
        /// The program's path.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What keeps a library out of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// It has no dynamic loader.
    Static,
    /// It runs with other privileges than its caller.
    Privileged,
    /// It uses musl instead of glibc.
    Musl,
    /// It is made for another machine or word size.
    OtherMachine,
    /// This build has no preload library.
    NoLibrary,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "it is statically linked, so no library can be loaded into it",
            Self::Privileged => {
                "it is setuid or setgid or has capabilities, so the system loads no library into it"
            }
            Self::Musl => "it uses musl, and the library to load into it needs glibc",
            Self::OtherMachine => "it is made for another kind of machine than this program",
            Self::NoLibrary => "exec works on 64-bit Linux with glibc only",
        })
    }
}
