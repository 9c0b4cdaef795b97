//! A conversation in a context: what was said, what of it is evaluated, and what
//! is forgotten when the context is full.

use std::io;

use headshare_runtime::{
    Context, GenerateError, Generated, Generator, Sampler, SamplerError, SamplerParams, StopReason,
    ThreadUse, Token, Vocab, VocabError,
};

use super::template::{ChatTemplate, Message, Role, TemplateError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The conversation could not be rendered.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Even alone, a message does not fit.
    #[error(
        "the message has {n_tokens} tokens with the system prompt, and the context holds {n_ctx}"
    )]
    TooLong {
        /// Tokens of the message, of the system prompt and between them.
        n_tokens: usize,
        /// Tokens of context.
        n_ctx: u32,
    },
    /// The text could not be turned into tokens.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The sampling parameters or the grammar are wrong.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Generating failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// A message of the user and the answer to it.
#[derive(Clone, Debug)]
struct Exchange {
    user: String,
    assistant: String,
}

/// A message that is ready to be answered.
#[derive(Clone, Debug)]
pub struct Question {
    text: String,
    tokens: Vec<Token>,
    forgets: usize,
}

impl Question {
    /// How many of the oldest exchanges are forgotten to make room.
    pub fn forgets(&self) -> usize {
        self.forgets
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Text, tokens, why it ended and how long it took.
    pub generated: Generated,
    /// Tokens of the conversation that were evaluated before already.
    pub kept_tokens: usize,
}

/// A conversation in a context.
pub struct Session {
    context: Context,
    template: ChatTemplate,
    sampling: SamplerParams,
    stops: Vec<String>,
    n_predict: Option<usize>,
    seed: u32,
    system: Option<String>,
    exchanges: Vec<Exchange>,
    /// The tokens that the context holds, one for each that it counts.
    evaluated: Vec<Token>,
    answers: u32,
}

impl Session {
    /// Begins a conversation in a context. Answers end at the `stops` and after
    /// `n_predict` tokens.
    ///
    /// # Errors
    /// When the sampling parameters or the grammar are wrong, or the system
    /// prompt leaves no room in the context.
    pub fn new(
        mut context: Context,
        template: ChatTemplate,
        sampling: SamplerParams,
        stops: Vec<String>,
        n_predict: Option<usize>,
        system: Option<String>,
    ) -> Result<Self, ChatError> {
        let seed = Sampler::new(context.model(), &sampling)?.seed();
        context.clear();
        let this = Self {
            context,
            template,
            sampling,
            stops,
            n_predict,
            seed,
            system,
            exchanges: Vec::new(),
            evaluated: Vec::new(),
            answers: 0,
        };
        this.prepare("Hello")?;
        Ok(this)
    }

    /// How many tokens each number of threads has evaluated.
    pub fn thread_use(&self) -> ThreadUse {
        self.context.thread_use()
    }

    /// The seed of the first answer; each further one takes the next number.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// The context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Forgets what was said, except the system prompt.
    pub fn reset(&mut self) {
        self.exchanges.clear();
    }

    /// Begins a new conversation with another system prompt, or the template's
    /// own.
    pub fn set_system(&mut self, system: Option<String>) {
        self.reset();
        self.system = system;
    }

    /// Makes a message ready to be answered. Nothing changes yet.
    ///
    /// Where the conversation leaves less than a quarter of the context for the
    /// answer (or less than the tokens that an answer may have), the oldest
    /// exchanges are to be forgotten, as many as it takes.
    ///
    /// # Errors
    /// When the template fails, or the message does not even fit alone.
    pub fn prepare(&self, text: &str) -> Result<Question, ChatError> {
        let n_ctx = self.context.n_ctx() as usize;
        let wanted = (n_ctx / 4).min(self.n_predict.unwrap_or(n_ctx)).max(1);
        let mut forgets = 0;
        loop {
            let tokens = self.tokens(forgets, text)?;
            let room = n_ctx.saturating_sub(tokens.len());
            let alone = forgets == self.exchanges.len();
            if room >= wanted || (alone && room > 0) {
                return Ok(Question {
                    text: text.to_owned(),
                    tokens,
                    forgets,
                });
            }
            if alone {
                return Err(ChatError::TooLong {
                    n_tokens: tokens.len(),
                    n_ctx: self.context.n_ctx(),
                });
            }
            forgets += 1;
        }
    }

    /// Answers, and hands the text to `show` as it comes; see
    /// [`Generator::write_text`]. An answer that is interrupted before it began
    /// is not remembered, nor is its question.
    ///
    /// # Errors
    /// When generating fails. What was said before is remembered.
    pub fn answer(
        &mut self,
        question: Question,
        show: impl FnMut(&str) -> io::Result<bool>,
    ) -> Result<Answer, ChatError> {
        let Question {
            text,
            tokens,
            forgets,
        } = question;
        let kept_tokens = self.keep_common_prefix(&tokens);
        let params = SamplerParams {
            seed: Some(self.next_seed()),
            ..self.sampling.clone()
        };
        let mut sampler = Sampler::new(self.context.model(), &params)?;
        for &token in &tokens[..kept_tokens] {
            sampler.accept(token, false)?;
        }
        let new = &tokens[kept_tokens..];
        let generated = Generator::new(&mut self.context, &mut sampler, new, self.n_predict)
            .and_then(|generator| generator.write_text(&self.stops, show));
        self.evaluated = tokens;
        if let Ok(generated) = &generated {
            self.evaluated.extend(&generated.tokens);
        }
        // Not all of it need be evaluated: the last token never is, and what
        // was generated before an error is not known.
        let known = u32::try_from(self.evaluated.len()).unwrap_or(u32::MAX);
        let held = self.context.keep(known);
        self.evaluated.truncate(held as usize);

        let generated = generated?;
        self.exchanges.drain(..forgets.min(self.exchanges.len()));
        if generated.stop != StopReason::Interrupted || !generated.text.is_empty() {
            self.exchanges.push(Exchange {
                user: text,
                assistant: generated.text.clone(),
            });
        }
        Ok(Answer {
            generated,
            kept_tokens,
        })
    }

    /// Cuts the context back to what it has in common with `tokens`, and returns
    /// how many that are. At least one is left to evaluate, for its logits.
    fn keep_common_prefix(&mut self, tokens: &[Token]) -> usize {
        let most = tokens.len().saturating_sub(1);
        let common = self
            .evaluated
            .iter()
            .zip(&tokens[..most])
            .take_while(|(held, wanted)| held == wanted)
            .count();
        let kept = self.context.keep(u32::try_from(common).unwrap_or(0)) as usize;
        self.evaluated.truncate(kept);
        kept
    }

    /// A number for each answer: the same question in a new conversation shall
    /// not get the same answer, unless the temperature says so.
    fn next_seed(&mut self) -> u32 {
        let seed = self.seed.wrapping_add(self.answers);
        self.answers = self.answers.wrapping_add(1);
        seed
    }

    /// The conversation without its first `skip` exchanges, with a new message.
    fn tokens(&self, skip: usize, text: &str) -> Result<Vec<Token>, ChatError> {
        let system = self.system.as_deref();
        let mut messages: Vec<_> = system
            .map(|system| Message::new(Role::System, system))
            .into_iter()
            .collect();
        for exchange in self.exchanges.iter().skip(skip) {
            messages.push(Message::new(Role::User, &exchange.user));
            messages.push(Message::new(Role::Assistant, &exchange.assistant));
        }
        messages.push(Message::new(Role::User, text));
        let text = self.template.render(&messages)?;
        Ok(tokenize(self.context.model().vocab(), &text)?)
    }
}

/// Tokens of a rendered conversation, with exactly one BOS where the model wants
/// one: templates write it, or leave it to the tokenizer.
fn tokenize(vocab: Vocab<'_>, text: &str) -> Result<Vec<Token>, VocabError> {
    let mut tokens = vocab.tokenize(text, false, true)?;
    if let Some(bos) = vocab.leading_bos()
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}
