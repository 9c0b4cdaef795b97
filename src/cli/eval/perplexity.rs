//! `eval perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use headshare_jobs::{Error, Perplexity, PerplexityFigures};

use super::common::{Common, line};
use crate::cli::Exit;
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::cli::output::{Output, grouped};
use crate::eval::perplexity::MIN_CTX;

/// How well a model predicts a text, and how far it is from another model.
///
/// The figures are those of llama.cpp's llama-perplexity. The text is cut into
/// windows of --ctx tokens, and the second half of each window is scored.
/// Perplexities can be compared only for the same text, window and vocabulary.
///
/// With --base, a reference model reads the same tokens. Then the result also
/// has the mean, median, 99th percentile and maximum of the Kullback-Leibler
/// divergence from it; how often both models find the same token most probable;
/// the ratio of the perplexities; and how much the probability of the actual
/// token changes. These are the figures of llama-perplexity --kl-divergence,
/// without a file of logits.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
How to take the last fifth of a file, from the beginning of a line:
  tail -c \"$(( $(wc -c < text.txt) / 5 ))\" text.txt | tail -n +2 > last-fifth.txt")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// The text to measure perplexity on (UTF-8); - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in each window; 0 means what the model was trained with.
    #[arg(short, long, alias = "ctx-size", value_name = "N", default_value_t = 512,
          value_parser = context_size(MIN_CTX..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// A reference model to compare with, usually the source.
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Most tokens that are evaluated at once, in several windows or in a part
    /// of one. A smaller number needs less memory.
    #[arg(short, long, value_name = "N", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    batch_size: u32,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.common.begin(out);
        let json = self.common.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> Perplexity {
        Perplexity {
            file: self.model.path().to_owned(),
            text: self.text,
            base: self.base,
            ctx: self.ctx,
            chunks: self.chunks,
            batch_size: self.batch_size,
            resolve: self.common.resolve,
            threads: self.common.threads,
        }
    }
}

fn render(figures: &PerplexityFigures) -> String {
    let with_error =
        |value: f64, stderr: f64, digits: usize| format!("{value:.digits$} ± {stderr:.digits$}");
    let mut lines = vec![
        line(&figures.measured),
        format!(
            "perplexity   {}   ({} tokens scored in {} windows of {})",
            with_error(figures.perplexity, figures.stderr, 4),
            grouped(i128::from(figures.tokens)),
            grouped(figures.chunks as i128),
            figures.ctx
        ),
    ];
    if let Some(base) = &figures.base {
        let percent = |value: f64, stderr: f64, digits| {
            format!("{} %", with_error(100.0 * value, 100.0 * stderr, digits))
        };
        lines.extend([
            String::new(),
            format!("against {}", line(&base.measured)),
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
