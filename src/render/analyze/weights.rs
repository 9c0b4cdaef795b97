//! What `analyze weights` says.

use super::summaries::render_summaries;
use crate::analyze::weights::Weights;

/// How alike the weights of all heads are.
pub(crate) fn render(weights: &Weights) -> String {
    let mut text = format!("{}\n{}\n", weights.path, weights.model);
    for view in &weights.views {
        text += &format!("\ncosine of {}\n", view.parts_text());
        text += &render_summaries(&[
            ("pairs of units", view.all),
            ("in different layers", view.across_layers),
            ("each unit's best earlier match", view.best),
            (&format!("matches at ratio {}", weights.ratio), view.matched),
        ]);
    }
    text
}
