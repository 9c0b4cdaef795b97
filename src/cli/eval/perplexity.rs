//! `eval perplexity`: arguments and output; the measuring is in
//! [`crate::eval::perplexity`].

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use super::{Common, Measured, Subject, read_text};
use crate::cli::Exit;
use crate::cli::llama_cpp::{OneModel, context_size, own_if_0};
use crate::cli::output::{Output, grouped};
use crate::eval::perplexity::{Against, MIN_CTX, Params, Running, perplexity};
use crate::input::text;

/// How well a model predicts a text, and how far it is from another model.
///
/// Figures are those of llama.cpp's llama-perplexity: the text is cut into
/// windows of --ctx tokens, and the second half of each is scored by what the
/// model expected after all that came before in the window. A perplexity is
/// comparable only with others of the same text, window and vocabulary.
///
/// With --base, a reference model reads the same tokens: mean, median, 99th
/// percentile and maximum of the Kullback-Leibler divergence from it, how often
/// both find the same token most probable, the ratio of the perplexities, and
/// how much the probability of the token that came changes (as
/// llama-perplexity --kl-divergence, without a file of logits in between).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The last fifth of a file, from a line on:
  tail -c \"$(( $(wc -c < text.txt) / 5 ))\" text.txt | tail -n +2 > last-fifth.txt")]
pub(super) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// The text, UTF-8; - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window; 0 takes what the model was trained with.
    #[arg(short, long, alias = "ctx-size", value_name = "N", default_value_t = 512,
          value_parser = context_size(MIN_CTX..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// A reference model: the same model unconverted, or with other weights.
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Tokens evaluated at once: windows side by side, or parts of one. Less takes less memory.
    #[arg(short, long, value_name = "N", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    batch_size: u32,
    #[command(flatten)]
    common: Common,
}

/// What `eval perplexity` has to say; the shape of its JSON. Shares and
/// probabilities are between 0 and 1, sizes in bytes.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    text: String,
    ctx: u32,
    chunks: usize,
    tokens: u64,
    perplexity: f64,
    stderr: f64,
    base: Option<BaseReport>,
}

/// Against the reference. What cannot be told is null.
#[derive(Debug, Serialize)]
struct BaseReport {
    #[serde(flatten)]
    measured: Measured,
    perplexity: f64,
    stderr: f64,
    ratio: f64,
    ratio_stderr: f64,
    ln_ratio: f64,
    ln_ratio_stderr: f64,
    correlation: Option<f64>,
    kl_mean: f64,
    kl_stderr: f64,
    kl_median: f64,
    kl_p99: f64,
    kl_max: f64,
    same_top: f64,
    same_top_stderr: f64,
    delta_p_mean: f64,
    delta_p_mean_stderr: f64,
    delta_p_rms: f64,
    delta_p_rms_stderr: f64,
    delta_p_max: f64,
}

impl Args {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let read = read_text(&self.text, "--text")?;
        let subject = self.common.load(self.model.path(), out)?;
        let base = match &self.base {
            Some(path) => Some(self.common.load(path, out)?),
            None => None,
        };
        let ctx = own_if_0(self.ctx, &subject.model);
        let params = Params {
            n_ctx: ctx,
            n_batch: self.batch_size,
            chunks: self.chunks.and_then(|n| usize::try_from(n).ok()),
            n_threads: self.common.threads,
        };
        let bar = out.bar("eval", 0, false);
        let found = perplexity(
            &subject.model,
            base.as_ref().map(|base| &base.model),
            &read,
            &params,
            &mut |running| {
                if running.chunks == 0 {
                    bar.suspend(|| warn(&subject, ctx, out));
                }
                bar.set_length(running.of as u64);
                bar.set_position(running.chunks as u64);
                bar.set_message(running_value(&running));
            },
        );
        bar.finish_and_clear();
        let found = found.with_context(|| match &self.base {
            Some(base) => format!(
                "{} against {} on {}",
                self.model.path().display(),
                base.display(),
                text::name(&self.text)
            ),
            None => format!(
                "{} on {}",
                self.model.path().display(),
                text::name(&self.text)
            ),
        })?;
        if self.chunks.is_some_and(|n| n > found.chunks_of_text as u64) {
            out.remark(&format!(
                "the text has {} windows of {} tokens",
                found.chunks_of_text, ctx
            ));
        }
        let report = Report {
            measured: Measured::from(&subject),
            text: self.text.to_string_lossy().into_owned(),
            ctx,
            chunks: found.chunks,
            tokens: found.tokens,
            perplexity: found.perplexity.value,
            stderr: found.perplexity.stderr,
            base: base
                .zip(found.against)
                .map(|(base, against)| BaseReport::new(&base, &against)),
        };
        out.result(&report, self.common.json, render)?;
        Ok(Exit::Done)
    }
}

fn warn(subject: &Subject, ctx: u32, out: &Output) {
    let trained = subject.model.n_ctx_train();
    if trained > 0 && ctx > trained {
        out.warning(&format!(
            "the model was trained with {trained} tokens of context; windows of {ctx} are beyond \
             what it learned"
        ));
    }
}

impl BaseReport {
    fn new(base: &Subject, against: &Against) -> Self {
        Self {
            measured: Measured::from(base),
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
fn running_value(running: &Running) -> String {
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

fn render(report: &Report) -> String {
    let with_error =
        |value: f64, stderr: f64, digits: usize| format!("{value:.digits$} ± {stderr:.digits$}");
    let mut lines = vec![
        report.measured.to_string(),
        format!(
            "perplexity   {}   ({} tokens scored in {} windows of {})",
            with_error(report.perplexity, report.stderr, 4),
            grouped(i128::from(report.tokens)),
            grouped(report.chunks as i128),
            report.ctx
        ),
    ];
    if let Some(base) = &report.base {
        let percent = |value: f64, stderr: f64, digits| {
            format!("{} %", with_error(100.0 * value, 100.0 * stderr, digits))
        };
        lines.extend([
            String::new(),
            format!("against {}", base.measured),
            format!(
                "perplexity   {}",
                with_error(base.perplexity, base.stderr, 4)
            ),
            format!(
                "ratio        {}   (ln {}{})",
                with_error(base.ratio, base.ratio_stderr, 5),
                with_error(base.ln_ratio, base.ln_ratio_stderr, 5),
                base.correlation
                    .map(|c| format!(", correlation {:.2} %", 100.0 * c))
                    .unwrap_or_default()
            ),
            format!(
                "KL           {}   (median {:.5}, 99% {:.5}, max {:.5})",
                with_error(base.kl_mean, base.kl_stderr, 5),
                base.kl_median,
                base.kl_p99,
                base.kl_max
            ),
            format!(
                "same top     {}",
                percent(base.same_top, base.same_top_stderr, 3)
            ),
            format!(
                "Δp           mean {}, RMS {}, max {:.3} %",
                percent(base.delta_p_mean, base.delta_p_mean_stderr, 3),
                percent(base.delta_p_rms, base.delta_p_rms_stderr, 3),
                100.0 * base.delta_p_max
            ),
        ]);
    }
    lines.join("\n")
}
