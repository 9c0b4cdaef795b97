//! What `eval perplexity` says.

use headshare_jobs::PerplexityFigures;

use super::{line, with_error};
use crate::render::numbers::grouped;

/// How well a model predicts a text, and how far it is from another model.
pub(crate) fn render(figures: &PerplexityFigures) -> String {
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
