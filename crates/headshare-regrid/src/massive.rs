//! Channels of the residual stream that carry massive activations (Sun, Chen,
//! Kolter, Liu: "Massive Activations in Large Language Models", 2024).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use headshare_runtime::callbacks::{Node, Observer};
use headshare_runtime::{Context, ContextParams, Model, ModelParams};

/// A channel is massive from this multiple of the median of all channels' maximums
/// on.
const MASSIVE: f64 = 4.0;

/// Any text shows them: they are there at its first token and at delimiters.
const TEXT: &str = "\
The river had risen in the night. By seven o'clock the water stood at the third step of
the landing, brown and quick, and the ferryman had tied his boat to the lamp post instead
of the ring. \"Nobody crosses today,\" he said, \"unless you can swim 200 metres in your
boots.\" Two women laughed; a boy with a dog did not.

1. Wash the rice until the water runs clear.
2. Heat 30 ml of oil, add the onions, and stir for five minutes.
3. Add the rice, 600 ml of stock and a pinch of salt; cover, and wait.

In 1874 the society published its first catalogue: 412 stars, each with its position,
brightness and colour. It cost $3.50, and it was wrong about eleven of them. Why did it
take thirty years to correct? (See the letters in appendix B, pp. 77-81.)

def mean(values):
    return sum(values) / len(values) if values else 0.0

The committee met on Tuesday, voted 7 to 2 against the bridge, and adjourned. \"It isn't
the money,\" the chairman wrote later, \"it's the noise.\" Nothing was built there; today
the place is a meadow, and in spring it floods.
";

/// For each channel of the residual stream whether it is massive somewhere.
pub(crate) fn channels(model: &Path, n: usize) -> Result<Vec<bool>> {
    let model = Arc::new(Model::load(model, &ModelParams::default(), None)?);
    let tokens = model.vocab().tokenize(TEXT, true, true)?;
    let params = ContextParams {
        n_ctx: Some(tokens.len() as u32 + 1),
        n_batch: tokens.len() as u32,
        n_ubatch: tokens.len() as u32,
        observable: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params)?;
    let mut largest = Largest {
        of: vec![0.0; n],
        layers: 0,
        problem: None,
    };
    context.decode_observed(&tokens, &mut largest)?;
    if let Some(problem) = largest.problem {
        return Err(problem);
    }
    anyhow::ensure!(largest.layers > 0, "llama.cpp names no layer's output");
    let mut sorted = largest.of.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[n / 2];
    Ok(largest.of.iter().map(|&v| v >= MASSIVE * median).collect())
}

/// The largest size of each channel after any layer.
struct Largest {
    of: Vec<f64>,
    layers: u32,
    problem: Option<anyhow::Error>,
}

impl Observer for Largest {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.layer_of("l_out").is_some()
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        self.layers += 1;
        match node.f32s().context("a layer's output") {
            Ok(values) => {
                for row in values.chunks_exact(self.of.len()) {
                    for (most, v) in self.of.iter_mut().zip(row) {
                        *most = most.max(f64::from(v.abs()));
                    }
                }
                ControlFlow::Continue(())
            }
            Err(problem) => {
                self.problem = Some(problem);
                ControlFlow::Break(())
            }
        }
    }
}
