//! From a GGUF model to a smaller one.
//!
//! Data flows one way: [`input`] opens files, [`model`] says where the heads
//! are, [`matching`] which of them are alike, a [`plan`] what is to change,
//! [`baseline`] what others would drop,
//! [`repair`] chooses and fits with a text and [`quantize`] gives tensors other types
//! (both led by the [`engine`] through the model's matrices, and by way of [`encode`]),
//! [`fit`] decides which types are worth their bytes,
//! and [`convert`] makes a variant of the model, lays it out and writes it. [`stats`] is for all that measure.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod convert;
pub mod encode;
pub mod engine;
pub mod fit;
pub mod input;
pub mod matching;
pub mod model;
pub mod plan;
pub mod quantize;
pub mod random;
pub mod repair;
pub mod stats;

/// The name and version that converted files carry.
pub const TOOL: &str = concat!("headshare-gguf ", env!("CARGO_PKG_VERSION"));
