//! How well a model predicts a text, and how far it is from another model; the
//! measuring is in [`headshare_eval::eval::perplexity`].

use std::path::PathBuf;

use headshare_convert::input::text;
use headshare_eval::eval::perplexity::{self, Against, MIN_CTX, Params, Running};
use serde::{Deserialize, Serialize};

use super::subject::{MeasuredFile, Subject};
use crate::context::own_if_0;
use crate::error::Context as _;
use crate::load::Resolve;
use crate::text::{read_input, without_line_end};
use crate::{Bar, Error, Ui, Unit};

/// Measures how well a model predicts a text, and how far it is from another model
/// on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Perplexity {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// The text, UTF-8; a line end at its end does not count.
    #[serde(with = "crate::path")]
    pub text: PathBuf,
    /// A reference that reads the same: the same model unconverted, or with other
    /// weights.
    #[serde(with = "crate::path::option")]
    pub base: Option<PathBuf>,
    /// Tokens of a window, 8 or more; 0 takes what the model was trained with.
    pub ctx: u32,
    /// Windows to evaluate at most, from the beginning; all by default.
    pub chunks: Option<u64>,
    /// Tokens evaluated at once: windows side by side, or parts of one.
    pub batch_size: u32,
    /// How shared blocks are brought into memory.
    pub resolve: Resolve,
    /// Computes with weights as F16 that ggml multiplies slowly as they are. The
    /// figures are not quite those of the file as it runs.
    pub fast: bool,
    /// Threads; by default one a physical core, fewer while other programs are
    /// busy.
    pub threads: Option<u32>,
}

/// How well a model predicts a text. Shares and probabilities are between 0 and 1,
/// sizes in bytes; standard errors are called `stderr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerplexityFigures {
    /// The model.
    #[serde(flatten)]
    pub measured: MeasuredFile,
    /// The text's path.
    pub text: String,
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows that were evaluated.
    pub chunks: usize,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// Against the reference, where there is one.
    pub base: Option<AgainstBase>,
}

/// How far a model is from its reference, on the scored tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgainstBase {
    /// The reference.
    #[serde(flatten)]
    pub measured: MeasuredFile,
    /// The reference's perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// The model's perplexity over the reference's.
    pub ratio: f64,
    /// Its standard error.
    pub ratio_stderr: f64,
    /// Its natural logarithm.
    pub ln_ratio: f64,
    /// The logarithm's standard error.
    pub ln_ratio_stderr: f64,
    /// Correlation of the two models' log-likelihoods; null where they do not vary.
    pub correlation: Option<f64>,
    /// Mean Kullback-Leibler divergence of the model from the reference.
    pub kl_mean: f64,
    /// Its standard error.
    pub kl_stderr: f64,
    /// Half of the tokens have a smaller divergence.
    pub kl_median: f64,
    /// 99 of 100 tokens have a smaller divergence.
    pub kl_p99: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// The share of tokens where both find the same token most probable.
    pub same_top: f64,
    /// Its standard error.
    pub same_top_stderr: f64,
    /// Mean change of the probability of the token that came.
    pub delta_p_mean: f64,
    /// Its standard error.
    pub delta_p_mean_stderr: f64,
    /// The root of its mean square.
    pub delta_p_rms: f64,
    /// The root's standard error.
    pub delta_p_rms_stderr: f64,
    /// The largest change, up or down.
    pub delta_p_max: f64,
}

impl Perplexity {
    /// Of `file` on `text`, as llama-perplexity measures when nothing else is said.
    pub fn new(file: impl Into<PathBuf>, text: impl Into<PathBuf>) -> Self {
        let defaults = Params::default();
        Self {
            file: file.into(),
            text: text.into(),
            base: None,
            ctx: defaults.n_ctx,
            chunks: None,
            batch_size: defaults.n_batch,
            resolve: Resolve::Auto,
            fast: false,
            threads: None,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// When a file is bad, the text fills no window, or a model computes nonsense.
    pub fn run(&self, ui: &dyn Ui) -> Result<PerplexityFigures, Error> {
        let read = without_line_end(read_input(&self.text, "the text")?);
        let subject = Subject::load(&self.file, self.resolve, self.fast, ui)?;
        let base = match &self.base {
            Some(path) => Some(Subject::load(path, self.resolve, self.fast, ui)?),
            None => None,
        };
        let ctx = own_if_0(self.ctx, &subject.model).max(MIN_CTX);
        let params = Params {
            n_ctx: ctx,
            n_batch: self.batch_size,
            chunks: self.chunks.and_then(|n| usize::try_from(n).ok()),
            n_threads: self.threads,
        };
        let mut bar: Option<Box<dyn Bar>> = None;
        let found = perplexity::perplexity(
            &subject.model,
            base.as_ref().map(|base| &base.model),
            &read,
            &params,
            &mut |running| {
                if running.chunks == 0 {
                    warn(&subject, ctx, ui);
                }
                let total = running.of as u64;
                let bar = bar.get_or_insert_with(|| ui.bar("eval", total, Unit::Parts));
                bar.set(running.chunks as u64);
                bar.say(&so_far(&running));
            },
        );
        drop(bar);
        let found = found.about(|| {
            let against = self.base.as_ref().map(|base| base.display());
            let against = against.map_or_else(String::new, |base| format!(" against {base}"));
            let (file, text) = (self.file.display(), text::name(&self.text));
            format!("{file}{against} on {text}")
        })?;
        if self.chunks.is_some_and(|n| n > found.chunks_of_text as u64) {
            ui.remark(&format!(
                "the text has {} windows of {ctx} tokens",
                found.chunks_of_text
            ));
        }
        Ok(PerplexityFigures {
            measured: subject.measured(),
            text: self.text.to_string_lossy().into_owned(),
            ctx,
            chunks: found.chunks,
            tokens: found.tokens,
            perplexity: found.perplexity.value,
            stderr: found.perplexity.stderr,
            base: base
                .zip(found.against)
                .map(|(base, against)| AgainstBase::new(base.measured(), &against)),
        })
    }
}

fn warn(subject: &Subject, ctx: u32, ui: &dyn Ui) {
    let trained = subject.model.n_ctx_train();
    if trained > 0 && ctx > trained {
        ui.warning(&format!(
            "the model was trained with {trained} tokens of context; windows of {ctx} are beyond \
             what it learned"
        ));
    }
}

impl AgainstBase {
    fn new(measured: MeasuredFile, against: &Against) -> Self {
        Self {
            measured,
            perplexity: against.perplexity.value,
            stderr: against.perplexity.stderr,
            ratio: against.ratio.value,
            ratio_stderr: against.ratio.stderr,
            ln_ratio: against.ln_ratio.value,
            ln_ratio_stderr: against.ln_ratio.stderr,
            correlation: against.correlation,
            kl_mean: against.divergence.value,
            kl_stderr: against.divergence.stderr,
            kl_median: against.divergence_median,
            kl_p99: against.divergence_p99,
            kl_max: against.divergence_max,
            same_top: against.same_top.value,
            same_top_stderr: against.same_top.stderr,
            delta_p_mean: against.delta_p.value,
            delta_p_mean_stderr: against.delta_p.stderr,
            delta_p_rms: against.delta_p_rms.value,
            delta_p_rms_stderr: against.delta_p_rms.stderr,
            delta_p_max: against.delta_p_max,
        }
    }
}

/// The value so far, for the progress bar.
fn so_far(running: &Running) -> String {
    if running.chunks == 0 {
        return String::new();
    }
    let mut text = format!(
        "[{}/{}] perplexity {:.4}",
        running.chunks, running.of, running.perplexity
    );
    if let Some(divergence) = running.divergence {
        text += &format!(", KL {divergence:.5}");
    }
    text
}
