//! Texts that jobs read: files, or standard input.

use std::path::Path;

use headshare_convert::input::text;

use crate::Error;

/// The text at `path`, UTF-8, without a byte-order mark; messages call it `what`.
///
/// # Errors
/// When it cannot be read, or is no UTF-8.
pub fn read_input(path: &Path, what: &str) -> Result<String, Error> {
    let name = text::name(path);
    let bytes = text::read(path)
        .map_err(|error| Error::bad_input(format!("cannot read {what} from {name}: {error}")))?;
    text::decode(bytes).map_err(|problem| Error::bad_input(format!("{what} in {name} {problem}")))
}

/// A file ends with a line end that is not meant, as for llama.cpp.
pub fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}
