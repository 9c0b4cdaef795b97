//! Model files as input: opened, mapped, validated, and with their alias table
//! where they have one.

mod numbers;
pub mod text;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use headshare_files::FileError;
use headshare_format::alias::{AliasTable, format_digest};
use headshare_format::{FormatError, Gguf, TensorInfo};
use headshare_stitch::MappedFile;

/// A valid GGUF file, plain or converted.
#[derive(Debug)]
pub struct ModelFile {
    /// The mapped bytes.
    pub file: MappedFile,
    /// The validated header.
    pub gguf: Gguf,
    /// The validated alias table of a converted file.
    pub table: Option<AliasTable>,
    /// The digest of all bytes, once it was asked for.
    digest: OnceLock<String>,
    /// The first tensor with values that are no finite numbers, if any, once it was looked for.
    not_numbers: OnceLock<Option<String>>,
}

/// Bytes handed to the hasher at a time.
const HASHED: u64 = 8 << 20;

/// Why a file is no input.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened or mapped.
    #[error("{0}")]
    File(#[from] FileError),
    /// Its content is not what it must be.
    #[error("{path}: {error}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
    /// Weights are NaN or infinite.
    #[error("{path}: the values of {tensor} are not all finite numbers", path = .path.display())]
    NotNumbers {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

impl InputError {
    /// An error about the content of the file at `path`.
    pub fn content(path: &Path) -> impl FnOnce(FormatError) -> Self {
        let path = path.to_owned();
        move |error| Self::Content { path, error }
    }

    /// The same of the file at `path`, where that one's copy could not be opened.
    #[must_use]
    pub fn about(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::File(FileError::Io { action, source, .. }) => Self::File(FileError::Io {
                path,
                action,
                source,
            }),
            Self::Content { error, .. } => Self::Content { path, error },
            other => other,
        }
    }
}

impl ModelFile {
    /// Bytes of the tensors that the file states.
    pub fn tensor_bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(TensorInfo::byte_len).sum()
    }

    /// The digest of the whole file, as plans and alias tables state it. The file is read
    /// once for it.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            let mut at = 0;
            while at < self.len() {
                let some = at..self.len().min(at + HASHED);
                self.file.will_read(some.clone());
                hasher.update(self.bytes(some.clone()));
                at = some.end;
            }
            format_digest(&hasher.finalize())
        })
    }

    /// Opens the GGUF file at `path` and validates its header and, in a
    /// converted file, its alias table. What it holds need not be a model.
    ///
    /// # Errors
    /// [`InputError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let file = MappedFile::open(path)?;
        let content = || InputError::content(path);
        let gguf = Gguf::parse(&file).map_err(content())?;
        let table = AliasTable::read(&gguf).map_err(content())?;
        Ok(Self {
            file,
            gguf,
            table,
            digest: OnceLock::new(),
            not_numbers: OnceLock::new(),
        })
    }

    /// Opens a model to be run, plain or converted.
    ///
    /// # Errors
    /// As [`open`](Self::open), and for GGUF files that are something else.
    pub fn open_model(path: &Path) -> Result<Self, InputError> {
        let this = Self::open(path)?;
        this.require_model()?;
        Ok(this)
    }

    /// Refuses GGUF files that are something else than a model to be run.
    ///
    /// # Errors
    /// Says what they are.
    pub fn require_model(&self) -> Result<(), InputError> {
        match self.not_a_model() {
            Some(error) => Err(InputError::content(self.path())(error)),
            None => Ok(()),
        }
    }

    /// What the file is instead of a model.
    fn not_a_model(&self) -> Option<FormatError> {
        let kind = self.gguf.str_value("general.type").ok().flatten();
        let (what, hint) = match kind {
            Some("adapter") => (
                "a LoRA adapter",
                "llama.cpp's llama-export-lora merges it into its model",
            ),
            Some("mmproj") => (
                "a multimodal projector",
                "name the model that it belongs to",
            ),
            Some("imatrix") => (
                "an importance matrix",
                "name the model that it was computed of",
            ),
            _ => return self.vocabulary_only(),
        };
        let problem = format!("is {what}, not a model");
        Some(FormatError::unsupported("file", problem).hint(hint))
    }

    /// Says so where the file is the vocabulary of a model, without the model.
    fn vocabulary_only(&self) -> Option<FormatError> {
        let tensors = match &self.table {
            Some(table) => table.tensors.as_slice(),
            None => self.gguf.tensors(),
        };
        let has_tokens = self.gguf.kv("tokenizer.ggml.tokens").is_some();
        (tensors.is_empty() && has_tokens).then(|| {
            FormatError::unsupported("file", "is a vocabulary only: a tokenizer, and no weights")
                .hint(
                    "get the GGUF of the whole model (convert_hf_to_gguf.py writes one without \
                 --vocab-only); headshare-gguf inspect shows what this file holds",
                )
        })
    }

    /// Opens a file that must not be converted yet. Without loss, other GGUF
    /// files than models can be converted, too, if there is anything in them.
    ///
    /// # Errors
    /// As [`open`](Self::open), for converted files, and for vocabularies.
    pub fn open_plain(path: &Path) -> Result<Self, InputError> {
        let this = Self::open(path)?;
        if let Some(error) = this.vocabulary_only() {
            return Err(InputError::content(path)(error));
        }
        if this.table.is_some() {
            return Err(InputError::content(path)(
                FormatError::unsupported("file", "is converted already").hint(format!(
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
                FormatError::unsupported("file", "is a plain GGUF, not one written by convert")
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
