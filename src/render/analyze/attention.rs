//! What `analyze attention` says.

use super::summaries::render_summaries;
use crate::analyze::attention::Attention;

/// How alike heads attend.
pub(crate) fn render(found: &Attention) -> String {
    let mut text = format!(
        "{}\n{}\n{}; the first token gets {:.1}% of the attention\n\n",
        found.path,
        found.model,
        found.windows_text(),
        found.first_token_share * 100.0
    );
    text += "cosine of attention maps\n";
    text += &render_summaries(&[
        ("pairs of layers", found.layer_pairs),
        ("neighbouring layers", found.neighbour_layers),
        ("pairs of heads", found.head_pairs),
        ("heads in one layer", found.heads_within_layers),
        ("units in different layers", found.unit_pairs_across_layers),
    ]);
    for comparison in &found.comparisons {
        let parts: Vec<&str> = comparison.parts.iter().map(|p| p.as_str()).collect();
        text += &format!(
            "\nattention maps against weights ({}), over pairs of units\n{:41} {:>9} {:>9} {:>9}\n",
            parts.join(","),
            "",
            "pairs",
            "Pearson",
            "Spearman"
        );
        let r = |r: Option<f64>| {
            r.map_or_else(
                || "none".to_owned(),
                |r| {
                    // Adding 0 turns -0 into 0.
                    format!("{:.3}", (r * 1000.0).round() / 1000.0 + 0.0)
                },
            )
        };
        for (name, c) in [
            ("all pairs", comparison.all),
            ("in different layers", comparison.across_layers),
            (
                "in different layers, without first token",
                comparison.across_layers_without_first_token,
            ),
            (
                "in different layers, by size of the score",
                comparison.across_layers_by_size,
            ),
            ("within each two layers", comparison.within_pairs_of_layers),
            (
                "within each two layers, by size",
                comparison.within_pairs_of_layers_by_size,
            ),
        ] {
            text += &format!(
                "{name:41} {:9} {:>9} {:>9}\n",
                c.pairs,
                r(c.pearson),
                r(c.spearman)
            );
        }
        if let Some(m) = &comparison.matched {
            text += &format!(
                "the {} matches of Algorithm 1 at ratio {}, mean cosine of their attention maps\n",
                m.n, m.ratio
            );
            for (name, value) in [
                ("of unit and match", m.mean),
                ("any unit of the match's layer instead", m.blind_in_layer),
                ("any earlier unit instead", m.blind),
                ("the earlier unit most like it instead", m.best),
            ] {
                text += &format!("  {name:39} {value:9.3}\n");
            }
            text += &format!(
                "  {:39} {:8.0}%\n",
                "earlier units that attend less like it",
                m.rank * 100.0
            );
        }
    }
    text
}
