//! `-` in the place of a file: standard input for what is read, standard output
//! for what is written.
//!
//! Standard input can be read once, and standard output holds one result; who
//! asks for more is told so before anything is done. What cannot be written as a
//! stream refuses `-` by name instead of making a file of that name.

use std::io::{self, IsTerminal};
use std::path::Path;

use headshare_jobs::Error;

use crate::input::text::is_stdio;

/// Refuses `-` for what `flag` has written, which is no stream because of `why`.
pub(super) fn refuse(path: &Path, flag: &str, why: &str) -> Result<(), Error> {
    match is_stdio(path) {
        true => Err(Error::usage(format!(
            "{flag} -: {why}, so this cannot be standard output; name a file (./- for one called -)"
        ))),
        false => Ok(()),
    }
}

/// Checks that at most one of the inputs is standard input; each comes with the
/// flag that names it.
pub(super) fn check_inputs<'p>(
    inputs: impl IntoIterator<Item = (&'static str, &'p Path)>,
) -> Result<(), Error> {
    let mut readers = inputs.into_iter().filter(|(_, path)| is_stdio(path));
    match (readers.next(), readers.next()) {
        (Some((a, _)), Some((b, _))) => Err(Error::usage(format!(
            "{a} and {b} cannot both read standard input"
        ))),
        _ => Ok(()),
    }
}

/// What goes to standard output, besides the result as text or JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written<'a> {
    /// The flag that names it.
    pub(super) flag: &'a str,
    pub(super) path: &'a Path,
    /// No text: nothing for a terminal.
    pub(super) binary: bool,
}

/// Whether one of `outputs` takes standard output; the result in words then
/// belongs to stderr.
///
/// # Errors
/// When several take it, one and the result as JSON, or a terminal would get
/// what it cannot show.
pub(super) fn taken(outputs: &[Written<'_>], json: bool) -> Result<bool, Error> {
    let mut takers = outputs.iter().filter(|written| is_stdio(written.path));
    let Some(first) = takers.next() else {
        return Ok(false);
    };
    let other = takers.next().map(|second| format!("{} -", second.flag));
    if let Some(other) = other.or_else(|| json.then(|| "--json".to_owned())) {
        let flag = first.flag;
        return Err(Error::usage(format!(
            "{flag} - and {other} cannot both write to standard output"
        )));
    }
    if first.binary && io::stdout().is_terminal() {
        return Err(Error::usage(format!(
            "{} -: standard output is a terminal; redirect it, or name a file",
            first.flag
        )));
    }
    Ok(true)
}
