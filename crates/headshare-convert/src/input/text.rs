//! What commands read besides models: texts, tasks, plans, grammars. Each is a
//! file, or standard input.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::ops::Deref;
use std::path::Path;

use headshare_files::{FileError, FileId};
use headshare_stitch::MappedFile;

use super::InputError;

/// The path that stands for standard input where a file is read, and for
/// standard output where one is written.
pub const STDIO: &str = "-";

/// Whether `path` stands for standard input or output.
pub fn is_stdio(path: &Path) -> bool {
    path.as_os_str() == STDIO
}

/// What to call the input `path` in messages.
pub fn name(path: &Path) -> String {
    match is_stdio(path) {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// Something to read, from any place.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Opens the file at `path`; standard input is read to its end for it.
///
/// # Errors
/// The system's.
pub fn open(path: &Path) -> io::Result<Box<dyn ReadSeek>> {
    Ok(match is_stdio(path) {
        true => Box::new(Cursor::new(read(path)?)),
        false => Box::new(File::open(path)?),
    })
}

/// All bytes of the file at `path`, or of standard input.
///
/// # Errors
/// The system's.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !is_stdio(path) {
        return std::fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// All bytes of a regular file, which is mapped and never a pipe that blocks or
/// a device that does not end, or of standard input.
#[derive(Debug)]
pub enum Contents {
    /// A file.
    Mapped(MappedFile),
    /// What standard input gave.
    Stdin(Vec<u8>),
}

impl Contents {
    /// Maps the file at `path`, or reads standard input.
    ///
    /// # Errors
    /// When there is no such regular file, or standard input cannot be read.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        if !is_stdio(path) {
            return Ok(Self::Mapped(MappedFile::open(path)?));
        }
        let unreadable = |source| FileError::Io {
            path: name(path).into(),
            action: "read",
            source,
        };
        Ok(Self::Stdin(read(path).map_err(unreadable)?))
    }

    /// Which file it is, so that nothing overwrites it.
    pub fn id(&self) -> Option<FileId> {
        match self {
            Self::Mapped(file) => Some(file.id()),
            Self::Stdin(_) => None,
        }
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Stdin(bytes) => bytes,
        }
    }
}

/// The text without the byte-order mark that some editors put in front of it.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The text of a file's bytes, without a byte-order mark.
///
/// # Errors
/// What is wrong with the first byte that belongs to no character.
pub fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes[..] {
        return Err("is UTF-16, not UTF-8".to_owned());
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8: byte {at} belongs to no character")
    })?;
    let marked = text.len() - without_mark(&text).len();
    text.drain(..marked);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(
            decode(b"\xef\xbb\xbfa\xef\xbb\xbf".to_vec()).unwrap(),
            "a\u{feff}"
        );
        assert_eq!(decode(b"".to_vec()).unwrap(), "");
        assert_eq!(without_mark("\u{feff}"), "");
        assert_eq!(without_mark("a"), "a");
    }

    #[test]
    fn what_is_no_text_is_said() {
        let problem = |bytes: &[u8]| decode(bytes.to_vec()).unwrap_err();
        assert_eq!(
            problem(b"na\xefve"),
            "is not UTF-8: byte 2 belongs to no character"
        );
        assert_eq!(problem(b"\xff\xfea\0"), "is UTF-16, not UTF-8");
    }
}
