//! GGUF headers, the headshare alias table, and the two views of a converted
//! file: the *physical* one (what is stored) and the *logical* one (full-size
//! tensors, as llama.cpp wants them).
//!
//! Everything here works on byte slices: no files, no ggml, no unsafe code.
//! The normative description of the format is `docs/FORMAT.md`; the names of
//! rules there are the names of tests here.
#![forbid(unsafe_code)]

pub mod alias;
mod error;
mod ggml_type;
pub mod gguf;
pub mod layout;
mod virtual_gguf;

pub use error::FormatError;
pub use ggml_type::GgmlType;
pub use gguf::{Gguf, TensorInfo};
pub use virtual_gguf::{
    Extent, ExtentSource, LogicalLayout, StitchPlan, StitchRun, VirtualGguf, bytes_mapped_again,
};
