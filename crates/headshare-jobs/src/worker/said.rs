//! What a worker says at its end.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Advice, Error, Kind};

/// What a worker says at its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said<T> {
    Done(T),
    Failed(Failed),
}

/// An [`Error`] on its way. It can be made where memory is short, or a panic is being told:
/// an error would look for the way that led to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// Whose fault it is.
    pub kind: Kind,
    /// What can be done about it.
    pub advice: Option<Advice>,
    /// What happened, in one line.
    pub message: String,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind,
            advice: error.advice.clone(),
            message: error.to_string(),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self {
            kind: failed.kind,
            advice: failed.advice,
            source: anyhow::Error::msg(failed.message),
        }
    }
}

static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// From now on somebody waits for what this process says.
pub(super) fn begin() {
    IS_WORKER.store(true, Ordering::Relaxed);
}

/// Tells who waits for this process why its job came to nothing; false where this
/// process is no worker, or nobody listens.
pub fn tell(failed: &Failed) -> bool {
    let said = || Said::<()>::Failed(failed.clone());
    IS_WORKER.load(Ordering::Relaxed) && say(&said()).is_ok()
}

pub(super) fn say<T: Serialize>(said: &Said<T>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, said)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_it_was() {
        let error = Error::bad_input("no").advise(Advice::SmallerWindow(Some(8)));
        let json = serde_json::to_string(&Said::<()>::Failed((&error).into())).unwrap();
        let Said::Failed(failed) = serde_json::from_str::<Said<()>>(&json).unwrap() else {
            panic!("{json}")
        };
        let again = Error::from(failed);
        assert_eq!(again.kind, error.kind);
        assert_eq!(again.advice, error.advice);
        assert_eq!(again.to_string(), error.to_string());
    }
}
