//! A model that is run to see what it predicts.

use std::sync::Arc;

use headshare_runtime::calibrate::CalibrateError;
use headshare_runtime::{Batch, Context, ContextParams, Model, ModelParams};

use super::error::FitError;
use crate::convert::ConvertError;
use crate::convert::variant::Variant;
use crate::engine::{EngineError, Options, Windows};
use crate::input::ModelFile;
use crate::stats::Reference;

/// A loaded model.
pub(super) struct Running(Arc<Model>);

impl Running {
    pub fn load(variant: &Variant<'_>) -> Result<Self, FitError> {
        let params = ModelParams {
            use_extra_bufts: false,
            n_gpu_layers: 0,
            ..ModelParams::default()
        };
        let path = variant.source.path();
        let model = Model::load_virtual(variant, variant.gguf(), path, &params);
        Ok(Self(Arc::new(model.map_err(cannot)?)))
    }

    /// The logits of all `tokens`, each window by itself.
    pub fn logits(
        &self,
        tokens: &[i32],
        windows: &Windows,
        options: &Options,
    ) -> Result<Vec<f32>, FitError> {
        let length = tokens.len().min(windows.window as usize);
        let n = length as u32;
        let params = ContextParams {
            n_ctx: Some(n.max(256)),
            n_batch: n,
            n_ubatch: n,
            n_seq_max: 1,
            n_threads: options.n_threads,
            ..ContextParams::default()
        };
        let mut out = Vec::with_capacity(tokens.len() * windows.vocabulary as usize);
        for window in tokens.chunks(length) {
            let mut context = Context::new(&self.0, &params).map_err(cannot)?;
            let mut batch = Batch::new();
            for (position, &token) in window.iter().enumerate() {
                batch.add(token, position as u32, &[0], true);
            }
            context.decode_batch(&batch).map_err(cannot)?;
            for i in 0..window.len() {
                // Every token is an output.
                out.extend_from_slice(context.logits_at(i).unwrap_or_default());
            }
        }
        Ok(out)
    }
}

/// Windows that a model that was made is measured on, at most.
const MEASURED: usize = 8;

/// Bytes of the logits of a window that are compared, at most, and the part of the memory that
/// there is: these, their probabilities, the other model's and what both contexts keep.
const LOGITS_BYTES: u64 = 512 << 20;
const LOGITS_PART: u64 = 12;

/// The windows of `windows` that a model is measured on which was made with some of them: every
/// other one, but for those among the tokens that it was `made_with`.
fn kept<'a>(windows: &'a Windows, made_with: &'a [i32]) -> impl Iterator<Item = &'a [i32]> {
    let length = windows.window as usize;
    let all = windows.tokens.chunks(length);
    let is_other = move |window: &&[i32]| made_with.chunks(length).all(|made| made != *window);
    let kept = all.skip(1).step_by(2).filter(is_other);
    let every = (windows.count as usize / 2).div_ceil(MEASURED).max(1);
    kept.step_by(every)
}

/// The mean divergence of the predictions of `changed` from those of `source`, in nats, on
/// windows other than those that `changed` was made with, whose tokens are given. The source's
/// weights are F16 where ggml multiplies them slowly. Of long windows, and large vocabularies,
/// the beginnings are compared that memory has room for. `None` where `changed` predicts no
/// numbers.
///
/// # Errors
/// When a model cannot be run.
pub fn divergence(
    source: &ModelFile,
    changed: &Variant<'_>,
    (windows, made_with): (&Windows, &[i32]),
    options: &Options,
) -> Result<Option<f64>, FitError> {
    let fast = Variant::fast(source).map_err(ConvertError::from)?;
    let [source, changed] = [Running::load(&fast)?, Running::load(changed)?];
    let (mut sum, mut tokens) = (0.0, 0);
    let row = 4 * u64::from(windows.vocabulary.max(1));
    let most = (LOGITS_BYTES.min(options.memory / LOGITS_PART) / row).max(1);
    for window in kept(windows, made_with) {
        let window = &window[..window.len().min(most as usize)];
        let original = source.logits(window, windows, options)?;
        let reference = Reference::new(original, window.len());
        let logits = changed.logits(window, windows, options)?;
        sum += reference.divergence(&logits) * window.len() as f64;
        tokens += window.len() as u32;
    }
    let mean = sum / f64::from(tokens.max(1));
    Ok(mean.is_finite().then_some(mean))
}

fn cannot(error: impl Into<CalibrateError>) -> FitError {
    EngineError::from(error.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many windows of 2 tokens, each with its number.
    fn windows(count: u32) -> Windows {
        Windows {
            tokens: (0..count as i32).flat_map(|i| [i, i]).collect(),
            count,
            window: 2,
            vocabulary: 1000,
            widest: 0,
            digest: String::new(),
        }
    }

    #[test]
    fn no_model_is_measured_on_windows_that_it_was_made_with() {
        for count in 4..80 {
            let all = windows(count);
            for some in 2..=8.min(count / 2) {
                let made_with: Vec<i32> = (0..some)
                    .map(|i| (i * count / some) as i32)
                    .flat_map(|i| [i, i])
                    .collect();
                let measured: Vec<i32> = kept(&all, &made_with).map(|w| w[0]).collect();
                assert!(!measured.is_empty() && measured.len() <= MEASURED);
                assert!(measured.iter().all(|i| !made_with.contains(i)), "{count}");
            }
        }
        assert_eq!(kept(&windows(128), &[]).count(), MEASURED);
    }
}
