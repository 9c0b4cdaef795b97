//! Greedy continuations of prompts, compared with references by corpus
//! BLEU and METEOR.
//!
//! A file has one object a line: `prompt`, and `reference` (a text) or
//! `references` (a list). The prompt is evaluated as it is, after the token
//! that the model wants in front of every text; the continuation ends where the
//! model ends it, after as many tokens as were asked for, or before the first
//! of the texts that end it (`until`, as lm-evaluation-harness calls them).

use std::io::BufReader;
use std::path::Path;

use headshare_runtime::{
    Context, ContextError, GenerateError, Generator, Sampler, SamplerParams, StopReason, Utf8Stream,
};

use super::bleu::{Bleu, BleuCounts};
use super::choice::encode::Tokenizer;
use super::meteor::{Meteor, Synonyms};
use super::task_file::{FieldResult, Row, TaskError, rows};
use headshare_convert::input::text;

/// A prompt and what could follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What the model goes on from.
    pub text: String,
    /// At least one.
    pub references: Vec<String>,
    /// Its line in the file.
    pub line: u64,
}

impl Prompt {
    /// Reads the file at `path`, the first `limit` lines of it.
    ///
    /// # Errors
    /// [`TaskError`], naming the file, the line and the field.
    pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Self>, TaskError> {
        let file = text::open(path).map_err(|e| TaskError::read(path, e))?;
        let prompts = rows(path, BufReader::new(file))
            .take(limit.unwrap_or(usize::MAX))
            .map(|row| {
                let (line, row) = row?;
                Self::of_row(&row, line).map_err(|e| TaskError::line(path, line, e))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if prompts.is_empty() {
            return Err(TaskError::content(path, "the file holds no prompts"));
        }
        Ok(prompts)
    }

    fn of_row(row: &Row, line: u64) -> FieldResult<Self> {
        let text = row.text("prompt")?.to_owned();
        let references = match row.any(&["reference", "references"])? {
            "reference" => vec![row.text("reference")?.to_owned()],
            _ => row.texts("references")?,
        };
        Ok(Self {
            text,
            references,
            line,
        })
    }
}

/// How continuations are made.
#[derive(Clone, Debug)]
pub struct Params {
    /// Tokens of a continuation, at most.
    pub n_predict: usize,
    /// Texts that end it; they are not part of it.
    pub until: Vec<String>,
    /// Words that METEOR counts as the same.
    pub synonyms: Synonyms,
}

/// Continuations and how good they are.
#[derive(Clone, Debug)]
pub struct Generated {
    /// One for each prompt.
    pub texts: Vec<String>,
    /// Over all of them.
    pub bleu: Bleu,
    /// METEOR of them, from 0 to 100.
    pub meteor: f64,
    /// Prompts that lost their left end, so that there was room to go on.
    pub truncated: usize,
    /// Tokens that were generated.
    pub n_tokens: usize,
}

/// A prompt that the model fails at.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct PromptError {
    /// The prompt's line.
    pub line: u64,
    /// What went wrong.
    pub source: GenerateError,
}

/// Goes on from every prompt. `watch` is called after each with their number
/// and BLEU so far.
///
/// # Errors
/// What the model fails at, with the prompt's line;
/// [`GenerateError::PromptTooLong`] where not even the end of a prompt fits.
pub fn generate(
    context: &mut Context,
    prompts: &[Prompt],
    params: &Params,
    watch: &mut dyn FnMut(usize, &Bleu),
) -> Result<Generated, PromptError> {
    let mut counts = BleuCounts::default();
    let mut meteor = Meteor::new(params.synonyms.clone());
    let mut generated = Generated {
        texts: Vec::with_capacity(prompts.len()),
        bleu: counts.bleu(),
        meteor: 0.0,
        truncated: 0,
        n_tokens: 0,
    };
    for prompt in prompts {
        let line = prompt.line;
        let text = go_on(context, &prompt.text, params, &mut generated)
            .map_err(|source| PromptError { line, source })?;
        counts.add(&text, &prompt.references);
        meteor.add(&text, &prompt.references);
        generated.texts.push(text);
        generated.bleu = counts.bleu();
        generated.meteor = meteor.mean();
        watch(generated.texts.len(), &generated.bleu);
    }
    Ok(generated)
}

/// Goes on from one prompt, and counts what that takes.
fn go_on(
    context: &mut Context,
    prompt: &str,
    params: &Params,
    generated: &mut Generated,
) -> Result<String, GenerateError> {
    let vocab = context.model().vocab();
    let mut tokens = vocab.tokens(prompt)?;
    tokens.splice(0..0, Tokenizer::first(&vocab));
    if tokens.is_empty() {
        // As an empty context of `eval choice`.
        tokens.extend(vocab.instead_of_nothing());
    }
    // A prompt longer than this leaves no room for its continuation.
    let room = (context.n_ctx() as usize).saturating_sub(params.n_predict.max(1));
    if tokens.len() > room {
        if room == 0 {
            return Err(GenerateError::PromptTooLong {
                n_prompt: tokens.len(),
                n_ctx: context.n_ctx(),
            });
        }
        tokens.drain(..tokens.len() - room);
        generated.truncated += 1;
    }
    let greedy = SamplerParams {
        temp: 0.0,
        ..SamplerParams::default()
    };
    context.clear();
    let mut sampler = Sampler::new(context.model(), &greedy)?;
    let mut generator = Generator::new(context, &mut sampler, &tokens, Some(params.n_predict))?;
    let mut stream = Utf8Stream::new();
    let mut text = String::new();
    while let Some(token) = generator.next_token()? {
        generated.n_tokens += 1;
        text += &stream.push(&generator.piece(token)?);
        if cut(&mut text, &params.until) {
            return Ok(text);
        }
    }
    if generator.stop_reason() == Some(StopReason::Interrupted) {
        return Err(ContextError::Interrupted.into());
    }
    text += &stream.finish();
    cut(&mut text, &params.until);
    Ok(text)
}

/// Ends `text` before the first of `until`; false when there is none of them.
fn cut(text: &mut String, until: &[String]) -> bool {
    let first = until.iter().filter_map(|end| text.find(end.as_str())).min();
    if let Some(at) = first {
        text.truncate(at);
    }
    first.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompts_have_one_reference_or_several() {
        let of = |value: serde_json::Value| Prompt::of_row(&Row::parse(&value.to_string())?, 3);
        let one = of(json!({"prompt": "a", "reference": "b"})).unwrap();
        assert_eq!(
            (one.references.as_slice(), one.line),
            (&["b".to_owned()][..], 3)
        );
        let two = of(json!({"prompt": "a", "references": ["b", ""]})).unwrap();
        assert_eq!(two.references, ["b", ""]);
        for (value, part) in [
            (json!({"reference": "b"}), "field \"prompt\" is missing"),
            (json!({"prompt": "a"}), "field \"reference\" is missing"),
            (
                json!({"prompt": "a", "references": []}),
                "\"references\" is an empty list",
            ),
            (
                json!({"prompt": "a", "reference": ["b"]}),
                "\"reference\" must be a text",
            ),
        ] {
            let problem = of(value).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn the_first_end_counts() {
        let until = ["\n".to_owned(), "Q:".to_owned()];
        let mut text = "so it is Q: no\n".to_owned();
        assert!(cut(&mut text, &until));
        assert_eq!(text, "so it is ");
        assert!(!cut(&mut text, &until));
    }
}
