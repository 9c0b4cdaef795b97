//! What `eval generate` says.

use headshare_jobs::ContinuedPrompts;

use super::line;
use crate::eval::bleu::Bleu;
use crate::render::numbers::grouped;

/// How close continuations come to references.
pub(crate) fn render(done: &ContinuedPrompts) -> String {
    let Bleu {
        bleu,
        precisions: [p1, p2, p3, p4],
        brevity_penalty,
        hypothesis_len,
        reference_len,
    } = done.bleu;
    format!(
        "{}\n\n{}: {} prompts\nBLEU {bleu:.2}   {p1:.1}/{p2:.1}/{p3:.1}/{p4:.1} (BP {brevity_penalty:.3}, \
         {} tokens against {})\nMETEOR {:.2}{}",
        line(&done.measured),
        done.task,
        grouped(done.n as i128),
        grouped(hypothesis_len as i128),
        grouped(reference_len as i128),
        done.meteor,
        match done.synonyms {
            0 => "   (without synonyms)".to_owned(),
            n => format!("   ({} words with synonyms)", grouped(n as i128)),
        },
    )
}
