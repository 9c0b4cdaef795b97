//! A text as tokens of the model that is trained.

use std::path::Path;
use std::sync::Arc;

use headshare_eval::eval::EvalError;
use headshare_runtime::{Model as LlamaModel, ModelParams};

use crate::Error;

/// The tokens of a text, and the one that windows of it begin with, if one does.
pub(super) struct Tokens {
    pub text: Vec<u32>,
    pub begin: Option<u32>,
}

impl Tokens {
    /// Those of `text` in the vocabulary of the model in `source`.
    pub fn of(source: &Path, text: &str) -> Result<Self, Error> {
        let params = ModelParams {
            use_extra_bufts: false,
            n_gpu_layers: 0,
            ..ModelParams::default()
        };
        let model = Arc::new(LlamaModel::load(source, &params, None)?);
        let vocab = model.vocab();
        let tokens = vocab
            .tokenize(text, false, false)
            .map_err(EvalError::from)?;
        Ok(Self {
            text: tokens.into_iter().map(i32::cast_unsigned).collect(),
            begin: vocab.leading_bos().map(i32::cast_unsigned),
        })
    }
}
