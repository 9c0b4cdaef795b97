//! The same function with other weights: what a quantizer is to be tested on where
//! every model at hand was quantized before.
//!
//! Weights that were quantized lie on a grid, and look easier to quantize again than
//! weights do. Here they are moved off it without changing what the model computes:
//!
//! - Where sub-layers read the residual stream through an RMSNorm and write to it
//!   directly (llama and its kin), the stream is turned by a small random rotation R
//!   ([`rotation`]). With norm gain g, a matrix W that reads becomes
//!   W diag(g) R diag(1/g') with g'^2 = R^T (g^2), one that writes R^T W, the
//!   embedding E R; the output head becomes a tensor of its own. Channels that carry
//!   massive activations ([`massive`]) stay as they are: turned into the others they
//!   would make the model harder to quantize than any real one.
//! - Where sub-layers end in a norm (Gemma), a rotation is not possible. Then random
//!   positive scales move between a norm's gain and the columns that read it, and
//!   between rows of `ffn_up` and columns of `ffn_down`; each value head is turned by
//!   a small rotation against `attn_output`.
//!
//! The result is stored as F32, or as F16, which rounds.
#![forbid(unsafe_code)]

mod massive;
mod matrix;
mod rotation;
mod transform;
mod write;

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use headshare_format::{GgmlType, Gguf};
use headshare_stitch::MappedFile;

pub use transform::How;

/// Writes to `out` the function of the model at `source`, its matrices as type `to`.
/// Returns what was done, in words.
///
/// # Errors
/// When `source` is no model of a supported kind, or writing fails.
pub fn regrid(source: &Path, out: &Path, to: GgmlType, seed: u64) -> Result<How> {
    let map = MappedFile::open(source)?;
    let gguf = Gguf::parse(&map).map_err(|e| anyhow!("{}: {e}", source.display()))?;
    ensure!(
        ["f32", "f16"].contains(&to.name()),
        "a model on no grid is stored as f32 or f16, not {to}"
    );
    let (tensors, how) = transform::transform(&gguf, &map, source, seed)
        .with_context(|| source.display().to_string())?;
    write::write(&gguf, (&map, map.id()), tensors, to, out)
        .with_context(|| format!("writing {}", out.display()))?;
    Ok(how)
}
