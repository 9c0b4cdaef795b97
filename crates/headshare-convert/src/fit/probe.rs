//! What an error in a tensor does to the model's predictions, measured on the running
//! model.

use headshare_format::GgmlType;

use super::error::FitError;
use super::moves::Movable;
use super::running::Running;
use super::trial::Losses;
use crate::convert::variant::{Types, Variant, can_untie};
use crate::convert::{ConvertError, write_to_scratch};
use crate::engine::{Options, Windows};
use crate::input::{InputError, ModelFile};
use crate::quantize::fast;
use crate::stats::Reference;

/// Tokens whose logits are compared, at most, and the bytes of those.
const MAX_TOKENS: u64 = 512;
const MAX_LOGITS_BYTES: u64 = 256 << 20;

/// Relative errors below this one do too little to be measured: they drown in the rounding
/// of the computation itself.
const COARSE: f64 = 2e-4;
/// The relative error that a probe should make: small enough that the divergence grows with
/// its square still, and large enough to be measured well.
const AIM: f64 = 1e-2;

/// What was measured of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The type that it was rounded to.
    pub to: GgmlType,
    /// Mean divergence of the predictions from the original's, in nats.
    pub divergence: f64,
    /// The same of the table alone and of the output head alone, where the tensor is both at
    /// once, and llama.cpp reads a head of its own.
    pub apart: Option<[f64; 2]>,
}

/// Rounds each of these tensors, whose moves lose `losses`, alone to a type that changes
/// something but not much, and measures what that does. What ggml multiplies slowly is F16
/// meanwhile, before and after: numbers so close that it makes no difference here.
///
/// # Errors
/// When a model cannot be run, or gives no numbers.
pub fn measure(
    source: &ModelFile,
    (movable, losses): (&[Movable], &[Losses]),
    (windows, options): (&Windows, &Options),
    progress: &dyn Fn(f64),
) -> Result<Vec<Probe>, FitError> {
    let tokens = picked(windows);
    let rows = tokens.len();
    let fast = fast(source)?;
    let scratch = write_to_scratch(&fast)?;
    drop(fast);
    let source = &ModelFile::open_plain(scratch.path()).map_err(ConvertError::from)?;
    let logits = |variant: &Variant<'_>| Running::load(variant)?.logits(&tokens, windows, options);
    let original = logits(&Variant::unchanged(source))?;
    let reference = Reference::new(&original, rows);
    drop(original);
    let mut probes = Vec::with_capacity(movable.len());
    for (i, (tensor, losses)) in movable.iter().zip(losses).enumerate() {
        let distance = |loss: f64| (loss / AIM).ln().abs();
        let moves = || {
            tensor
                .moves
                .iter()
                .zip(losses.outputs.iter().map(|loss| loss.rounded))
        };
        let coarse = moves().filter(|(_, loss)| *loss >= COARSE);
        let closest = coarse.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
        let most = || moves().max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((closest, _)) = closest.or_else(most).filter(|(_, loss)| *loss > 0.0) else {
            // Nothing that rounding changes: any type does.
            probes.push(Probe {
                to: tensor.has,
                divergence: 0.0,
                apart: None,
            });
            continue;
        };
        let index = source.gguf.tensor_index(&tensor.name);
        let probe = |to: GgmlType, untied_head: Option<GgmlType>| {
            let types = Types {
                tensors: index.into_iter().map(|i| (i, to)).collect(),
                untied_head,
            };
            let variant = Variant::with_types(source, &types)
                .map_err(InputError::content(source.path()))
                .map_err(ConvertError::from)?;
            Ok::<f64, FitError>(reference.divergence(&logits(&variant)?))
        };
        let divergence = probe(closest.to, None)?;
        let can_untie = !losses.rows.is_empty() && can_untie(&source.gguf).is_ok();
        let has = index.map(|i| source.gguf.tensors()[i].ggml_type);
        let apart = match has.filter(|_| can_untie) {
            Some(has) => Some([probe(closest.to, Some(has))?, probe(has, Some(closest.to))?]),
            None => None,
        };
        let all = apart.into_iter().flatten().chain([divergence]);
        if !all.into_iter().all(f64::is_finite) {
            return Err(FitError::NotFinite {
                tensor: tensor.name.clone(),
                ggml_type: closest.to.to_string(),
            });
        }
        probes.push(Probe {
            to: closest.to,
            divergence,
            apart,
        });
        progress((i + 1) as f64 / movable.len() as f64);
    }
    Ok(probes)
}

/// The tokens of some windows, evenly spread.
fn picked(windows: &Windows) -> Vec<i32> {
    let row = 4 * u64::from(windows.vocabulary.max(1));
    let most = MAX_TOKENS.min(MAX_LOGITS_BYTES / row).max(1);
    let window = windows.window as usize;
    let count = (most as usize / window).clamp(1, windows.count as usize);
    let length = window.min(most as usize);
    (0..count)
        .flat_map(|i| {
            let first = i * windows.count as usize / count * window;
            windows.tokens[first..first + length].iter().copied()
        })
        .collect()
}
