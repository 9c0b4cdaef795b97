//! One text, gone on from once.

use std::sync::Arc;

use headshare_runtime::{Context, Generated, Generator, Sampler, Token};

use super::args::Args;
use super::error::from_generate;
use super::stream::Stream;

/// Generates, and streams the text to stdout unless JSON was asked for.
pub(super) fn generate(
    args: &Args,
    stops: &[String],
    context: &mut Context,
    sampler: &mut Sampler,
    prompt: &[Token],
) -> anyhow::Result<Generated> {
    let model = Arc::clone(context.model());
    let from_generate = |error| from_generate(&model, error);
    let generator =
        Generator::new(context, sampler, prompt, args.n_predict()).map_err(from_generate)?;
    let mut stream = Stream::new();
    let generated = generator
        .write_text(stops, |piece| {
            if args.json {
                return Ok(true);
            }
            stream.show(piece)
        })
        .map_err(from_generate)?;
    stream
        .end_line()
        .map_err(|error| from_generate(headshare_runtime::GenerateError::Show(error)))?;
    Ok(generated)
}
