//! GGUF headers, the headshare alias table, and the two views of a converted
//! file: the *physical* one (what is stored) and the *logical* one (full-size
//! tensors, as llama.cpp wants them).
//!
//! Everything here works on byte slices: no files, no ggml, no unsafe code.
//! A program that is to tell errors apart matches on [`FormatError::kind`]:
//!
//! ```
//! use headshare_format::{ErrorKind, Gguf};
//!
//! let error = Gguf::parse(b"GGUF\x03\0\0\0").unwrap_err();
//! assert_eq!(error.kind, ErrorKind::Truncated);
//! assert_eq!(error.field, "tensor count");
//! let error = Gguf::parse(b"\x1f\x8b...").unwrap_err();
//! assert_eq!(error.kind, ErrorKind::Unsupported);
//! assert_eq!(error.to_string(), "file: is compressed (gzip)");
//! ```
//!
//! The normative description of the format is `docs/FORMAT.md`; the names of
//! rules there are the names of tests here.
#![forbid(unsafe_code)]

pub mod alias;
mod error;
mod ggml_type;
pub mod gguf;
pub mod layout;
mod page;
mod virtual_gguf;

pub use error::{Advice, ErrorKind, FormatError, Rule};
pub use ggml_type::GgmlType;
pub use gguf::{Gguf, TensorInfo};
pub use page::PageSize;
pub use virtual_gguf::{
    Extent, ExtentSource, LogicalLayout, StitchPlan, StitchRun, VirtualGguf, bytes_mapped_again,
};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
