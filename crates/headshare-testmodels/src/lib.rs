//! GGUF models for tests, benches and the demo, written without ggml.
//!
//! Two kinds: synthetic models of a stated architecture and shape
//! ([`ModelSpec`]), with random weights that are the same for the same seed,
//! and self-merges of a real model ([`self_merge`]), whose layers are those of
//! the source in another order, some of them twice.
//!
//! [`fetched`] are real models, for tests of what random weights say nothing about.
//!
//! Both stream to the output, so that a model of many gigabytes costs little
//! memory. Random weights say nothing about quality: they are for layout,
//! speed and memory.

pub mod fetched;
mod fill;
mod merge;
mod metadata;
mod presets;
mod spec;
mod tensors;
mod write;

pub use merge::{parse_layer_list, self_merge};
pub use spec::{FileEnd, KeyOrder, ModelSpec, PerLayer};

use headshare_format::GgmlType;

/// The ggml type called `name`, in any case.
pub fn type_named(name: &str) -> Option<GgmlType> {
    GgmlType::named(name)
}
