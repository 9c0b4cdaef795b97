//! Model files as input: opened, mapped, validated, and with their alias table
//! where they have one.

use std::path::{Path, PathBuf};

use headshare_format::alias::AliasTable;
use headshare_format::{FormatError, Gguf, TensorInfo};
use headshare_stitch::{FileError, MappedFile};

/// A valid GGUF file, plain or converted.
#[derive(Debug)]
pub struct ModelFile {
    /// The mapped bytes.
    pub file: MappedFile,
    /// The validated header.
    pub gguf: Gguf,
    /// The validated alias table of a converted file.
    pub table: Option<AliasTable>,
}

/// Why a file is no input.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened or mapped.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content is not what it must be.
    #[error("{path}: {error}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
}

impl InputError {
    /// An error about the content of the file at `path`.
    pub fn content(path: &Path) -> impl FnOnce(FormatError) -> Self {
        let path = path.to_owned();
        move |error| Self::Content { path, error }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::File(error) => error.hint(),
            Self::Content { error, .. } => error.hint.as_deref(),
        }
    }
}

impl ModelFile {
    /// Bytes of the tensors that the file states.
    pub fn tensor_bytes(&self) -> u64 {
        self.gguf.tensors.iter().map(TensorInfo::byte_len).sum()
    }

    /// Opens the GGUF file at `path` and validates its header and, in a
    /// converted file, its alias table.
    ///
    /// # Errors
    /// [`InputError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let file = MappedFile::open(path)?;
        let content = || InputError::content(path);
        let gguf = Gguf::parse(&file).map_err(content())?;
        let table = AliasTable::read(&gguf).map_err(content())?;
        Ok(Self { file, gguf, table })
    }

    /// Opens a file that must not be converted yet.
    ///
    /// # Errors
    /// As [`open`](Self::open), and for converted files.
    pub fn open_plain(path: &Path) -> Result<Self, InputError> {
        let this = Self::open(path)?;
        if this.table.is_some() {
            return Err(InputError::content(path)(
                FormatError::new("file", "is converted already").hint(format!(
                    "expand it first: headshare-gguf expand {} -o PLAIN.gguf",
                    path.display()
                )),
            ));
        }
        Ok(this)
    }

    /// Opens a file that must be converted, with its alias table.
    ///
    /// # Errors
    /// As [`open`](Self::open), and for plain files.
    pub fn open_converted(path: &Path) -> Result<(Self, AliasTable), InputError> {
        let mut this = Self::open(path)?;
        match this.table.take() {
            Some(table) => Ok((this, table)),
            None => Err(InputError::content(path)(
                FormatError::new("file", "is a plain GGUF, not one written by convert")
                    .hint("headshare-gguf inspect shows what any GGUF file holds"),
            )),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.file.len() as u64
    }

    /// Whether it has no bytes; never true, a GGUF has a header.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }

    /// The bytes `range` of the file.
    pub fn bytes(&self, range: std::ops::Range<u64>) -> &[u8] {
        &self.file[range.start as usize..range.end as usize]
    }
}
