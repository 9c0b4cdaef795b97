//! The keys of one file's architecture, and those that nothing here computes with.

use std::path::Path;

use headshare_convert::model::{About, AttentionMap};
use headshare_format::gguf::Value;
use headshare_format::{FormatError, Gguf};

use crate::error::TrainError;

/// Reads the keys of one file's architecture.
pub(super) struct Keys<'a> {
    pub gguf: &'a Gguf,
    pub path: &'a Path,
    pub name: &'static str,
}

impl Keys<'_> {
    pub fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    pub fn format(&self, error: FormatError) -> TrainError {
        TrainError::Format {
            path: self.path.to_owned(),
            error,
        }
    }

    pub fn key_error(&self, suffix: &str, problem: String) -> TrainError {
        self.format(FormatError::key(&self.key(suffix), problem))
    }

    pub fn unsupported(&self, place: About, reason: String) -> TrainError {
        TrainError::Unsupported {
            path: self.path.to_owned(),
            architecture: self.name.to_owned(),
            place,
            reason,
        }
    }

    pub fn number(&self, suffix: &str) -> Result<Option<usize>, TrainError> {
        let value = self.gguf.u64_value(&self.key(suffix));
        let value = value.map_err(|error| self.format(error))?;
        let fits = |n| usize::try_from(n).ok().filter(|&n| n <= u32::MAX as usize);
        match value {
            Some(n) => (fits(n).map(Some))
                .ok_or_else(|| self.key_error(suffix, format!("{n} is too large"))),
            None => Ok(None),
        }
    }

    pub fn needed(&self, suffix: &str) -> Result<usize, TrainError> {
        let number = self.number(suffix)?;
        number.ok_or_else(|| self.key_error(suffix, "is missing".to_owned()))
    }

    pub fn float(&self, suffix: &str) -> Result<Option<f32>, TrainError> {
        match self.gguf.value(&self.key(suffix)) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(v)),
            Some(other) => {
                let found = other.describe();
                Err(self.key_error(suffix, format!("expected f32, found {found}")))
            }
        }
    }

    pub fn refuse_what_is_not_built(&self, map: &AttentionMap) -> Result<(), TrainError> {
        let about = |suffix: &str| About::Key(self.key(suffix));
        if map.draft_layers > 0 {
            let reason = "layers that only draft tokens are not built".to_owned();
            return Err(self.unsupported(about("nextn_predict_layers"), reason));
        }
        if self.number("expert_count")?.is_some_and(|n| n > 1) {
            let reason = "experts are not built".to_owned();
            return Err(self.unsupported(about("expert_count"), reason));
        }
        if let Some(Value::Bool(false)) = self.gguf.value(&self.key("attention.causal")) {
            let reason = "attention that sees later tokens is not built".to_owned();
            return Err(self.unsupported(about("attention.causal"), reason));
        }
        let kind = self.gguf.str_value(&self.key("rope.scaling.type"));
        let kind = kind.map_err(|error| self.format(error))?;
        if let Some(kind) = kind.filter(|kind| !matches!(*kind, "linear" | "none")) {
            let reason = format!("rope scaling {kind:?} is not built; \"linear\" and \"none\" are");
            return Err(self.unsupported(about("rope.scaling.type"), reason));
        }
        for suffix in [
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_attn_factor",
            "rope.scaling.yarn_ext_factor",
        ] {
            let neutral = if suffix.ends_with("ext_factor") {
                0.0
            } else {
                1.0
            };
            if self.float(suffix)?.is_some_and(|factor| factor != neutral) {
                let reason = format!("a factor other than {neutral} is not built");
                return Err(self.unsupported(about(suffix), reason));
            }
        }
        for suffix in [
            "attention.key_length_swa",
            "attention.value_length_swa",
            "rope.dimension_count_swa",
        ] {
            if self.gguf.kv(&self.key(suffix)).is_some() {
                let reason = "other sizes in sliding layers are not built".to_owned();
                return Err(self.unsupported(about(suffix), reason));
            }
        }
        Ok(())
    }
}
