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
pub(in crate::cli) struct Args {
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
