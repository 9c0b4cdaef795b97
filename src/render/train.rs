//! What `train` says.

use headshare_jobs::{PairDistance, TrainedModel};

use super::convert::{indented, render_output};
use super::numbers::grouped;
use super::plan::render_saved;
use super::quantize::render as render_quantized;

/// What training has made.
pub(crate) fn render(done: &TrainedModel) -> String {
    let [trained, held_out] = done.windows;
    let mut text = format!(
        "{} steps on {} windows of {} tokens, {} held out\n",
        grouped(i128::from(done.steps)),
        grouped(trained as i128),
        done.window,
        grouped(held_out as i128),
    );
    if let (Some(first), Some(last)) = (&done.first, &done.last) {
        text += &format!("loss: {:.4} -> {:.4}", first.loss, last.loss);
        if first.step > 1 {
            text += &format!(" since step {}", first.step);
        }
        let held_out = match done.distances.is_empty() {
            true => "held out",
            false => "held out, with the pairs shared",
        };
        text += &match done.best {
            Some((0, loss)) => {
                format!("; {held_out}: {loss:.4} before, and never less: nothing was changed\n")
            }
            Some((step, loss)) => {
                let start = done
                    .start
                    .map_or(String::new(), |start| format!("{start:.4} -> "));
                format!(
                    "; {held_out}: {start}{loss:.4} after step {step}, whose weights were taken\n"
                )
            }
            None => "\n".to_owned(),
        };
    }
    if !done.distances.is_empty() {
        let mean = |of: fn(&PairDistance) -> f64| {
            done.distances.iter().map(of).sum::<f64>() / done.distances.len() as f64
        };
        text += &format!(
            "distance of {} pairs: {:.4} -> {:.4} on average\n",
            done.distances.len(),
            mean(|pair| pair.before),
            mean(|pair| pair.after)
        );
    }
    if let Some(speed) = &done.speed {
        text += &format!("speed: {:.0} tokens/s", speed.tokens);
        if let Some(operations) = speed.operations {
            text += &format!(
                ", {:.1} GFLOP/s: {:.0}% of what products of large matrices reach here",
                operations / 1e9,
                100.0 * operations / speed.products
            );
        }
        text.push('\n');
    }
    let converted = &done.converted;
    text += &render_quantized(converted.quantized.as_ref(), false);
    text += &format!("{}\n", converted.source.path);
    text + &indented(&render_saved(&converted.sizes())) + &render_output(converted)
}
